"""The loader: what it stores is what torch has; what is wrong is refused by name.

Checkpoints are tiny random GPT-2s, made and saved by `transformers`,
`tokenizers` and `safetensors`; the expected values are theirs.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psycopg2
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg2 import sql
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel

from dbt_nn import binary_copy, database, hub, requirements, writer
from dbt_nn import load as command
from dbt_nn.checkpoint import config as config_files
from dbt_nn.checkpoint import tensors as files_of_tensors
from dbt_nn.checkpoint.files import CheckpointError
from dbt_nn.checkpoint.folder import open_checkpoint
from dbt_nn.checkpoint.tokenizer import MAX_TOKENIZER_BYTES
from dbt_nn.cli import invoke
from dbt_nn.networks import modules

SCRIPTS = database.PROJECT / "scripts"
WIDTH, LAYERS, POSITIONS, VOCABULARY = 24, 2, 16, 320
# so wide that a row of mlp.c_proj needs three chunks
INNER = 4100
END = "<|endoftext|>"

State = dict[str, torch.Tensor]


# --- Checkpoints, made by the reference libraries -----------------------------


def network(**options: Any) -> tuple[dict[str, Any], State]:
    """A random GPT-2: config.json and state_dict with random biases and norms."""
    torch.manual_seed(0)
    config = GPT2Config(
        **{
            "vocab_size": VOCABULARY,
            "n_positions": POSITIONS,
            "n_embd": WIDTH,
            "n_layer": LAYERS,
            "n_head": 3,
            "architectures": ["GPT2LMHeadModel"],
            **options,
        }
    )
    state = GPT2LMHeadModel(config).state_dict()
    return config.to_dict(), {name: torch.randn_like(t) for name, t in state.items()}


def save(
    folder: Path,
    config: dict[str, Any],
    state: State,
    *,
    prefix: bool = True,
    dtype: torch.dtype = torch.float32,
    shards: int = 1,
) -> State:
    """Save as the Hub lays a GPT-2 out; return what was saved, without prefix."""
    folder.mkdir(exist_ok=True)
    if config.get("tie_word_embeddings", True):
        state = {name: t for name, t in state.items() if name != "lm_head.weight"}
    plain = {
        name.removeprefix("transformer."): t.to(dtype).contiguous().clone()
        for name, t in state.items()
    }
    named = {
        name if not prefix or name == "lm_head.weight" else f"transformer.{name}": t
        for name, t in plain.items()
    }
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
        return plain
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(named.items())[shard::shards])
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return plain


@functools.cache
def trained() -> str:
    """Train a byte-level BPE: its tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 8,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END],
        show_progress=False,
    )
    text = "Emma Woodhouse, née Ωmega, 你好 — handsome, clever, and rich; 🦋 flew. "
    tokenizer.train_from_iterator([text * 3, text[::-1] * 2], trainer)
    return tokenizer.to_str()


def bpe(folder: Path) -> Tokenizer:
    """Save a byte-level BPE as tokenizer.json."""
    tokenizer = Tokenizer.from_str(trained())
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


@pytest.fixture(scope="module")
def tiny() -> tuple[dict[str, Any], State]:
    """The network that most tests save."""
    return network()


@pytest.fixture
def folder(tmp_path: Path, tiny: tuple[dict[str, Any], State]) -> Path:
    """A good checkpoint without a tokenizer."""
    save(tmp_path / "good", *tiny)
    return tmp_path / "good"


# --- The database -------------------------------------------------------------


def query(connection: Any, text: str | sql.Composable, *values: Any) -> list[Any]:
    """Rows of a query."""
    with connection.cursor() as cursor:
        cursor.execute(text, values or None)
        return cursor.fetchall()


def execute(connection: Any, text: str | sql.Composable, *values: Any) -> None:
    """Run a statement."""
    with connection.cursor() as cursor:
        cursor.execute(text, values or None)


@pytest.fixture
def name(connection: Any) -> Iterator[str]:
    """A schema name of the test's own, dropped at the end."""
    schema = f"t_{uuid.uuid4().hex[:16]}"
    yield schema
    execute(connection, f"drop schema if exists {schema} cascade")


@pytest.fixture
def load(name: str, capsys: Any) -> Callable[..., SimpleNamespace]:
    """Run the command line on the test's database: exit code and both outputs."""

    def run(source: object, *options: str) -> SimpleNamespace:
        capsys.readouterr()
        code = invoke(command.main, [str(source), "--name", name, *options])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


def snapshot(connection: Any, name: str) -> dict[str, tuple[Any, ...]]:
    """All that a schema holds: identity and a digest of each relation."""
    result = {
        "": query(
            connection,
            "select oid, obj_description(oid) from pg_namespace where nspname = %s",
            name,
        )
    }
    for relation, oid in query(
        connection,
        "select relname, oid from pg_class where relkind in ('r', 'v') "
        "and relnamespace = %s::regnamespace order by relname",
        name,
    ):
        rows = query(
            connection,
            f"select count(*), md5(string_agg(t::text, '|' order by t::text)) "
            f"from {name}.{relation} as t",
        )
        result[relation] = (oid, *rows)
    return result


def f4(values: list[float]) -> np.ndarray:
    """As float32: Postgres prints the shortest text that means the same one."""
    return np.array(values, dtype="f4")


def matrix(connection: Any, name: str, relation: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a linear table: weight [features, inputs], bias [features]."""
    rows = query(
        connection,
        f"select chunk, feature, weight::real[], bias from {name}.{relation} "
        "order by chunk, feature",
    )
    count = 1 + max(row[0] for row in rows)
    features = len(rows) // count
    parts = [rows[i * features : (i + 1) * features] for i in range(count)]
    assert all([row[1] for row in part] == list(range(features)) for part in parts)
    assert all(row[3] == 0 for part in parts[1:] for row in part)
    weight = np.hstack([f4([row[2] for row in part]) for part in parts])
    return weight, f4([row[3] for row in parts[0]])


def check_weights(connection: Any, name: str, state: State) -> None:
    """Compare every table with the state_dict, exactly."""

    def same(relation: str, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        stored, shift = matrix(connection, name, relation)
        np.testing.assert_array_equal(stored, weight.float().numpy(), relation)
        expected = torch.zeros(len(weight)) if bias is None else bias.float()
        np.testing.assert_array_equal(shift, expected.numpy(), relation)

    for tensor, weight in state.items():
        module, kind = tensor.rsplit(".", 1)
        if kind != "weight":
            continue
        relation, bias = module.replace(".", "_"), state.get(f"{module}.bias")
        if module.endswith("c_attn"):
            # as transformers does: Conv1D, then split along the outputs
            for part, w, b in zip(
                "qkv", weight.split(WIDTH, dim=1), bias.split(WIDTH), strict=True
            ):
                same(f"{relation}_{part}", w.T, b)
        elif weight.dim() == 1:
            [(w, b)] = query(
                connection,
                f"select weight::real[], bias::real[] from {name}.{relation}",
            )
            np.testing.assert_array_equal(f4(w), weight.float().numpy(), relation)
            np.testing.assert_array_equal(f4(b), bias.float().numpy(), relation)
        elif module.endswith(("c_proj", "c_fc")):
            same(relation, weight.T, bias)
        else:
            same(relation, weight, bias)


# --- What is stored -----------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("prefix", "shards"), [(True, 1), (False, 1), (True, 3)], ids=str
)
def test_weights(
    connection: Any,
    name: str,
    load: Callable[..., Any],
    tmp_path: Path,
    dtype: torch.dtype,
    prefix: bool,
    shards: int,
) -> None:
    """Every weight of every layout of files is in its table."""
    config, state = network(n_inner=INNER)
    saved = save(
        tmp_path / "c", config, state, prefix=prefix, dtype=dtype, shards=shards
    )
    result = load(tmp_path / "c")
    assert (result.code, result.err) == (0, "")
    check_weights(connection, name, saved)


def test_weights_in_stripes(
    connection: Any,
    name: str,
    load: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tensors larger than a block are read in pieces, with the same result."""
    for module in (modules, binary_copy):
        monkeypatch.setattr(module, "BLOCK_BYTES", 1000)
    config, state = network(n_inner=INNER)
    saved = save(tmp_path / "c", config, state)
    assert load(tmp_path / "c").code == 0
    check_weights(connection, name, saved)


def test_chunks(
    connection: Any, name: str, load: Callable[..., Any], tmp_path: Path
) -> None:
    """Rows come in (chunk, feature) order and none is toasted."""
    config, state = network(n_inner=INNER)
    save(tmp_path / "c", config, state)
    load(tmp_path / "c")
    rows = query(
        connection,
        "select chunk, feature, vector_dims(weight) "
        f"from {name}.h_0_mlp_c_proj order by ctid",
    )
    assert [row[:2] for row in rows] == sorted(row[:2] for row in rows)
    widths = [row[2] for row in rows if row[1] == 0]
    assert len(widths) == math.ceil(INNER / binary_copy.CHUNK)
    assert sum(widths) == INNER
    assert max(widths) - min(widths) < len(widths)
    tables = query(
        connection,
        "select relname, relpersistence, reltoastrelid, relallvisible "
        "from pg_class where relkind = 'r' and relnamespace = %s::regnamespace "
        "and relname not in ('config', 'tensors', 'vocabulary', 'merges')",
        name,
    )
    # per block two norms, four matrices of which one is split in three; ln_f,
    # wte, wpe
    assert len(tables) == LAYERS * (2 + 4 + 2) + 3
    assert {row[1:3] for row in tables} == {("p", 0)}
    for table, _, _, visible in tables:
        # a table may end in pages that have no row yet
        used = query(
            connection, f"select max((ctid::text::point)[0]) from {name}.{table}"
        )
        assert used == [(visible - 1,)], table
    keys = query(
        connection,
        "select pg_get_constraintdef(oid) from pg_constraint where contype = 'p' "
        "and conrelid = %s::regclass",
        f"{name}.wte",
    )
    assert keys == [("PRIMARY KEY (chunk, feature)",)]


@pytest.mark.parametrize("inputs", [1, 768, 1920, 1921, 3072, 4608, 6400, 9216])
def test_chunks_are_equal(inputs: int) -> None:
    """Chunks are as few and as equal as can be, and cover the inputs."""
    found = binary_copy.chunks(inputs)
    sizes = [last - first for first, last in found]
    assert [first for first, _ in found] == [sum(sizes[:i]) for i in range(len(sizes))]
    assert sum(sizes) == inputs
    assert len(sizes) == math.ceil(inputs / 1920)
    assert set(sizes[:-1]) <= {math.ceil(inputs / len(sizes))}


def test_norm_too_wide_for_a_page(
    connection: Any, name: str, load: Callable[..., Any], tmp_path: Path
) -> None:
    """A norm of 1,600, GPT-2 XL's width, is stored whole as well."""
    config, state = network(n_embd=1600, n_head=25, n_layer=1, n_inner=8, vocab_size=9)
    saved = save(tmp_path / "c", config, state)
    assert load(tmp_path / "c").code == 0
    [(w, b)] = query(
        connection, f"select weight::real[], bias::real[] from {name}.h_0_ln_2"
    )
    np.testing.assert_array_equal(f4(w), saved["h.0.ln_2.weight"].numpy())
    np.testing.assert_array_equal(f4(b), saved["h.0.ln_2.bias"].numpy())


def test_config_and_manifest(
    connection: Any, name: str, load: Callable[..., Any], tmp_path: Path, tiny: Any
) -> None:
    """Every key of config.json and every tensor of the file is listed.

    The hyper-parameters are there by transformers' canonical names, too.
    """
    config, state = tiny
    config = {
        **config,
        "hostile\\N\t'; drop table wte; --": {"x": ["é\n\\t", None, 1e-5]},
    }
    saved = save(tmp_path / "c", config, state)
    load(tmp_path / "c")
    stored = dict(query(connection, f"select parameter, value from {name}.config"))
    written = json.loads((tmp_path / "c/config.json").read_text())
    canonical = {key: config[name] for key, name in GPT2Config.attribute_map.items()}
    assert len(canonical) == 4
    assert stored == {**written, **canonical, "intermediate_size": 4 * WIDTH}
    manifest = query(connection, f"select * from {name}.tensors")
    assert {row[0]: row[1] for row in manifest} == {
        tensor: list(t.shape) for tensor, t in saved.items()
    }
    assert {row[2] for row in manifest} == {"F32"}
    relations = {part for row in manifest for part in row[3].split(", ")}
    tables = query(
        connection,
        "select relname from pg_class where relkind = 'r' "
        "and relnamespace = %s::regnamespace",
        name,
    )
    assert relations == {t for (t,) in tables} - {
        "config",
        "tensors",
        "vocabulary",
        "merges",
    }


def test_tied_head_is_a_view(
    connection: Any, name: str, load: Callable[..., Any], folder: Path
) -> None:
    """A tied head shares the embedding's table."""
    load(folder)
    kind = "select relkind from pg_class where oid = %s::regclass"
    assert query(connection, kind, f"{name}.lm_head") == [("v",)]
    rows = f"select chunk, feature, weight::text, bias from {name}.%s order by 1, 2"
    assert query(connection, rows % "lm_head") == query(connection, rows % "wte")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("equal", [True, False])
def test_head_in_the_file(
    connection: Any,
    name: str,
    load: Callable[..., Any],
    tmp_path: Path,
    tied: bool,
    equal: bool,
) -> None:
    """A head in the file gets a table unless it is tied and the same."""
    config, state = network(tie_word_embeddings=False)
    if equal:
        state["lm_head.weight"] = state["transformer.wte.weight"]
    saved = save(tmp_path / "c", config, state)
    config["tie_word_embeddings"] = tied
    (tmp_path / "c/config.json").write_text(json.dumps(config))
    assert load(tmp_path / "c").code == 0
    kind = "select relkind from pg_class where oid = %s::regclass"
    expected = "v" if tied and equal else "r"
    assert query(connection, kind, f"{name}.lm_head") == [(expected,)]
    check_weights(connection, name, saved)


def test_mask_buffers_are_ignored(
    connection: Any, name: str, load: Callable[..., Any], tmp_path: Path, tiny: Any
) -> None:
    """Old checkpoints carry their causal masks, which are no weights."""
    config, state = tiny
    masks: State = {}
    for layer in range(LAYERS):
        block = f"transformer.h.{layer}.attn"
        masks[f"{block}.bias"] = torch.ones(1, 1, POSITIONS, POSITIONS).bool()
        masks[f"{block}.masked_bias"] = torch.tensor(-1e4)
    saved = save(tmp_path / "c", config, state)
    named = {f"transformer.{k}": v for k, v in saved.items()} | masks
    save_file(named, tmp_path / "c/model.safetensors")
    assert load(tmp_path / "c").code == 0
    check_weights(connection, name, saved)


# --- Tokenizers ---------------------------------------------------------------


def stored_tokens(connection: Any, name: str) -> dict[int, tuple[bytes, bool]]:
    """The vocabulary table."""
    return {
        token_id: (bytes(token), special)
        for token_id, token, special in query(
            connection, f"select * from {name}.vocabulary"
        )
    }


def stored_merges(connection: Any, name: str) -> list[Any]:
    """The merges table."""
    return query(connection, f"select * from {name}.merges order by rank")


def check_tokenizer(connection: Any, name: str, tokenizer: Tokenizer) -> None:
    """Compare both tables with the reference tokenizer."""
    tokens = stored_tokens(connection, name)
    ids = tokenizer.get_vocab(with_added_tokens=True)
    assert set(tokens) == set(ids.values())
    # the reference shows bytes that are no characters as U+FFFD, as Python does
    for token_id, (token, _) in tokens.items():
        assert token.decode(errors="replace") == tokenizer.decode(
            [token_id], skip_special_tokens=False
        )
    text = "née 你好 Ωmega 🦋 — 😀 Emma"
    encoded = tokenizer.encode(text).ids
    assert b"".join(tokens[i][0] for i in encoded).decode() == text
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    assert stored_merges(connection, name) == [
        (ids[left], ids[right], rank, ids[left + right])
        for rank, (left, right) in enumerate(merges)
    ]


@pytest.mark.parametrize("kind", ["pairs", "strings", "vocab.json"])
def test_tokenizer(
    connection: Any,
    name: str,
    load: Callable[..., Any],
    folder: Path,
    tmp_path: Path,
    kind: str,
) -> None:
    """The three ways that checkpoints store a BPE give the same tables."""
    tokenizer = bpe(tmp_path / "bpe")
    content = json.loads(tokenizer.to_str())
    if kind == "vocab.json":
        tokenizer.model.save(str(folder))
    else:
        if kind == "strings":
            merges = content["model"]["merges"]
            content["model"]["merges"] = [" ".join(merge) for merge in merges]
        (folder / "tokenizer.json").write_text(json.dumps(content))
    assert load(folder).code == 0
    check_tokenizer(connection, name, tokenizer)
    special = {i for i, (_, s) in stored_tokens(connection, name).items() if s}
    assert special == {tokenizer.token_to_id(END)}


@pytest.mark.parametrize("kind", ["tokenizer.json", "added_tokens.json", "decoder"])
def test_added_tokens(
    connection: Any,
    name: str,
    load: Callable[..., Any],
    folder: Path,
    tmp_path: Path,
    kind: str,
) -> None:
    """Added tokens keep their text, spaces and accents included, and are special."""
    tokenizer = bpe(tmp_path / "bpe")
    plain = tokenizer.get_vocab()
    tokenizer.model.save(str(folder))
    tokenizer.add_special_tokens(["<|né 🦋|>", AddedToken("[PAD]", special=True)])
    added = {t: i for t, i in tokenizer.get_vocab().items() if t not in plain}
    assert len(added) == 2
    if kind == "tokenizer.json":
        tokenizer.save(str(folder / kind))
    elif kind == "added_tokens.json":
        (folder / kind).write_text(json.dumps(added))
    else:
        decoder = {i: {"content": t, "special": True} for t, i in added.items()}
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"added_tokens_decoder": decoder})
        )
    assert load(folder).code == 0
    tokens = stored_tokens(connection, name)
    assert {t: tokens[i] for t, i in added.items()} == {
        t: (t.encode(), True) for t in added
    }
    check_tokenizer(connection, name, tokenizer)


def test_canonical_names_in_a_file(
    connection: Any, name: str, load: Callable[..., Any], tmp_path: Path
) -> None:
    """Either name is read, the canonical one first, and defaults are completed."""
    config, state = network(n_inner=INNER)
    for canonical, own in GPT2Config.attribute_map.items():
        config[canonical] = config.pop(own)
    config["n_head"] = 1
    del config["layer_norm_epsilon"]
    reference = GPT2Config(**config)
    save(tmp_path / "c", config, state)
    assert load(tmp_path / "c").code == 0
    stored = dict(query(connection, f"select parameter, value from {name}.config"))
    assert reference.n_head == stored["n_head"] == stored["num_attention_heads"] == 3
    assert stored["layer_norm_epsilon"] == reference.layer_norm_epsilon
    assert stored["intermediate_size"] == INNER


def test_special_token_by_config(
    connection: Any, name: str, load: Callable[..., Any], tmp_path: Path, tiny: Any
) -> None:
    """Without any list of special tokens, config.json's ids say which they are."""
    config, state = tiny
    tokenizer = bpe(tmp_path / "bpe")
    save(tmp_path / "c", {**config, "eos_token_id": 0}, state)
    tokenizer.model.save(str(tmp_path / "c"))
    vocabulary = json.loads((tmp_path / "c/vocab.json").read_text())
    renamed = {("<end>" if t == END else t): i for t, i in vocabulary.items()}
    assert renamed["<end>"] == 0
    (tmp_path / "c/vocab.json").write_text(json.dumps(renamed))
    assert load(tmp_path / "c").code == 0
    tokens = stored_tokens(connection, name)
    assert [i for i, (_, special) in tokens.items() if special] == [0]


def test_no_tokenizer(
    connection: Any, name: str, load: Callable[..., Any], folder: Path
) -> None:
    """A checkpoint without a tokenizer loads with empty tables."""
    assert "no tokenizer" in load(folder).out
    assert stored_tokens(connection, name) == {}
    assert stored_merges(connection, name) == []


def test_tokenizer_left_out(
    connection: Any, name: str, load: Callable[..., Any], folder: Path
) -> None:
    """--no-tokenizer loads the weights of a checkpoint whose tokenizer is bad."""
    (folder / "vocab.json").write_text("{")
    (folder / "merges.txt").write_text("")
    assert load(folder).code == 1
    assert load(folder, "--no-tokenizer").code == 0
    assert stored_tokens(connection, name) == {}


# --- Errors: the culprit is named, nothing changes ----------------------------


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None deletes one."""
    content = json.loads(path.read_text())
    content |= changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def retensor(folder: Path, **changes: torch.Tensor | None) -> None:
    """Change tensors of a checkpoint; None deletes one."""
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    state |= changes
    save_file(
        {k: v.contiguous() for k, v in state.items() if v is not None},
        folder / "model.safetensors",
    )


def with_value(value: float, *index: int) -> torch.Tensor:
    """An mlp.c_fc weight with one odd value."""
    weight = torch.zeros(WIDTH, 4 * WIDTH)
    weight[index] = value
    return weight


FC = "transformer.h.1.mlp.c_fc.weight"


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "gpt2",')


def repeated_key(folder: Path) -> None:
    (folder / "config.json").write_text('{"n_embd": 1, "n_embd": 2}')


def deep_config(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(
        text[:-1] + ', "deep": ' + "[" * 500 + "]" * 500 + "}"
    )


def deeper_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"a": ' * 20_000 + "1" + "}" * 20_000)


def surrogate_config(folder: Path) -> None:
    edit(folder / "config.json", task="\ud800")


def zero_config(folder: Path) -> None:
    edit(folder / "config.json", task="a\0b")


def huge_number(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text[:-1] + ', "big": 1e999}')


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def truncated_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def two_files(folder: Path) -> None:
    path = folder / "model.safetensors"
    shutil.copy(path, folder / "model-00002-of-00002.safetensors")
    path.rename(folder / "model-00001-of-00002.safetensors")


def sharded(folder: Path) -> dict[str, str]:
    shutil.rmtree(folder)
    save(folder, *network(), shards=2)
    return json.loads((folder / "model.safetensors.index.json").read_text())[
        "weight_map"
    ]


def missing_shard(folder: Path) -> None:
    sharded(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def shard_elsewhere(folder: Path) -> None:
    weight_map = sharded(folder)
    weight_map["transformer.wpe.weight"] = "../model.safetensors"
    edit(folder / "model.safetensors.index.json", weight_map=weight_map)


def tensor_twice(folder: Path) -> None:
    sharded(folder)
    first = folder / "model-00001-of-00002.safetensors"
    shutil.copy(first, folder / "model-00002-of-00002.safetensors")


def no_weight_map(folder: Path) -> None:
    sharded(folder)
    edit(folder / "model.safetensors.index.json", weight_map=...)


def missing_tensor(folder: Path) -> None:
    retensor(folder, **{FC: None})


def missing_head(folder: Path) -> None:
    edit(folder / "config.json", tie_word_embeddings=False)


def misshapen(folder: Path) -> None:
    retensor(folder, **{FC: torch.zeros(4 * WIDTH, WIDTH)})


def unexpected(folder: Path) -> None:
    retensor(folder, **{"score.weight'; drop schema public": torch.zeros(2, WIDTH)})


def with_and_without_prefix(folder: Path) -> None:
    retensor(folder, **{"wpe.weight": torch.zeros(POSITIONS, WIDTH)})


def nan(folder: Path) -> None:
    retensor(folder, **{FC: with_value(math.nan, 5, 17)})


def infinity_half(folder: Path) -> None:
    retensor(folder, **{FC: with_value(-math.inf, 23, 95).half()})


def infinity_brain(folder: Path) -> None:
    retensor(folder, **{FC: with_value(math.inf, 0, 1).bfloat16()})


def double(folder: Path) -> None:
    retensor(folder, **{FC: torch.zeros(WIDTH, 4 * WIDTH, dtype=torch.float64)})


def more_layers(folder: Path) -> None:
    edit(folder / "config.json", n_layer=2_000_000_000)


def fewer_layers(folder: Path) -> None:
    edit(folder / "config.json", n_layer=1)


def other_vocabulary(folder: Path) -> None:
    edit(folder / "config.json", vocab_size=VOCABULARY + 1)


def with_bpe(folder: Path) -> dict[str, int]:
    bpe(folder.parent / "bpe").model.save(str(folder))
    return json.loads((folder / "vocab.json").read_text())


def token_beyond(folder: Path) -> None:
    with_bpe(folder)
    edit(folder / "vocab.json", **{"zzz": VOCABULARY})


def added_beyond(folder: Path) -> None:
    with_bpe(folder)
    (folder / "added_tokens.json").write_text('{"[PAD]": 50257}')


def same_id(folder: Path) -> None:
    with_bpe(folder)
    edit(folder / "vocab.json", zzz=7)


def no_id(folder: Path) -> None:
    with_bpe(folder)
    edit(folder / "vocab.json", zzz="7")


def lone_merge(folder: Path) -> None:
    with_bpe(folder)
    with (folder / "merges.txt").open("a", encoding="utf-8") as file:
        file.write("e qqq\n")


def odd_merge(folder: Path) -> None:
    with_bpe(folder)
    with (folder / "merges.txt").open("a", encoding="utf-8") as file:
        file.write("e r s\n")


def no_merges(folder: Path) -> None:
    with_bpe(folder)
    (folder / "merges.txt").unlink()


def other_tokenizer(folder: Path) -> None:
    Tokenizer(models.WordPiece()).save(str(folder / "tokenizer.json"))


def other_pieces(folder: Path) -> None:
    tokenizer = bpe(folder)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def prefix_space(folder: Path) -> None:
    with_bpe(folder)
    (folder / "tokenizer_config.json").write_text('{"add_prefix_space": true}')


def option(**changes: Any) -> Callable[[Path], None]:
    """Make an edit of config.json."""

    def change(folder: Path) -> None:
        edit(folder / "config.json", **changes)

    change.__name__ = next(iter(changes))
    return change


ERRORS: list[tuple[Callable[[Path], None], list[str]]] = [
    (no_config, ["config.json is missing"]),
    (broken_config, ["config.json is not valid JSON"]),
    (repeated_key, ["config.json", "'n_embd' occurs twice"]),
    (deep_config, ["config.json is nested"]),
    (deeper_config, ["config.json is not valid JSON"]),
    (surrogate_config, ["config.json", r"\ud800"]),
    (zero_config, ["config.json", r"a\x00b"]),
    (huge_number, ["config.json", "too large"]),
    (only_pickle, ["no safetensors", "pytorch_model.bin", "save_pretrained"]),
    (truncated, ["model.safetensors", "transformer.", "should end at byte"]),
    (truncated_header, ["model.safetensors", "header claims"]),
    (empty, ["model.safetensors", "0 bytes"]),
    (two_files, ["model-00001-of-00002.safetensors", "index.json"]),
    (missing_shard, ["model-00002-of-00002.safetensors", "missing"]),
    (shard_elsewhere, ["transformer.wpe.weight", "../model.safetensors"]),
    (tensor_twice, ["is in two files", "model-00001-of-00002.safetensors"]),
    (no_weight_map, ["model.safetensors.index.json", "weight_map"]),
    (missing_tensor, ["h.1.mlp.c_fc.weight is missing"]),
    (missing_head, ["lm_head.weight is missing"]),
    (misshapen, ["h.1.mlp.c_fc.weight", "shape [96, 24]", "asks for [24, 96]"]),
    (unexpected, ["score.weight'; drop schema public"]),
    (with_and_without_prefix, ["'transformer.wpe.weight'", "'wpe.weight'", "twice"]),
    (nan, ["h.1.mlp.c_fc.weight holds nan at index [5, 17]"]),
    (infinity_half, ["h.1.mlp.c_fc.weight holds -inf at index [23, 95]"]),
    (infinity_brain, ["h.1.mlp.c_fc.weight holds inf at index [0, 1]"]),
    (double, ["h.1.mlp.c_fc.weight has dtype F64"]),
    (more_layers, ["h.2.ln_1.weight is missing"]),
    (fewer_layers, ["'transformer.h.1.attn.c_attn.bias'", "does not have"]),
    (other_vocabulary, ["wte.weight", "[320, 24]", "[321, 24]"]),
    (token_beyond, ["'zzz'", "320 rows", "id 320"]),
    (added_beyond, ["'[PAD]'", "id 50257"]),
    (same_id, ["id 7", "'zzz'"]),
    (no_id, ["'zzz'", "'7'"]),
    (lone_merge, ["'e' with 'qqq'", "lacks"]),
    (odd_merge, ["merges.txt, line", "'e r s'"]),
    (no_merges, ["merges.txt is missing"]),
    (other_tokenizer, ["tokenizer.json", "model.type is 'WordPiece'"]),
    (other_pieces, ["tokenizer.json", "pre_tokenizer.type is 'Whitespace'"]),
    (prefix_space, ["tokenizer_config.json", "add_prefix_space"]),
    (option(model_type="mamba"), ["type 'mamba'", "gpt2"]),
    (option(activation_function="relu"), ["activation_function = 'relu'"]),
    (option(scale_attn_weights=False), ["scale_attn_weights = False"]),
    (
        option(scale_attn_by_inverse_layer_idx=True),
        ["scale_attn_by_inverse_layer_idx = True"],
    ),
    (option(add_cross_attention=True), ["add_cross_attention = True"]),
    (option(quantization_config={"bits": 4}), ["quantization_config"]),
    (option(n_head=5), ["n_embd = 24", "n_head = 5"]),
    (option(n_embd="24"), ["n_embd = '24'"]),
    (option(n_layer=...), ["nothing for n_layer"]),
    (option(n_positions=True), ["n_positions = True"]),
    (option(n_inner=-1), ["n_inner = -1"]),
    (option(layer_norm_epsilon=0), ["layer_norm_epsilon = 0"]),
]


@pytest.mark.parametrize(
    ("spoil", "culprits"), ERRORS, ids=[spoil.__name__ for spoil, _ in ERRORS]
)
def test_errors(
    connection: Any,
    name: str,
    load: Callable[..., Any],
    folder: Path,
    tmp_path: Path,
    spoil: Callable[[Path], None],
    culprits: list[str],
) -> None:
    """A bad checkpoint is refused by name; the one loaded before stays as it was."""
    assert load(folder).code == 0
    before = snapshot(connection, name)
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    spoil(bad)
    result = load(bad)
    assert result.code == 1
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    for culprit in culprits:
        assert culprit in result.err
    assert snapshot(connection, name) == before


def test_tanh_gelu_by_its_other_name(
    load: Callable[..., Any], tmp_path: Path, tiny: Any
) -> None:
    """`gelu_pytorch_tanh` is the same function as `gelu_new`."""
    config, state = tiny
    save(tmp_path / "c", {**config, "activation_function": "gelu_pytorch_tanh"}, state)
    assert load(tmp_path / "c").code == 0


# --- Sources and names --------------------------------------------------------


@pytest.mark.parametrize(
    "source", ["./nowhere", "a/b/c", "/nowhere", "~nobody/x", "a\0b", "x" * 5000, ""]
)
def test_no_folder(source: str) -> None:
    """What is neither a folder nor a name on the Hub is refused."""
    with pytest.raises(CheckpointError, match=r"no folder"):
        hub.fetch(source)


def test_file_instead_of_folder(folder: Path) -> None:
    """A file is refused, with what to give instead."""
    with pytest.raises(CheckpointError, match=r"is a file. Give the folder"):
        hub.fetch(str(folder / "model.safetensors"))


def test_hub_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the Hub and without a cached copy, the error says so."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"org/name-1.*can't be reached"):
        hub.fetch("org/name-1")


def test_hub_patterns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From the Hub come safetensors, JSON and text, never pickles."""
    import huggingface_hub

    asked: dict[str, Any] = {}

    def download(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hub.fetch("org/name", "v1") == tmp_path
    assert (asked["repo"], asked["revision"]) == ("org/name", "v1")
    kept = huggingface_hub.utils.filter_repo_objects(
        [
            "config.json",
            "model-00001-of-00002.safetensors",
            "merges.txt",
            "pytorch_model.bin",
            "rust_model.ot",
            "tf_model.h5",
            "code.py",
            "evil.pkl",
            "onnx/config.json",
        ],
        allow_patterns=asked["allow_patterns"],
        ignore_patterns=asked["ignore_patterns"],
    )
    assert list(kept) == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "merges.txt",
    ]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("openai-community/gpt2", "gpt2"),
        ("checkpoints/gpt2-twin", "gpt2_twin"),
        ("checkpoints/gpt2-twin/", "gpt2_twin"),
        ("org/My.Tuned--GPT2", "my_tuned_gpt2"),
    ],
)
def test_name_from_source(source: str, expected: str) -> None:
    """The schema's name follows from the source's last part."""
    assert command.schema_name(source) == expected


@pytest.mark.parametrize(
    "name",
    [
        *["", "Gpt2", "1b", "a-b", 'a"b', "a;drop", "a b", "é", "x" * 51, "gpt2\n"],
        *["public", "pg_catalog", "pg_x", "information_schema", "dbt_nn_loading_1"],
        *["$$", "a'b", "a%s", "{{ target.schema }}", "{% do x %}", "a\\\nb", "a\0b"],
    ],
)
def test_unsafe_names(name: str) -> None:
    """Names that need quoting, or belong to others, are refused."""
    with pytest.raises(CheckpointError, match=re.escape(repr(name)[:20])):
        command.schema_name("x", name)


def test_schema_of_others(
    connection: Any, name: str, load: Callable[..., Any], folder: Path
) -> None:
    """A schema that is no checkpoint is never touched."""
    execute(connection, f"create schema {name}")
    execute(connection, f"create table {name}.wte as select 1 as precious")
    before = snapshot(connection, name)
    result = load(folder)
    assert result.code == 1
    assert f"The schema {name} exists and is not a checkpoint" in result.err
    assert snapshot(connection, name) == before


def test_schema_of_dbt(load: Callable[..., Any], folder: Path) -> None:
    """The schema that dbt builds in is not a checkpoint's."""
    schema = database.settings()["schema"]
    result = load(folder, "--name", schema)
    assert result.code == 1
    assert f"The schema {schema} is the one where dbt builds" in result.err


# --- The server ---------------------------------------------------------------


def test_server_without_pgvector(
    connection: Any,
    name: str,
    load: Callable[..., Any],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that does not know the extension is refused."""
    load(folder)
    before = snapshot(connection, name)
    monkeypatch.setattr(requirements, "EXTENSION", "vector_absent")
    result = load(folder)
    assert result.code == 1
    assert "pgvector is missing" in result.err
    assert "create extension vector_absent" in result.err
    assert snapshot(connection, name) == before


@pytest.mark.parametrize(
    ("minimum", "value", "culprit"),
    [
        ("MIN_PGVECTOR", (99, 1), "99.1 or newer is needed"),
        ("MIN_SERVER", 990_000, "99 or newer is needed"),
    ],
)
def test_server_too_old(
    connection: Any,
    name: str,
    load: Callable[..., Any],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    minimum: str,
    value: Any,
    culprit: str,
) -> None:
    """Old versions are refused with the one that is needed."""
    load(folder)
    before = snapshot(connection, name)
    monkeypatch.setattr(requirements, minimum, value)
    result = load(folder)
    assert result.code == 1
    assert culprit in result.err
    assert snapshot(connection, name) == before


def test_role_without_rights(connection: Any, name: str, folder: Path) -> None:
    """A role that may not create schemas gets told so."""
    role = f"r_{name}"
    execute(connection, f"create role {role}")
    own = database.connect()
    try:
        execute(own, f"set session authorization {role}")
        own.commit()
        with (
            open_checkpoint(folder) as good,
            pytest.raises(
                CheckpointError,
                match=r"may not create schemas: run `grant create on database",
            ),
        ):
            writer.load(own, good, name, source="x")
    finally:
        own.close()
        execute(connection, f"drop role {role}")
    assert (
        query(connection, "select 1 from pg_namespace where nspname = %s", name) == []
    )


def test_own_server(own_server: Any, folder: Path) -> None:
    """The script itself, on a user's own server and by a role without privileges."""
    environment = os.environ | own_server.environment

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, SCRIPTS / "load_checkpoint.py", *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    config, state = network(n_inner=INNER)
    saved = save(folder, config, state)
    for _ in range(2):
        done = run(folder, "--name", "twin")
        assert (done.returncode, done.stderr) == (0, "")
    with contextlib.closing(own_server.connect()) as connection:
        check_weights(connection, "twin", saved)
    assert "twin" in run("--list").stdout
    truncated(folder)
    done = run(folder, "--name", "twin")
    assert done.returncode == 1
    assert "model.safetensors" in done.stderr
    assert "Traceback" not in done.stderr


# --- One transaction ----------------------------------------------------------


def other_weights(folder: Path) -> Path:
    """Copy a checkpoint with another embedding."""
    copy = folder.parent / "other"
    shutil.copytree(folder, copy)
    retensor(copy, **{"transformer.wpe.weight": torch.ones(POSITIONS, WIDTH)})
    return copy


def test_reload(
    connection: Any, name: str, load: Callable[..., Any], folder: Path
) -> None:
    """A load replaces the checkpoint of its name."""
    load(folder)
    before = snapshot(connection, name)
    assert load(other_weights(folder)).code == 0
    after = snapshot(connection, name)
    assert after["wpe"][1:] != before["wpe"][1:]
    assert after["wte"][1:] == before["wte"][1:]
    weight, _ = matrix(connection, name, "wpe")
    assert (weight == 1).all()


def test_if_changed(
    connection: Any, name: str, load: Callable[..., Any], folder: Path
) -> None:
    """--if-changed leaves an equal checkpoint alone and replaces another."""
    load(folder)
    before = snapshot(connection, name)
    assert load(folder, "--if-changed").code == 0
    assert snapshot(connection, name) == before
    assert load(other_weights(folder), "--if-changed").code == 0
    assert snapshot(connection, name) != before


def test_another_format_is_changed(
    connection: Any, name: str, load: Callable[..., Any], folder: Path
) -> None:
    """--if-changed replaces a checkpoint whose tables are of another version."""
    load(folder)
    before = snapshot(connection, name)
    execute(
        connection,
        f"do $$ begin execute format('comment on schema {name} is %L', replace("
        f"obj_description('{name}'::regnamespace), '\"format\"', '\"forme\"')); end $$",
    )
    assert "Loaded" in load(folder, "--if-changed").out
    assert snapshot(connection, name) != before


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_interrupted(
    connection: Any,
    name: str,
    load: Callable[..., Any],
    folder: Path,
    error: type[BaseException],
) -> None:
    """Whatever stops a load halfway, the earlier checkpoint stays."""
    load(folder)
    before = snapshot(connection, name)
    done = 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        if done > 50_000:
            raise error

    own = database.connect()
    with open_checkpoint(other_weights(folder)) as other, pytest.raises(error):
        writer.load(own, other, name, source="x", progress=lambda _: step)
    own.close()
    assert snapshot(connection, name) == before


def test_lost_connection(
    connection: Any, name: str, load: Callable[..., Any], folder: Path
) -> None:
    """A backend that dies halfway is reported; the earlier checkpoint stays."""
    load(folder)
    before = snapshot(connection, name)
    own = database.connect()
    done = 0

    def step(count: int) -> None:
        nonlocal done
        if done == 0:
            execute(connection, "select pg_terminate_backend(%s)", own.info.backend_pid)
            time.sleep(0.2)
        done += count

    with (
        open_checkpoint(other_weights(folder)) as other,
        pytest.raises(
            CheckpointError, match=r"failed, and what was there before is unchanged"
        ),
    ):
        writer.load(own, other, name, source="x", progress=lambda _: step)
    assert snapshot(connection, name) == before


KILLED = """
import os, signal, sys
from pathlib import Path
from dbt_nn import database, writer
from dbt_nn.checkpoint.folder import open_checkpoint

done = 0
def step(count):
    global done
    done += count
    if done > int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

with open_checkpoint(Path(sys.argv[1])) as other:
    own = database.connect(application_name=sys.argv[2])
    writer.load(own, other, sys.argv[2], source="x", progress=lambda _: step)
"""


@pytest.mark.parametrize("after", [0, 40_000, 80_000])
def test_killed(
    connection: Any, name: str, load: Callable[..., Any], folder: Path, after: int
) -> None:
    """A loader that is killed leaves nothing, and the next load works."""
    load(folder)
    before = snapshot(connection, name)
    other = other_weights(folder)
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(other), name, str(after)],
        env=os.environ | {"PYTHONPATH": str(database.PROJECT)},
        check=False,
    )
    assert process.returncode == -signal.SIGKILL
    busy = "select count(*) from pg_stat_activity where application_name = %s"
    deadline = time.monotonic() + 30
    while query(connection, busy, name) != [(0,)] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert snapshot(connection, name) == before
    assert load(other).code == 0
    assert snapshot(connection, name) != before


def test_reader_sees_one_or_the_other(
    connection: Any, name: str, load: Callable[..., Any], folder: Path
) -> None:
    """While loads replace it, a reader always finds a whole checkpoint."""
    load(folder)
    other = other_weights(folder)
    stop = threading.Event()
    seen: list[Any] = []

    def read() -> None:
        reader = database.connect()
        reader.autocommit = True
        while not stop.is_set():
            try:
                seen.append(
                    query(
                        reader,
                        f"select count(*), min(weight::text) from {name}.wpe",
                    )[0]
                )
            except psycopg2.errors.UndefinedTable as error:
                seen.append(error)
        reader.close()

    expected = {
        query(connection, f"select count(*), min(weight::text) from {name}.wpe")[0]
    }
    thread = threading.Thread(target=read)
    thread.start()
    try:
        for source in (other, folder, other, folder, other):
            assert load(source).code == 0
    finally:
        stop.set()
        thread.join()
    expected |= {
        query(connection, f"select count(*), min(weight::text) from {name}.wpe")[0]
    }
    assert len(expected) == 2
    assert set(seen) <= expected


def test_two_loads_at_once(connection: Any, name: str, folder: Path) -> None:
    """Two loads of one name wait for each other; the result is one of them."""
    errors: list[BaseException] = []

    def run(source: Path) -> None:
        try:
            own = database.connect()
            with open_checkpoint(source) as opened:
                writer.load(own, opened, name, source=source.name)
            own.close()
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=run, args=[source])
        for source in (folder, other_weights(folder), folder)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(snapshot(connection, name)) == 1 + LAYERS * 8 + 4 + 4


def test_in_use(
    connection: Any,
    name: str,
    load: Callable[..., Any],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A checkpoint that a long transaction reads is not replaced, nor is it hurt."""
    load(folder)
    before = snapshot(connection, name)
    monkeypatch.setattr(writer, "LOCK_PATIENCE_S", 0.1)
    reader = database.connect()
    query(reader, f"select count(*) from {name}.ln_f")
    result = load(folder)
    assert result.code == 1
    assert f"The checkpoint {name} has been in use" in result.err
    assert query(reader, f"select count(*) from {name}.wte") == [(VOCABULARY,)]
    reader.close()
    assert snapshot(connection, name) == before
    assert load(folder).code == 0


def test_in_use_by_run(
    connection: Any,
    name: str,
    load: Callable[..., Any],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run's session keeps its checkpoint between its transactions too."""
    load(folder)
    monkeypatch.setattr(writer, "LOCK_PATIENCE_S", 0.1)
    reader = database.connect(autocommit=True)
    execute(
        reader,
        "select pg_advisory_lock_shared(hashtext('dbt_nn.checkpoint'), hashtext(%s))",
        name,
    )
    result = load(folder)
    assert result.code == 1
    assert f"The checkpoint {name} has been in use" in result.err
    reader.close()
    assert load(folder).code == 0


def test_dependents(
    connection: Any, name: str, load: Callable[..., Any], folder: Path
) -> None:
    """What others built on a checkpoint, or put into it, is not lost in silence."""
    load(folder)
    view = f"v_{name}"
    execute(connection, f"create view public.{view} as select * from {name}.wte")
    try:
        before = snapshot(connection, name)
        result = load(folder)
        assert result.code == 1
        assert f"{view} depends" in result.err
        assert snapshot(connection, name) == before
        assert load(folder, "--drop-dependents").code == 0
        found = "select 1 from pg_views where viewname = %s"
        assert query(connection, found, view) == []
    finally:
        execute(connection, f"drop view if exists public.{view}")
    execute(connection, f"create table {name}.notes as select 1 as precious")
    result = load(folder)
    assert result.code == 1
    assert f"{name}.notes" in result.err
    assert query(connection, f"select precious from {name}.notes") == [(1,)]


def test_two_checkpoints_side_by_side(
    connection: Any, name: str, load: Callable[..., Any], folder: Path
) -> None:
    """Another name is another checkpoint; both are listed."""
    load(folder)
    before = snapshot(connection, name)
    second = f"{name}_b"
    try:
        own = database.connect()
        with open_checkpoint(other_weights(folder)) as other:
            writer.load(own, other, second, source="org/other", revision="v1")
            parameters = other.parameters
        own.close()
        assert snapshot(connection, name) == before
        with connection.cursor() as cursor:
            found = writer.loaded_checkpoints(cursor)
        assert found[name]["source"] == str(folder)
        assert found[second]["source"] == "org/other"
        assert found[second]["revision"] == "v1"
        model = GPT2LMHeadModel(GPT2Config(**network()[0]))
        assert parameters == model.num_parameters()
        assert found[second]["parameters"] == parameters
        assert found[second]["family"] == "gpt2"
    finally:
        execute(connection, f"drop schema if exists {second} cascade")


def test_list(
    connection: Any, name: str, load: Callable[..., Any], folder: Path, capsys: Any
) -> None:
    """--list shows name, family, parameters and source."""
    load(folder)
    assert invoke(command.main, ["--list"]) == 0
    parameters = GPT2LMHeadModel(GPT2Config(**network()[0])).num_parameters()
    [line] = [x for x in capsys.readouterr().out.splitlines() if name in x]
    assert line.split() == [name, "gpt2", f"{parameters:,}", str(folder)]


# --- Hostile safetensors ------------------------------------------------------


def header_of(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with the given header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: Any, *offsets: Any, dtype: Any = "F32") -> dict[str, Any]:
    """A tensor's description."""
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


HOSTILE = {
    "length": header_of(b"{}", length=2**63),
    "length beyond": header_of(b"{}", length=3),
    "length limit": header_of(b" " * (files_of_tensors.MAX_HEADER_BYTES + 1)),
    "not json": header_of(b"{nope}"),
    "not utf-8": header_of(b'{"\xff": 1}'),
    "list": header_of([]),
    "deep": header_of(b"[" * 100_000),
    "repeated": header_of(b'{"a": 1, "a": 2}'),
    "no entry": header_of({"a": 1}),
    "metadata": header_of({"__metadata__": 1}),
    "dtype": header_of({"a": entry([1], 0, 4, dtype="F128")}, bytes(4)),
    "dtype kind": header_of({"a": entry([1], 0, 4, dtype=["F32"])}, bytes(4)),
    "negative": header_of({"a": entry([-1], 0, 4)}, bytes(4)),
    "fraction": header_of({"a": entry([1.0], 0, 4)}, bytes(4)),
    "boolean": header_of({"a": entry([True], 0, 4)}, bytes(4)),
    "huge shape": header_of({"a": entry([2**62, 2**62], 0, 4)}, bytes(4)),
    "huge number": header_of({"a": entry([10**400], 0, 4)}, bytes(4)),
    "many dimensions": header_of({"a": entry([1] * 1_000, 0, 4)}, bytes(4)),
    "backwards": header_of({"a": entry([1], 4, 0)}, bytes(4)),
    "three offsets": header_of({"a": entry([1], 0, 4, 8)}, bytes(8)),
    "wrong size": header_of({"a": entry([2], 0, 4)}, bytes(4)),
    "beyond": header_of({"a": entry([2], 0, 8)}, bytes(4)),
    "overlap": header_of({"a": entry([2], 0, 8), "b": entry([1], 4, 8)}, bytes(8)),
    "gap": header_of({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)),
    "trailing": header_of({"a": entry([1], 0, 4)}, bytes(8)),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_header(tmp_path: Path, content: bytes) -> None:
    """Headers that lie are refused, by the file's name, at once."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    started = time.monotonic()
    with (
        path.open("rb") as file,
        pytest.raises(CheckpointError, match=r"model\.safetensors"),
    ):
        files_of_tensors.read_header(path, file)
    assert time.monotonic() - started < 2


# Bytes that reading a hostile checkpoint may add to a process.
MEMORY = 3 << 29
TEBIBYTE = 1 << 40
LIMITED = """
import resource, sys, time
from pathlib import Path
from dbt_nn.cli import invoke
from dbt_nn import load as command

pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for folder in sys.argv[3:]:
    started = time.monotonic()
    code = invoke(command.main, [folder, "--name", sys.argv[2]])
    print(code, Path(folder).name, time.monotonic() - started, sep="\\t")
"""


def filled(start: bytes, item: bytes, end: bytes, size: int) -> bytes:
    """JSON of about `size` bytes that takes far more once it is parsed."""
    return start + item * ((size - len(start) - len(end)) // len(item)) + end


@pytest.mark.skipif(sys.platform != "linux", reason="macOS ignores RLIMIT_AS")
def test_hostile_files_in_little_memory(
    connection: Any, name: str, server: Any, folder: Path, tmp_path: Path
) -> None:
    """Each is refused in one line, in bounded time and memory."""
    limit = files_of_tensors.MAX_HEADER_BYTES
    keys = ",".join(f'"{n}":{{}}' for n in range(limit // 14)).encode()
    tensor = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    tensors = b",".join(b'"%d":%b' % (n, tensor) for n in range(limit // 64))
    headers = {
        **HOSTILE,
        "lists": header_of(filled(b'{"a":[[]', b",[]", b"]}", limit)),
        "numbers": header_of(filled(b'{"a":[999', b",999", b"]}", limit)),
        "keys": header_of(b"{" + keys + b"}"),
        "tensors": header_of(b"{" + tensors + b"}"),
        "long": header_of(b"{}", length=TEBIBYTE),
        "large": header_of({FC: entry([TEBIBYTE // 4], 0, TEBIBYTE)}),
    }
    folders = []
    for label, content in headers.items():
        made = tmp_path / label
        shutil.copytree(folder, made)
        path = made / "model.safetensors"
        path.write_bytes(content)
        if label in ("long", "large"):  # and takes no room on the disk
            os.truncate(path, len(content) + TEBIBYTE)
        folders.append(made)
    for file, size in {
        "config.json": config_files.MAX_CONFIG_BYTES,
        "model.safetensors.index.json": limit,
        "tokenizer.json": MAX_TOKENIZER_BYTES,
        "vocab.json": MAX_TOKENIZER_BYTES,
    }.items():
        made = tmp_path / file.removesuffix(".json")
        shutil.copytree(folder, made)
        if file.startswith("model."):
            (made / "model.safetensors").unlink()
        if file.startswith("vocab."):
            (made / "merges.txt").touch()
        (made / file).write_bytes(filled(b'{"a":[[]', b",[]", b"]}", size))
        folders.append(made)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(MEMORY), name, *map(str, folders)],
        env=os.environ | {"PYTHONPATH": str(database.PROJECT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = [line.split("\t") for line in done.stdout.splitlines()]
    assert [result[:2] for result in results] == [["1", made.name] for made in folders]
    errors = done.stderr.splitlines()
    assert len(errors) == len(folders)
    assert all(line.startswith("error: ") and len(line) < 1000 for line in errors)
    assert max(float(seconds) for _, _, seconds in results) < 30, results


HOSTILE_TEXTS = [
    "it's \"quoted\" ''twice''",
    "\\\n\\' \\x41 E'\\n'",
    "$$ $body$ $forward$ $1",
    "%s %(name)s %% %d",
    "{{ 1 / 0 }} {% do x %} {# note #} {{",
    "'; drop schema public cascade; --",
    "\r\n\t\x1b[2J\u202e",
]


@pytest.mark.parametrize("text", [*HOSTILE_TEXTS, "a\0b"])
def test_hostile_tensor_name(
    connection: Any, name: str, load: Callable[..., Any], folder: Path, text: str
) -> None:
    """It is shown as Python writes it, on one line."""
    retensor(folder, **{text: torch.zeros(2)})
    result = load(folder)
    assert result.code == 1
    assert repr(text) in result.err
    assert result.err.count("\n") == 1
    assert not query(connection, "select 1 from pg_namespace where nspname = %s", name)


def test_hostile_values_and_file_names(
    connection: Any,
    name: str,
    load: Callable[..., Any],
    folder: Path,
    tmp_path: Path,
    capsys: Any,
) -> None:
    """Texts of config.json, and the names of folder and file, are kept as they are."""
    edit(folder / "config.json", texts=HOSTILE_TEXTS)
    (folder / "model.safetensors").rename(folder / "a'b\"$$ {{ x }} %s.safetensors")
    for text in HOSTILE_TEXTS:
        source = tmp_path / text.replace("/", "|")
        folder.rename(source)
        folder = source
        assert load(folder).code == 0
        [(comment,)] = query(
            connection,
            "select obj_description(oid) from pg_namespace where nspname = %s",
            name,
        )
        assert json.loads(comment.partition(": ")[2])["source"] == str(source)
        assert invoke(command.main, ["--list"]) == 0
        listed = capsys.readouterr().out.splitlines()
        assert len([line for line in listed if name in line]) == 1
        assert all(line.isprintable() for line in listed)
    [(texts,)] = query(
        connection, f"select value from {name}.config where parameter = 'texts'"
    )
    assert texts == HOSTILE_TEXTS


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "a"])
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "BOOL"]),
        "shape": st.lists(st.integers(0, 4), max_size=3),
        "data_offsets": st.lists(st.integers(0, 64), min_size=2, max_size=2),
    }
)


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    header=st.dictionaries(st.text(max_size=5), entries | json_values, max_size=4),
    data=st.binary(max_size=64),
    cut=st.integers(0, 40),
)
def test_fuzzed_header(
    tmp_path: Path, header: dict[str, Any], data: bytes, cut: int
) -> None:
    """Any header is read as the safetensors library reads it, or refused."""
    from safetensors import SafetensorError, safe_open

    path = tmp_path / "fuzz.safetensors"
    content = header_of(header, data)
    path.write_bytes(content[: len(content) - cut])
    try:
        with path.open("rb") as file:
            found = files_of_tensors.read_header(path, file)
    except CheckpointError:
        return
    try:
        with safe_open(path, framework="numpy") as reference:
            assert set(found) == set(reference.keys())
            for tensor in found.values():
                shape = reference.get_slice(tensor.name).get_shape()
                assert list(tensor.shape) == shape
    except SafetensorError as error:
        pytest.fail(f"accepted what the library refuses: {error}")


def test_cut_short_while_reading(folder: Path) -> None:
    """A file that shrinks after its header was read is an error, not a crash."""
    path = folder / "model.safetensors"
    with path.open("rb", buffering=0) as file:
        tensors = files_of_tensors.read_header(path, file)
        last = max(tensors.values(), key=lambda tensor: tensor.start)
        os.truncate(path, last.start)
        with pytest.raises(CheckpointError, match=re.escape(last.name)):
            last.read(0, last.size)


# --- Hostile configurations and tokenizers -------------------------------------

FUZZ = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
CONFIG_KEYS = sorted(network()[0])


@FUZZ
@given(
    changes=st.dictionaries(
        st.sampled_from(CONFIG_KEYS), json_values, min_size=1, max_size=3
    )
)
def test_fuzzed_config(folder: Path, changes: dict[str, Any]) -> None:
    """A config.json of any values is opened or refused, nothing else."""
    good = (folder / "config.json").read_text()
    try:
        edit(folder / "config.json", **changes)
        with contextlib.suppress(CheckpointError), open_checkpoint(folder) as opened:
            assert json.dumps(opened.config)
    finally:
        (folder / "config.json").write_text(good)


PARTS = [
    [],
    ["model"],
    ["model", "vocab"],
    ["model", "merges"],
    ["pre_tokenizer"],
    ["post_processor"],
    ["added_tokens"],
    ["added_tokens", 0],
]


@FUZZ
@given(
    part=st.sampled_from(PARTS),
    key=st.sampled_from(
        ["type", "vocab", "merges", "id", "content", "single", "dropout", "e", 0]
    ),
    value=json_values,
)
def test_fuzzed_tokenizer(folder: Path, part: list[Any], key: Any, value: Any) -> None:
    """A tokenizer.json with any value anywhere is opened or refused."""
    spoilt = json.loads(trained())
    spoilt["post_processor"] = {}
    place = spoilt
    for step in part:
        place = place[step]
    if isinstance(place, list):
        place.insert(0, value)
    else:
        place[str(key)] = value
    (folder / "tokenizer.json").write_text(json.dumps(spoilt))
    with contextlib.suppress(CheckpointError), open_checkpoint(folder) as opened:
        assert all(
            0 <= token_id < VOCABULARY and isinstance(token, bytes)
            for token_id, token, _ in opened.tokenizer.vocabulary
        )
