"""The Llama family in dbt beside `transformers`: layers, logits and greedy text."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from psycopg2.extensions import connection as Connection
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import Dbt, run_script
from dbt_nn import generate as generate_network
from dbt_nn.checkpoint.configuration import read_configuration
from dbt_nn.checkpoint.files import CheckpointError
from dbt_nn.checkpoint.folder import open_checkpoint
from dbt_nn.networks.graph import Network
from llama_checkpoints import KINDS as KINDS_OF_CONFIG
from llama_checkpoints import SHAPE, VOCABULARY, save, save_with_tokenizer
from runs import PROJECT, Gpt2, Row, copy_bare_project, load_checkpoint
from small_networks import halve
from training.make_reference import activations, watch
from training.make_reference import main as make_reference

SCHEMA = "test_llama"
# Of a layer's largest value: what float32 sums in another order may differ by.
TOLERANCE = 1e-4
# Ragged, with whole blocks of keys (30) and of values (15 and 60), and rests.
LENGTHS = [1, 2, 5, 14, 15, 29, 31, 58, 62, 66]
NEW_TOKENS = 5
ROPE: dict[str, dict[str, Any]] = {
    "linear": {"factor": 2.5},
    "dynamic": {"factor": 2.0},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32},
}  # fmt: skip


def rope(kind: str, theta: float = 1000.0, **more: Any) -> dict[str, Any]:
    given = {"rope_type": kind, "rope_theta": theta, **ROPE.get(kind, {}), **more}
    return {"rope_parameters": given}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    # heads that do not share the width; biases everywhere; a tied head
    "lla": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    # 8 heads of keys, a window shorter than the texts
    "mis": (
        "mistral",
        {"num_attention_heads": 16, "num_key_value_heads": 8, "sliding_window": 7}
        | rope("linear"),
    ),
    # a window in the second layer, that ends inside of blocks
    "qw2": (
        "qwen2",
        {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 33}
        | rope("yarn"),
    ),
    "qw3": ("qwen3", {"head_dim": 10, **rope("llama3")}),
    # inputs in several chunks, a head as wide as the network
    "wide": (
        "llama",
        {
            "intermediate_size": 1931, "num_attention_heads": 1,
            "num_key_value_heads": 1, "head_dim": 20, "num_hidden_layers": 1,
        },
    ),
    "mis_full": ("mistral", {"sliding_window": None, "num_key_value_heads": 1}),
    "mis_one": ("mistral", {"sliding_window": 1} | rope("llama3")),
    "mis_sixty": ("mistral", {"sliding_window": 60, "head_dim": 70}),
    "qw2_tied": ("qwen2", {"tie_word_embeddings": True, **rope("linear")}),
    "qw3_slid": (
        "qwen3",
        {
            "use_sliding_window": True, "max_window_layers": 0, "sliding_window": 16,
            "num_attention_heads": 16, "num_key_value_heads": 8,
            "attention_bias": True,
        } | rope("yarn", mscale=1.2, mscale_all_dim=0.7, truncate=False),
    ),
}  # fmt: skip
# with a tokenizer
CASES["words"] = ("qwen2", CASES["qw2"][1])
# longer than max_position_embeddings, of which the scaling is a multiple
DYNAMIC = {"max_position_embeddings": 24, **rope("dynamic")}
CASES["lla_dyn"] = ("llama", DYNAMIC)
QUICK = ("lla", "mis", "qw2", "qw3")
KINDS = [
    pytest.param(name, marks=[] if name in QUICK else [pytest.mark.long])
    for name in CASES
    if name != "words"
]


def prompts(lengths: list[int], seed: int = 0, **options: Any) -> list[Row]:
    rng = random.Random(seed)
    return [
        {
            "prompt_id": n,
            "prompt_token_ids": [rng.randrange(VOCABULARY) for _ in range(length)],
            "max_new_tokens": NEW_TOKENS,
            **options,
        }
        for n, length in enumerate(lengths, start=1)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llama")


def make(folder: Path, name: str, source: Path) -> Path:
    """A project with this network alone; its checkpoint is loaded."""
    project = folder / f"project_{name}"
    if not project.exists():
        copy_bare_project(project)
    load_checkpoint(source, name)
    files = generate_network.generate(source, name)
    generate_network.write(project / "models" / name, files)
    return project


def check(ours: np.ndarray, theirs: np.ndarray, largest: float, what: str) -> None:
    """Fail with the place of the largest difference and the values around it."""
    assert ours.shape == theirs.shape, f"{what}: {ours.shape} not {theirs.shape}"
    difference = abs(ours - theirs)
    if not difference.max() <= TOLERANCE * largest:
        place, channel = np.unravel_index(difference.argmax(), difference.shape)
        shown = slice(max(channel - 2, 0), channel + 3)
        pytest.fail(
            f"{what}: largest difference {difference.max():.3g} at position {place}, "
            f"channel {channel}, of {largest:.3g}\n"
            f"  ours      {ours[place, shown]}\n"
            f"  reference {theirs[place, shown]}",
            pytrace=False,
        )


@torch.no_grad()
def expected(
    source: Path, name: str, texts: dict[int, list[int]], read: dict[int, int]
) -> dict[str, dict[int, np.ndarray]]:
    """What transformers makes of texts, in float64: layer -> text -> [places, n].

    Of each text it reads so many tokens at once, then one by one, with its cache; all
    at once where the window is 1: of that, the cache keeps every key (`[-1 + 1 :]`).
    """
    described: Network = generate_network.describe(source, name)
    layers: dict[str, dict[int, np.ndarray]] = {}
    for text, ids in texts.items():
        # anew, as frequencies of `dynamic` depend on what was read before
        network = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float64, attn_implementation="eager"
        ).eval()
        seen = watch(network)
        parts: dict[str, list[torch.Tensor]] = {}
        cache = None
        window = getattr(network.config, "sliding_window", None)
        first = len(ids) if window == 1 else read[text]
        for tokens in (ids[:first], *([token] for token in ids[first:])):
            output = network(
                torch.tensor([tokens]), past_key_values=cache, use_cache=True
            )
            cache = output.past_key_values
            for layer, (values,) in activations(described, seen).items():
                parts.setdefault(layer, []).append(values)
        for layer, values in parts.items():
            layers.setdefault(layer, {})[text] = torch.cat(values).numpy()
    return layers


def check_run(runs: Gpt2, source: Path, rows: list[Row], **variables: Any) -> None:
    """Run the prompts; compare every layer, all logits and the text."""
    completions = runs.complete(rows, **variables)
    texts = {
        row["prompt_id"]: row["prompt_token_ids"]
        + completions[row["prompt_id"]]["token_ids"][:-1]
        for row in rows
    }
    read = {row["prompt_id"]: len(row["prompt_token_ids"]) for row in rows}
    reference = expected(source, runs.network, texts, read)
    files = (runs.project / "models" / runs.network / "layers").rglob("*.sql")
    assert len(reference) == sum("kv_blocks" not in path.stem for path in files)
    sequences = {
        row["prompt_id"]: row["sequence_id"]
        for row in runs.query(
            f"select prompt_id, sequence_id from {SCHEMA}.{runs.network}_prompts"
        )
    }
    for layer, texts_of in reference.items():
        largest = max(abs(values).max() for values in texts_of.values())
        found = None if layer == "lm_head" else runs.layer(layer)
        for text, values in texts_of.items():
            if layer == "lm_head":
                ours = runs.logits(text).double().numpy()
            else:
                ours = found[sequences[text]]
            check(ours, values, largest, f"{layer}, prompt {text}")
    for row in rows:
        logits = reference["lm_head"][row["prompt_id"]]
        greedy = logits[len(row["prompt_token_ids"]) - 1 :].argmax(-1).tolist()
        assert completions[row["prompt_id"]]["token_ids"] == greedy


@pytest.fixture
def runs(
    request: pytest.FixtureRequest, dbt: Dbt, connection: Connection, folder: Path
) -> Iterator[Gpt2]:
    """The network of a case."""
    name = request.param
    kind, options = CASES[name]
    if name == "words":
        source = save_with_tokenizer(folder / name, kind, **options)
    else:
        source = save(folder / name, kind, seed=len(name), **options)
    made = Gpt2(
        dbt, connection, SCHEMA, folder / "target" / name, name,
        make(folder, name, source), {f"{name}_all_logits": True},
    )  # fmt: skip
    yield made
    made.drop()
    made.execute(f"drop schema {name} cascade")


@pytest.mark.parametrize("runs", KINDS, indirect=True)
def test_layers(runs: Gpt2, folder: Path) -> None:
    """Of ragged prompts in one batch, then of one text alone; with all data tests."""
    lengths = [n for n in LENGTHS if runs.network != "lla_dyn" or n < 40]
    check_run(runs, folder / runs.network, prompts(lengths))
    runs.dbt("test", "--select", runs.network, *runs.arguments(), env=runs.environment)
    new_tokens = 10 if runs.network == "lla_dyn" else 32
    alone = prompts([33], seed=1, max_new_tokens=new_tokens)
    check_run(runs, folder / runs.network, alone)


@pytest.mark.long
@pytest.mark.parametrize("runs", ["lla", "qw2", "qw3_slid"], indirect=True)
def test_plain_kernels(runs: Gpt2, folder: Path) -> None:
    rows = prompts([1, 16, 63], max_new_tokens=3)
    check_run(runs, folder / runs.network, rows, kernels="plain")


@pytest.mark.parametrize("runs", ["words"], indirect=True)
def test_all_that_a_text_network_gives(runs: Gpt2, folder: Path) -> None:
    """Scores, choices, embeddings, sessions and interventions, in one run of them."""
    source = folder / runs.network
    rows = prompts([9, 20, 35], max_new_tokens=0, pooling_mode="mean")
    choices = [" and that", "!"]
    [asked] = prompts([12], seed=2, max_new_tokens=1, choices=choices)
    rows.append(asked | {"prompt_id": 11})
    tokenizer = AutoTokenizer.from_pretrained(source)
    network = AutoModelForCausalLM.from_pretrained(source).eval()

    @torch.no_grad()
    def read(ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the next tokens, and what the last norm gives."""
        output = network(torch.tensor([ids]), output_hidden_states=True)
        return output.logits[0].log_softmax(-1), output.hidden_states[-1][0]

    runs.complete(rows, "--threads", "2")
    model = f"{SCHEMA}.{runs.network}"
    scores = {
        row["prompt_id"]: row["logprob"]
        for row in runs.query(f"select * from {model}_scores")
    }
    vectors = {
        row["prompt_id"]: row["x"]
        for row in runs.query(
            f"select prompt_id, embedding::real[] as x from {model}_embeddings"
        )
    }
    for row in rows[:3]:
        ids = row["prompt_token_ids"]
        likely, hidden = read(ids)
        total = sum(float(likely[i, token]) for i, token in enumerate(ids[1:]))
        assert scores[row["prompt_id"]] == pytest.approx(total, rel=1e-4)
        mean = hidden.mean(0).numpy()
        assert abs(vectors[row["prompt_id"]] - mean).max() < 1e-4 * abs(mean).max()
    ids = rows[3]["prompt_token_ids"]
    found = runs.query(
        f"select log_likelihood from {model}_choices "
        "where prompt_id = 11 order by choice_number"
    )
    for text, row in zip(choices, found, strict=True):
        choice = tokenizer(text)["input_ids"]
        likely, _ = read(ids + choice)
        total = sum(
            float(likely[len(ids) - 1 + i, token]) for i, token in enumerate(choice)
        )
        assert row["log_likelihood"] == pytest.approx(total, abs=1e-3)

    # a head of keys less: by its name in TransformerLens
    runs.execute(f"create table {SCHEMA}.changes (layer text, what text, head integer)")
    runs.execute(
        f"insert into {SCHEMA}.changes values ('blocks.1.attn.hook_v', 'zero', 1)"
    )
    runs.complete(
        prompts([15], max_new_tokens=1),
        **{f"{runs.network}_interventions": f"{SCHEMA}.changes"},
    )
    size = network.config.head_dim

    def without_head(_: Any, __: Any, values: torch.Tensor) -> torch.Tensor:
        values = values.clone()
        values[..., size : 2 * size] = 0
        return values

    network.model.layers[1].self_attn.v_proj.register_forward_hook(without_head)
    expected_logits = read(prompts([15])[0]["prompt_token_ids"])[0][-1]
    ours = runs.logits(1)[-1].log_softmax(-1)
    check(
        ours[None].numpy(),
        expected_logits[None].numpy(),
        float(expected_logits.abs().max()),
        "logits without a head",
    )


# --- Files --------------------------------------------------------------------


@pytest.mark.parametrize("runs", ["qw3"], indirect=True)
def test_bfloat16_is_stored_as_float16(
    runs: Gpt2, folder: Path, tmp_path: Path
) -> None:
    """By default, but for a tensor that float16 does not hold; so it says."""
    network = AutoModelForCausalLM.from_pretrained(
        folder / runs.network, dtype=torch.bfloat16
    )
    large = network.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        large[2, 3] = 70144.0
    network.save_pretrained(tmp_path)
    done = run_script("load_checkpoint.py", str(tmp_path), "--name", runs.network)
    assert done.returncode == 0, done.stderr
    assert "weights are stored in float16" in done.stdout
    assert "layers.1.mlp.down_proj.weight is stored in float32" in done.stdout
    assert "70144, and float16 holds 65,504" in done.stdout
    types = runs.query(
        "select table_name as relation, columns.udt_name as type "
        "from information_schema.columns "
        "inner join information_schema.columns as other "
        "using (table_schema, table_name) where table_schema = %s "
        "and columns.column_name = 'weight' and other.column_name = 'chunk'",
        [runs.network],
    )
    kinds = {row["relation"]: row["type"] for row in types}
    assert kinds.pop("layers_1_mlp_down_proj") == "vector"
    assert set(kinds.values()) == {"halfvec"}
    done = run_script(
        *("load_checkpoint.py", str(tmp_path), "--name", runs.network, "--if-changed")
    )
    assert "unchanged" in done.stdout
    done = run_script(
        *("load_checkpoint.py", str(tmp_path), "--name", runs.network),
        *("--dtype", "float16"),
    )
    assert "Load it without --dtype float16" in done.stderr

    with torch.no_grad():
        large[2, 3] = 0.5
    network.save_pretrained(tmp_path)
    load_checkpoint(tmp_path, runs.network)
    exact = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    halve(exact)
    rows = prompts([20, 5])
    completions = runs.complete(rows)
    for row in rows:
        found = completions[row["prompt_id"]]["token_ids"]
        with torch.no_grad():
            ids = torch.tensor([row["prompt_token_ids"] + found[:-1]])
            theirs = exact(ids).logits[0]
        difference = (runs.logits(row["prompt_id"]) - theirs).abs().max()
        assert difference < 5e-3 * theirs.abs().max()


def test_other_spellings(tmp_path: Path) -> None:
    """Transformers 4's rope_scaling, shards, names without `model.`, old buffers."""
    source = save(tmp_path / "new", "llama", seed=3, **rope("llama3"))
    content = json.loads((source / "config.json").read_text("utf-8"))
    given = content.pop("rope_parameters")
    content |= {"rope_theta": given.pop("rope_theta"), "rope_scaling": given}
    given["type"] = given.pop("rope_type")
    new = read_configuration(source)
    (source / "config.json").write_text(json.dumps(content), "utf-8")
    old = read_configuration(source)
    assert old.checked == new.checked
    assert old.content["rope_parameters"] == new.content["rope_parameters"]

    with open_checkpoint(source) as whole:
        names = set(whole.tensors)
        assert len(names) == len(whole.stored) == 3 + 2 * 9
    network = AutoModelForCausalLM.from_pretrained(source)
    shards = tmp_path / "shards"
    network.save_pretrained(shards, max_shard_size="20KB")
    assert len([*shards.glob("*.safetensors")]) > 1
    with open_checkpoint(shards) as parts:
        assert set(parts.tensors) == names
    bare = {
        name.removeprefix("model."): tensor.contiguous()
        for name, tensor in network.state_dict().items()
    }
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file(bare | {buffer: torch.ones(3)}, source / "model.safetensors")
    with open_checkpoint(source) as without_prefix:
        assert set(without_prefix.tensors) == names


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'.*silu and swish are"),
        ("llama", {"head_dim": 5}, "head_dim = 5.*even numbers from 2 on are"),
        ("llama", {"num_key_value_heads": 3}, "as many queries must share each key"),
        ("llama", {"intermediate_size": 18944}, "1 to 16,000 are"),
        (
            "llama",
            {"quantization_config": {"quant_method": "gptq"}},
            "quantization_config = {'quant_method': 'gptq'}.*none is",
        ),
        (
            "llama",
            {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
            "rope_scaling of config.json says rope_type = 'longrope'.*yarn are",
        ),
        (
            "llama",
            {"rope_scaling": {"type": "linear"}},
            "nothing for factor, which the rope type linear needs",
        ),
        (
            "llama",
            {"rope_scaling": {"type": "linear", "factor": "two"}},
            "rope_scaling of config.json says factor = 'two'.*a number from 1 on is",
        ),
        (
            "llama",
            {
                "rope_scaling": {
                    "type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 4.0,
                    "high_freq_factor": 1.0,
                }
            },
            "high_freq_factor = 1.0.*a number above low_freq_factor, 4.0, is",
        ),
        (
            "llama",
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "one object for all layers is",
        ),
        (
            "llama",
            {"partial_rotary_factor": 0.5},
            "partial_rotary_factor = 0.5.*only 1 is",
        ),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types has 1"),
        (
            "qwen2",
            {"layer_types": ["full_attention", "chunked_attention"]},
            "layer_types = 'chunked_attention'.*full_attention and sliding_attention",
        ),
        (
            "qwen2",
            {"layer_types": ["full_attention", "sliding_attention"]},
            "nothing for sliding_window, and layer_types has sliding_attention",
        ),
        ("llama", {"model_type": "mixtral"}, "'mixtral', which is not supported"),
        ("llama", {"hidden_size": None}, "hidden_size = None"),
    ],
)
def test_refusals(
    tmp_path: Path, kind: str, change: dict[str, Any], message: str
) -> None:
    """By key, value and what is supported, before any work."""
    KINDS_OF_CONFIG[kind](**SHAPE).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text("utf-8")) | change
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(CheckpointError, match=message):
        generate_network.describe(tmp_path, "refused")


@pytest.mark.parametrize("runs", ["mis"], indirect=True)
def test_another_window_needs_other_models(runs: Gpt2, tmp_path: Path) -> None:
    """A checkpoint whose layers have the same tables, and no window."""
    kind, options = CASES["mis"]
    source = save(tmp_path, kind, seed=1, **(options | {"sliding_window": None}))
    load_checkpoint(source, runs.network)
    runs.write_prompts(prompts([3]))
    done = runs.run(check=False)
    assert done.returncode != 0
    assert "attention has a sliding window in other blocks" in done.stdout


# --- Commands -----------------------------------------------------------------


@pytest.mark.long
def test_commands_in_a_project_of_its_own(
    dbt: Dbt,
    connection: Connection,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Generate, load, run and check, in a project that has dbt_nn as a package."""
    source = save(tmp_path / "smol", "llama", seed=8, scale=0.5, **rope("yarn"))
    make_reference([str(source)], standalone_mode=False)
    package = copy_bare_project(tmp_path / "package")
    project = tmp_path / "letters"
    (project / "models").mkdir(parents=True)
    (project / "dbt_packages").mkdir()
    (project / "dbt_packages" / "dbt_nn").symlink_to(package)
    (project / "dbt_project.yml").write_text(
        "name: letters\nprofile: dbt_nn\nvars: {smol_prompts: openings}\n"
    )
    (project / "packages.yml").write_text(f"packages: [{{local: {PROJECT}}}]\n")
    (project / "models" / "openings.sql").write_text(
        "select 1 as prompt_id, array[3, 4, 5] as prompt_token_ids"
    )
    monkeypatch.chdir(project)
    monkeypatch.setenv("DBT_TARGET_PATH", str(project / "target"))
    generate_network.main([str(source), "--name", "smol"], standalone_mode=False)
    load_checkpoint(source, "smol")
    try:
        done = dbt(
            *("build", "--project-dir", str(project)),
            env={"DBT_NN_SCHEMA": SCHEMA},
        )
        assert "WARN=0 ERROR=0 SKIP=0" in done.stdout
        done = run_script(
            "check.py", f"smol={source}", env={**os.environ, "DBT_NN_SCHEMA": SCHEMA}
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "smol: 24 layers agree with transformers" in done.stdout
        for arguments, message in (
            (["complete.py", "a", "--network", "smal"], "smal is no network of this"),
            (["look.py", "a", "--network", "smol"], "smol has no models that look"),
            (["look.py", "a", "--network", "smal"], "smal is no network of this"),
            (["draw.py", "--network", "smol"], "smol is no network that draws"),
        ):
            done = run_script(*arguments)
            assert done.returncode == 1
            assert message in done.stderr
            assert "Traceback" not in done.stderr
    finally:
        names = (SCHEMA, f"{SCHEMA}_smol", f"{SCHEMA}_check", f"{SCHEMA}_check_smol")
        for name in (*names, "smol"):
            connection.cursor().execute(f"drop schema if exists {name} cascade")
