"""Encoders with <s> and </s>: RoBERTa, XLM-RoBERTa, and a BERT with XLM-R's tokenizer.

That BERT is wired as multilingual-e5-small is. Vectors are compared with those of
sentence-transformers, scores of pairs with those of its CrossEncoder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from psycopg2.extensions import connection as Connection
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from conftest import Dbt
from runs import Encoder, Row, load_checkpoint
from small_encoders import LENGTH, SAMPLE, SIZES, project_of
from unigrams import SPECIALS, hard_texts, save, tokenizer_of

SCHEMA = "test_roberta"
# Numbers of a vector of length 1, and probabilities, in float32.
TOLERANCE = 1e-5
PROMPTS = {"query": "query: ", "passage": "passage: "}
CONFIGS: dict[str, Any] = {
    "rob": RobertaConfig,
    "xlmr": XLMRobertaConfig,
    "e5": BertConfig,
    "rob_pair": RobertaConfig,
    "xlmr_pair": XLMRobertaConfig,
}
VECTORS = [name for name in CONFIGS if not name.endswith("_pair")]
SCORES = [name for name in CONFIGS if name.endswith("_pair")]
OPTIONS = {"chunk_overlap": 3, "max_seq_length": 16, "prompt_name": "passage"}

A, B, C = SAMPLE
TEXTS = ["", " ", "a man", A, B, C, A * 3, "Ｆｕｌｌ　ｗｉｄｔｈ ﬁne", "x" * 150]
TEXTS += ["我忘記了密碼，而郵件裡的連結不能用。" * 3, "नमस्ते दुनिया", "a <mask> b"]
# transformers' RoBERTa takes a <pad> in a text for padding that has no position
TEXTS += [text for text in hard_texts(20, seed=6) if "<pad>" not in text]
# Shorter and longer than the limit: the first cut, the second, both, evenly and not.
PAIRS = [
    *[("a man", "a wife"), ("", ""), ("", A * 3), (A * 3, ""), ("a man", A * 3)],
    *[(A * 3, "a man"), (A * 3, B * 3), (B * 3, A * 2), ("🙂", "中文 it's")],
    *[("a " * n, "b " * (28 - n + more)) for n in (9, 14, 20) for more in (0, 1, 8)],
]


def save_plain(folder: Path, name: str, seed: int) -> Path:
    """A network of two layers with random weights, and its tokenizer."""
    folder.mkdir()
    if name.startswith("rob"):
        trained = ByteLevelBPETokenizer()
        trained.train_from_iterator(
            SAMPLE, vocab_size=400, min_frequency=1, special_tokens=SPECIALS
        )
        trained.save_model(str(folder))
        rows, kind = trained.get_vocab_size(), "RobertaTokenizer"
    else:
        tokenizer = tokenizer_of()
        save(folder, tokenizer)
        rows, kind = tokenizer.get_vocab_size(), "XLMRobertaTokenizer"
    names = dict(zip(("bos", "pad", "eos", "unk", "mask"), SPECIALS, strict=True))
    content: dict[str, Any] = {f"{key}_token": text for key, text in names.items()}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(content | {"tokenizer_class": kind, "model_max_length": LENGTH})
    )
    is_pair = name in SCORES
    more = {"num_labels": 1} if is_pair else {}
    config = CONFIGS[name](vocab_size=rows, pad_token_id=1, **SIZES, **more)
    torch.manual_seed(seed)
    auto = AutoModelForSequenceClassification if is_pair else AutoModel
    network = auto.from_config(config).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, parameter.mean().item(), 0.3)
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(
    tmp_path_factory: pytest.TempPathFactory, connection: Connection
) -> Iterator[dict[str, Path]]:
    """As sentence-transformers saves them, and loaded."""
    made = tmp_path_factory.mktemp("roberta")
    for seed, name in enumerate(CONFIGS):
        plain = save_plain(made / f"{name}-plain", name, seed)
        if name in SCORES:
            CrossEncoder(str(plain)).save_pretrained(str(made / name))
        else:
            transformer = Transformer(str(plain), max_seq_length=LENGTH)
            pooling = Pooling(transformer.get_embedding_dimension(), "mean")
            SentenceTransformer(
                modules=[transformer, pooling, Normalize()], prompts=PROMPTS
            ).save(str(made / name))
        load_checkpoint(made / name, name)
    yield {name: made / name for name in CONFIGS}
    for name in CONFIGS:
        connection.cursor().execute(f"drop schema {name} cascade")


class Encoders(Encoder):
    """All networks, run at once on the same rows."""

    def run_all(self, rows: list[Row], **options: Any) -> None:
        self.write_texts([{"id": n, **row} for n, row in enumerate(rows)])
        names = SCORES if "pair" in rows[0] else VECTORS
        given: dict[str, Any] = {}
        for name in names:
            given[f"{name}_texts"] = f"{SCHEMA}.test_texts"
            given[f"{name}_options"] = options
            if name in SCORES:
                given[f"{name}_text_pair"] = "pair"
        self.run("--select", *names, **given)

    def of(self, name: str, kind: str = "embeddings") -> dict[tuple[int, int], Row]:
        self.network = name
        return self.results(kind)


@pytest.fixture(scope="module")
def encoders(
    dbt: Dbt,
    connection: Connection,
    checkpoints: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Encoders]:
    folder = tmp_path_factory.mktemp("roberta_project")
    project = project_of(folder / "project", checkpoints)
    made = Encoders(dbt, connection, SCHEMA, folder / "target", "rob", project)
    yield made
    for made.network in CONFIGS:
        made.drop()


def test_vectors(encoders: Encoders, checkpoints: dict[str, Path]) -> None:
    """Those of encode(), of cut texts too; a query's is encode_query()'s."""
    encoders.run_all([{"text": text} for text in TEXTS])
    for name in VECTORS:
        reference = SentenceTransformer(str(checkpoints[name]), device="cpu")
        found = encoders.of(name)
        assert found.keys() == {(n, 0) for n in range(len(TEXTS))}
        assert {row["truncated"] for row in found.values()} == {True, False}
        for n, (text, vector) in enumerate(
            zip(TEXTS, reference.encode(TEXTS), strict=True)
        ):
            ids = reference.tokenizer(text, truncation=False).input_ids
            assert found[n, 0]["tokens"] == min(len(ids), LENGTH)
            assert found[n, 0]["truncated"] == (len(ids) > LENGTH)
            difference = abs(np.array(found[n, 0]["vector"]) - vector).max()
            assert difference < TOLERANCE, (name, text)
        for text in ("a man", A * 3):
            (row,) = encoders.query(
                f"select {SCHEMA}.{name}_embed(%s)::real[] as vector", [text]
            )
            vector = reference.encode_query(text)
            assert abs(np.array(row["vector"]) - vector).max() < TOLERANCE, name


@pytest.mark.long
def test_chunks(encoders: Encoders, checkpoints: dict[str, Path]) -> None:
    """Windows over the tokens of a text, each with the prompt's before them."""
    texts = [*TEXTS, A * 5, B * 4]
    encoders.run_all([{"text": text} for text in texts], **OPTIONS)
    for name in VECTORS:
        reference = SentenceTransformer(str(checkpoints[name]), device="cpu")
        found = encoders.of(name)
        expected = {
            (n, chunk): ids
            for n, text in enumerate(texts)
            for chunk, ids in enumerate(chunks_of(reference.tokenizer, text))
        }
        assert found.keys() == expected.keys()
        for place, ids in expected.items():
            assert found[place]["tokens"] == len(ids) <= OPTIONS["max_seq_length"]
            assert not found[place]["truncated"]
            vector = vector_of(reference, ids)
            difference = abs(np.array(found[place]["vector"]) - vector).max()
            assert difference < TOLERANCE, (name, place, texts[place[0]])


def chunks_of(tokenizer: Any, text: str) -> list[list[int]]:
    """A token that is the prompt's and the text's is the text's."""
    prompt = PROMPTS["passage"]
    cls, *before, sep = tokenizer(prompt, truncation=False).input_ids
    _, *body, _ = tokenizer(prompt + text, truncation=False).input_ids
    while body[: len(before)] != before:
        before.pop()
    body = body[len(before) :]
    room = OPTIONS["max_seq_length"] - 2 - len(before)
    starts = [0]
    while starts[-1] + room < len(body):
        starts.append(starts[-1] + room - OPTIONS["chunk_overlap"])
    return [[cls, *before, *body[start : start + room], sep] for start in starts]


@torch.no_grad()
def vector_of(reference: SentenceTransformer, ids: list[int]) -> np.ndarray:
    """Of these tokens: the transformer's activations, their mean, of length 1."""
    network = reference[0].model
    (states,) = network(input_ids=torch.tensor([ids])).last_hidden_state
    mean = states.double().mean(dim=0)
    return (mean / mean.norm()).numpy()


def test_pairs(encoders: Encoders, checkpoints: dict[str, Path]) -> None:
    """Scores of CrossEncoder, longer pairs cut as it cuts them: longest first."""
    encoders.run_all([{"text": text, "pair": pair} for text, pair in PAIRS])
    for name in SCORES:
        network = CrossEncoder(str(checkpoints[name]), device="cpu")
        found = encoders.of(name, "classes")
        expected = network.predict(PAIRS)
        assert expected.std() > 0.01
        for n, (pair, score) in enumerate(zip(PAIRS, expected, strict=True)):
            (ids,) = network.tokenizer([pair], truncation=False).input_ids
            assert found[n, 0]["tokens"] == min(len(ids), LENGTH), (name, pair)
            assert found[n, 0]["truncated"] == (len(ids) > LENGTH)
            assert abs(found[n, 0]["score"] - score) < TOLERANCE, (name, pair)
