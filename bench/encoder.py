"""MiniLM beside sentence-transformers."""

from __future__ import annotations

import gzip
import random
import re
from collections.abc import Iterator
from pathlib import Path

from psycopg2.extras import execute_values
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import BertWordPieceTokenizer
from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizerFast

from bench.cases import Case, Pace, Step
from bench.project import Project
from bench.sizes import Sizes
from dbt_nn.database import PROJECT
from dbt_nn.hub import fetch

PUBLISHED = "sentence-transformers/all-MiniLM-L6-v2"
TOKENS = range(5, 61)  # of a text, special ones apart


def encoder(sizes: Sizes) -> Iterator[Case]:
    """all-MiniLM-L6-v2: vectors of 1,000 texts."""
    yield Case(
        "encoder",
        f"embedding, one of {sizes.texts:,} texts of {TOKENS[0]} to {TOKENS[-1]} "
        "tokens",
        "sentence-transformers",
        embed,
        their_embed,
        pace=Pace(warm=0, least=3, most=4),  # a batch of texts each is before
    )


def embed(project: Project) -> Step:
    """Vectors of all texts, as a run of dbt makes them batch by batch.

    What dbt itself takes is apart: to start, to parse, and to make the models. The
    vectors' index is there, and has each row.
    """
    variables = write_texts(project)
    target = project.run_dbt("minilm", **variables)
    compiled = target / "compiled/dbt_nn/models/minilm/input/minilm_texts.sql"
    encode = compiled.read_text(encoding="utf-8")
    batches = project.value("select count(distinct batch) from {schema}.minilm_texts")
    # a batch of no texts: a step goes on from one to the next
    project.execute(
        "insert into {schema}.minilm_texts (sequence_id, key, chunk, batch) "
        "select 0, 0, 0, 0"
    )
    step = project.step_of("minilm_embeddings")

    def forget() -> None:
        project.execute("truncate {schema}.minilm_embeddings")
        project.execute("update {schema}.minilm_texts set finished_at = null")
        project.execute("set dbt_nn.batch = ''")

    def run() -> None:
        cursor = project.connection.cursor()
        cursor.execute("create temporary table encoded_texts as " + encode)
        cursor.execute("drop table encoded_texts")
        for _ in range(batches):
            step()

    forget()
    step()
    return Step(run, forget, units=project.sizes.texts)


def their_embed(project: Project) -> Step:
    network = SentenceTransformer(str(encoder_folder(project)), device="cpu")
    texts = some_texts(encoder_folder(project), project.sizes.texts)
    network.encode(texts[:100])
    return Step(lambda: network.encode(texts), units=len(texts))


def write_texts(project: Project) -> dict[str, str]:
    """Load the checkpoint and the texts; the vars of dbt that name them."""
    folder = encoder_folder(project)
    texts = some_texts(folder, project.sizes.texts)
    project.execute("drop table if exists {schema}.bench_texts")
    project.execute("create table {schema}.bench_texts (id integer, text text)")
    insert = f"insert into {project.schema}.bench_texts values %s"
    execute_values(project.connection.cursor(), insert, enumerate(texts, 1))
    return {
        "minilm_texts": f"{project.schema}.bench_texts",
        "minilm_checkpoint": project.load(folder, "minilm"),
    }


def some_texts(checkpoint: Path, n: int) -> list[str]:
    """Sentences of Austen's, as long as they come, of the lengths wanted."""
    sentences = austen_sentences()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    ids = tokenizer(
        sentences, add_special_tokens=False, return_attention_mask=False, verbose=False
    )["input_ids"]
    wanted = [
        text
        for text, tokens in zip(sentences, ids, strict=True)
        if len(tokens) in TOKENS
    ]
    return random.Random(0).sample(wanted, n)


def austen_sentences() -> list[str]:
    with gzip.open(PROJECT / "data" / "austen.txt.gz", "rt", encoding="utf-8") as file:
        return list(
            dict.fromkeys(re.split(r"(?<=[.!?])\s+", " ".join(file.read().split())))
        )


def encoder_folder(project: Project) -> Path:
    """The published checkpoint, or one of random weights of the sizes wanted."""
    if not project.sizes.encoder:
        return fetch(PUBLISHED)
    plain, folder = project.folder / "bert", project.folder / "minilm"
    if folder.exists():
        return folder
    plain.mkdir()
    words = BertWordPieceTokenizer()
    words.train_from_iterator(austen_sentences()[:500], vocab_size=500)
    words.save_model(str(plain))
    BertTokenizerFast.from_pretrained(plain).save_pretrained(plain)
    config = BertConfig(vocab_size=words.get_vocab_size(), **project.sizes.encoder)
    BertModel(config).save_pretrained(plain)
    transformer = Transformer(str(plain), max_seq_length=64)
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    modules = [transformer, pooling, Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder))
    return folder
