"""Networks of the Llama family with tokenizers of their kinds: from text to text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from psycopg2.extensions import connection as Connection
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from byte_pairs import save, tokenizer_of
from conftest import Dbt
from llama_checkpoints import save as save_network
from runs import Gpt2, load_checkpoint
from small_networks import TEXT, make_project

SCHEMA = "test_tokenizers"
KINDS = {"llama3": "llama", "qwen2": "qwen2", "llama2": "mistral"}
PROMPTS = [
    "Emma Woodhouse, handsome, clever, and rich",
    "  two blanks, and don'T 123456 ²\n\n\n",
    "中文字 e\u0301 \u212b 🦋 ▁x",
    "<s>[INST] a </s> <|im_start|>user\nb<|im_end|>",
    "a",
    "",
]
NEW_TOKENS = 6


@pytest.fixture(scope="module", params=KINDS)
def network(
    dbt: Dbt,
    connection: Connection,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[tuple[Gpt2, Path]]:
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = tokenizer_of(request.param)
    rows = tokenizer.get_vocab_size()
    checkpoint = save_network(
        folder / "network", KINDS[request.param], seed=2, vocab_size=rows
    )
    save(checkpoint, tokenizer)
    load_checkpoint(checkpoint, TEXT)
    project = make_project(folder / "project", checkpoint)
    runs = Gpt2(
        dbt, connection, SCHEMA, folder / "target", network=TEXT, project=project
    )
    yield runs, checkpoint
    runs.drop()


@pytest.mark.long
def test_texts(network: tuple[Gpt2, Path]) -> None:
    """The ids of a prompt, and the text that is written after it."""
    runs, folder = network
    path = str(folder / "tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=path)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = [
        {"prompt_id": n, "prompt": text, "max_new_tokens": NEW_TOKENS}
        for n, text in enumerate(PROMPTS)
    ]
    done = runs.complete(rows)
    given = runs.prompt_token_ids()
    for n, text in enumerate(PROMPTS):
        ids = tokenizer(text).input_ids or [reference.config.bos_token_id]
        assert given[n] == ids
        written = reference.generate(
            torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False
        )[0].tolist()
        assert done[n]["token_ids"] == written[len(ids) :]
        before, after = tokenizer.decode(ids), tokenizer.decode(written)
        # half a character is another text for each way to read it
        if "\ufffd" not in before + after and before:
            assert done[n]["completion"] == after[len(before) :]
