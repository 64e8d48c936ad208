"""Every layer of random encoders of odd shapes against transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from psycopg2.extensions import connection as Connection
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    RobertaConfig,
)

from conftest import Dbt
from dbt_nn import generate as generate_network
from dbt_nn.networks.graph import Network
from runs import Encoder, copy_bare_project, load_checkpoint
from training.make_reference import activations, watch

SCHEMA = "test_encoders"
# Of a layer's largest value: sums in float32, passed on from layer to layer.
TOLERANCE = 1e-5
TEXTS = [
    "It is a truth universally acknowledged",
    "",
    "My dear Mr. Bennet, said his lady to him one day, have you heard that "
    "Netherfield Park is let at last? " * 3,
    "Grüße aus Köln",
    "a b c d e f g",
]
PAIRS = ["a single man", "in want of a wife", "", "no", "x" * 120]

# three layers, five heads, an intermediate size that is a multiple of nothing
BERT = {
    "num_hidden_layers": 3, "num_attention_heads": 5, "hidden_size": 35,
    "intermediate_size": 83, "max_position_embeddings": 60, "initializer_range": 0.3,
}  # fmt: skip
DISTILBERT = {
    "n_layers": 3, "n_heads": 5, "dim": 35, "hidden_dim": 83,
    "max_position_embeddings": 60, "initializer_range": 0.3,
}  # fmt: skip
LABELS = {0: "no", 1: "yes", 2: "perhaps"}
NETWORKS: dict[str, Any] = {
    "enc_bert": (BertConfig, BERT),
    "enc_relu": (BertConfig, BERT | {"hidden_act": "relu", "type_vocab_size": 1}),
    "distilbert": (DistilBertConfig, DISTILBERT),
    "enc_rob": (RobertaConfig, BERT | {"hidden_act": "gelu_new"}),
    "bert_pairs": (BertConfig, BERT | {"id2label": LABELS}),
    "distil_class": (DistilBertConfig, DISTILBERT | {"id2label": LABELS}),
    "rob_score": (RobertaConfig, BERT | {"id2label": {0: "score"}}),
}
# what differs in them is in the others or in test_classes.py, too
ALIKE = ("enc_relu", "distil_class", "rob_score")
CLASSIFIERS = {name for name, (_, options) in NETWORKS.items() if "id2label" in options}


def save_tokenizer(folder: Path, is_bpe: bool) -> int:
    """Train one on the texts; its size."""
    if is_bpe:
        tokenizer = ByteLevelBPETokenizer()
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    else:
        tokenizer = BertWordPieceTokenizer()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        [*TEXTS, *PAIRS], vocab_size=300, min_frequency=1, special_tokens=special
    )
    tokenizer.save_model(str(folder))
    return tokenizer.get_vocab_size()


def save(folder: Path, name: str, seed: int) -> None:
    """A checkpoint of random weights."""
    kind, options = NETWORKS[name]
    folder.mkdir()
    is_bpe = kind is RobertaConfig
    more = {"pad_token_id": 1} if is_bpe else {}
    config = kind(vocab_size=save_tokenizer(folder, is_bpe), **options, **more)
    if is_bpe:
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        (folder / "tokenizer_config.json").write_text(
            json.dumps(
                names | {"pad_token": "<pad>", "tokenizer_class": "RobertaTokenizer"}
            )
        )
    torch.manual_seed(seed)
    auto = AutoModelForSequenceClassification if name in CLASSIFIERS else AutoModel
    network = auto.from_config(config).eval()
    for parameter in network.parameters():
        # biases and norms are zeros and ones else
        torch.nn.init.normal_(parameter, parameter.mean().item(), 0.3)
    network.save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders")


@pytest.fixture(scope="module")
def project(connection: Connection, folder: Path) -> Iterator[Path]:
    """The project with these networks alone, their checkpoints loaded."""
    project = copy_bare_project(folder / "project")
    for seed, name in enumerate(NETWORKS):
        save(folder / name, name, seed)
        load_checkpoint(folder / name, name)
        files = generate_network.generate(folder / name, name)
        generate_network.write(project / "models" / name, files)
    yield project
    for name in NETWORKS:
        connection.cursor().execute(f"drop schema {name} cascade")


@torch.no_grad()
def expected(
    folder: Path, name: str, tokens: dict[int, tuple[list[int], list[int]]]
) -> dict[str, dict[int, np.ndarray]]:
    """What transformers makes of each text by itself, in float64: layer -> text."""
    described: Network = generate_network.describe(folder / name, name)
    auto = AutoModelForSequenceClassification if name in CLASSIFIERS else AutoModel
    network = auto.from_pretrained(
        folder / name, dtype=torch.float64, attn_implementation="eager"
    ).eval()
    seen = watch(network)
    layers: dict[str, dict[int, np.ndarray]] = {}
    for sequence, (ids, types) in tokens.items():
        arguments = {"input_ids": torch.tensor([ids])}
        if max(types):
            arguments["token_type_ids"] = torch.tensor([types])
        network(**arguments)
        for layer, (values,) in activations(described, seen).items():
            rows = values if values.ndim == 2 else values[None]
            layers.setdefault(layer, {})[sequence] = rows.numpy()
    return layers


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] if name in ALIKE else [])
        for name in NETWORKS
    ],
)
def test_layers(
    dbt: Dbt, connection: Connection, folder: Path, project: Path, name: str
) -> None:
    variables = {f"{name}_text_pair": "pair"} if name.endswith("_pairs") else {}
    runs = Encoder(dbt, connection, SCHEMA, folder / "target", name, project, variables)
    rows = [
        {"id": n, "text": text, "pair": pair}
        for n, (text, pair) in enumerate(zip(TEXTS, PAIRS, strict=True))
    ]
    runs.write_texts(rows)
    runs.run()
    tokens = runs.tokens()
    assert len(tokens) == len(TEXTS)
    reference = expected(folder, name, tokens)
    assert len(reference) > 25
    for layer, texts in reference.items():
        found = runs.layer(layer)
        largest = max(abs(values).max() for values in texts.values())
        for sequence, values in texts.items():
            assert found[sequence].shape == values.shape, layer
            difference = abs(found[sequence] - values).max() / largest
            assert difference < TOLERANCE, (layer, sequence)
    kind = "classes" if name in CLASSIFIERS else "embeddings"
    assert len(runs.results(kind)) == len(TEXTS)
    runs.dbt(
        *("test", "--select", name), *runs.arguments(), env=runs.environment
    )  # the data tests of every layer
    runs.drop()
