"""What is measured: shapes and amounts, the published ones and tiny ones."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


def llama_shape(
    width: int,
    layers: int,
    heads: int,
    keys: int,
    inner: int,
    vocabulary: int = 49152,
    theta: float = 100_000.0,
) -> dict[str, Any]:
    """Of LlamaConfig, with a tied head and 64 numbers a head."""
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
    }


@dataclass(frozen=True)
class Sizes:
    """The defaults are those of docs/benchmarks.md.

    Attributes:
        text: of GPT2Config, whose defaults are GPT-2 124M's.
        image: of UNet2DModel; the defaults are ddpm-butterflies-64's.
        encoder: of BertConfig; by default the published all-MiniLM-L6-v2 is taken.
        contexts: of the sequence that is decoded.
        batch: sequences at once, at the first context.
        prefill: tokens of the prompt.
        images: batches of a UNet step.
        texts: that are embedded.
        larger: other sizes of GPT-2, of GPT2Config.
        llama: shapes of that family, of LlamaConfig: SmolLM2's and Llama 3.2's.
        new_tokens: of the bundled network's dbt run.
        sessions: what is run by several: names of bench.runs.side_by_side().
        prompts: of these, for the bundled network and for 124M.
        completion: tokens that these are completed by.
        drawn: images, by the bundled network and by ddpm-butterflies-64's shape.
        steps: of denoising these.

    """

    text: dict[str, Any] = field(default_factory=dict)
    image: dict[str, Any] = field(
        default_factory=lambda: {
            "sample_size": 64,
            "block_out_channels": (64, 128, 256, 512),
        }
    )
    encoder: dict[str, int] = field(default_factory=dict)
    contexts: tuple[int, ...] = (16, 1000)
    batch: int = 16
    prefill: int = 256
    images: tuple[int, ...] = (1, 4)
    texts: int = 1000
    larger: dict[str, dict[str, int]] = field(
        default_factory=lambda: {
            "355m": {"n_embd": 1024, "n_layer": 24, "n_head": 16},
            "774m": {"n_embd": 1280, "n_layer": 36, "n_head": 20},
        }
    )
    llama: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {
            "135m": llama_shape(576, 30, 9, 3, 1536),
            "360m": llama_shape(960, 32, 15, 5, 2560),
            "1b": llama_shape(2048, 16, 32, 8, 8192, 128256, 500_000.0),
        }
    )
    new_tokens: int = 32
    sessions: tuple[str, ...] = (
        "gpt2_bundled",
        "gpt2_124m",
        "ddpm_bundled",
        "ddpm_full",
        "minilm",
    )
    prompts: tuple[int, int] = (1000, 64)
    completion: int = 4
    drawn: tuple[int, int] = (16, 2)
    steps: int = 5


# Of two commits: more pairs of smaller steps.
COMPARED = replace(Sizes(), texts=200, prompts=(200, 16), drawn=(4, 1))

# For the test that every part still runs: its figures mean nothing.
SMOKE = Sizes(
    text={"n_embd": 16, "n_head": 2, "n_positions": 64, "vocab_size": 64},
    image={
        "sample_size": 16,
        "block_out_channels": (8, 16, 24, 32),
        "norm_num_groups": 4,
    },
    encoder={
        "hidden_size": 12,
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
        "intermediate_size": 20,
    },
    contexts=(4, 8),
    batch=2,
    prefill=8,
    images=(1,),
    texts=8,
    larger={"tiny": {"n_embd": 8, "n_head": 2, "n_layer": 1, "vocab_size": 64}},
    llama={"tiny": llama_shape(8, 1, 2, 1, 12, 64)},
    new_tokens=1,
    sessions=("gpt2_124m", "ddpm_bundled", "minilm"),
    prompts=(3, 2),
    completion=2,
    drawn=(1, 1),
    steps=2,
)

SIZES = {"published": Sizes(), "compared": COMPARED, "smoke": SMOKE}
