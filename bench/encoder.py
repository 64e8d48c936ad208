"""The part of scripts/bench.py that times MiniLM beside sentence-transformers."""

from __future__ import annotations

import gzip
import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from psycopg2 import sql
from psycopg2.extras import execute_values
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertModel, BertTokenizerFast

from bench.common import SCHEMA, Bench, Connection, Row, in_turn, load, say, timed
from dbt_nn.database import PROJECT, connect
from dbt_nn.hub import fetch

NETWORK = "minilm"
CHECKPOINT = f"{SCHEMA}_checkpoint_minilm"
SECOND = f"{SCHEMA}_second"  # the other session's network
PUBLISHED = "sentence-transformers/all-MiniLM-L6-v2"
TOKENS = range(5, 61)  # of a text, special ones apart


def encoder(bench: Bench) -> Iterator[Row]:
    """Texts to vectors: one session, and two at once."""
    say(f"encoder: {bench.sizes.texts:,} texts")
    folder = encoder_folder(bench)
    load(folder, CHECKPOINT)
    network = SentenceTransformer(str(folder), device="cpu")
    texts = some_texts(network, bench.sizes.texts)
    write_texts(bench.connection, texts)
    embedding = prepare(bench, bench.connection, SCHEMA)
    network.encode(texts[:100])
    times = in_turn(
        embedding.run,
        lambda: network.encode(texts),
        bench.sizes.repetitions,
        before=embedding.forget,
    )
    of_a_text = times | {name: times[name] / len(texts) for name in ("ours", "theirs")}
    what = f"embedding, a text of {TOKENS[0]} to {TOKENS[-1]} tokens"
    yield timed(what, "sentence-transformers", 8, of_a_text)
    with closing(connect(autocommit=True)) as connection:
        second = prepare(bench, connection, SECOND)
        yield from sessions(bench, embedding, second)


def sessions(bench: Bench, first: Embedding, second: Embedding) -> Iterator[Row]:
    """Rows a second of two sessions, each with a network and all texts of its own.

    As the server is configured a session has parallel workers, so that one may use
    several cores. Without them it has one core, and two sessions have two.
    """

    def both() -> None:
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(first.run), pool.submit(second.run)]:
                done.result()

    def forget() -> None:
        first.forget()
        second.forget()

    setting = "max_parallel_workers_per_gather"
    for kind, change in (
        ("two sessions", f"reset {setting}"),
        ("two sessions without parallel workers", f"set {setting} = 0"),
    ):
        say(f"encoder: {kind}")
        for embedding in (first, second):
            embedding.connection.cursor().execute(change)
        times = in_turn(both, first.run, 1, before=forget)
        n = bench.sizes.texts
        yield Row(
            f"embedding, {kind}",
            "one session, here",
            "texts/s",
            2 * n / times["ours"],
            n / times["theirs"],
            2 / times["ratio"],
            1.7,
            at_least=True,
        )


class Embedding:
    """A session that embeds all texts of a schema, as a run of dbt lets it.

    What dbt itself takes is apart: to start, to parse, and to make the models. The
    vectors' index is there, and has each row.

    Attributes:
        connection: of autocommit.
        schema: of the network.
        encode: the SELECT that makes token ids of the texts.

    """

    def __init__(self, connection: Connection, schema: str, encode: str) -> None:
        """Make a batch of no texts: a step goes on from one to the next."""
        self.connection, self.schema, self.encode = connection, schema, encode
        self.execute(
            "insert into {texts} (sequence_id, key, chunk, batch) select 0, 0, 0, 0"
        )
        with connection.cursor() as cursor:
            cursor.execute(self.render("select count(distinct batch) from {texts}"))
            self.batches = cursor.fetchone()[0] - 1

    def render(self, statement: str) -> sql.Composed:
        names = ("texts", "embeddings", "embeddings_step")
        return sql.SQL(statement).format(
            **{name: sql.Identifier(self.schema, f"{NETWORK}_{name}") for name in names}
        )

    def execute(self, statement: str) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(self.render(statement))

    def forget(self) -> None:
        """Forget all vectors."""
        self.execute("truncate {embeddings}")
        self.execute("update {texts} set finished_at = null")

    def run(self) -> None:
        """Make tokens of the texts, and vectors of these, batch by batch."""
        with self.connection.cursor() as cursor:
            cursor.execute("create temporary table encoded_texts as " + self.encode)
            cursor.execute("drop table encoded_texts")
        for _ in range(self.batches):
            self.step()

    def step(self) -> None:
        """Embed the next batch."""
        self.execute("select {embeddings_step}()")


def prepare(bench: Bench, connection: Connection, schema: str) -> Embedding:
    """Let dbt make the network in a schema; its session has planned its statements."""
    target = bench.run_dbt(
        NETWORK,
        schema=schema,
        **{f"{NETWORK}_texts": f"{SCHEMA}.bench_texts"},
        **{f"{NETWORK}_checkpoint": CHECKPOINT},
    )
    compiled = target / "compiled/dbt_nn/models" / NETWORK / "input"
    encode = (compiled / f"{NETWORK}_texts.sql").read_text(encoding="utf-8")
    embedding = Embedding(connection, schema, encode)
    embedding.forget()
    embedding.step()
    return embedding


def write_texts(connection: Connection, texts: list[str]) -> None:
    """Make the table that both networks read."""
    with connection.cursor() as cursor:
        cursor.execute(f"create schema if not exists {SCHEMA}")
        cursor.execute(f"create table {SCHEMA}.bench_texts (id integer, text text)")
        insert = f"insert into {SCHEMA}.bench_texts values %s"
        execute_values(cursor, insert, enumerate(texts, 1))


def some_texts(network: SentenceTransformer, n: int) -> list[str]:
    """Sentences of Austen's, as long as they come, of the lengths wanted."""
    sentences = austen_sentences()
    ids = network.tokenizer(
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


def encoder_folder(bench: Bench) -> Path:
    """The published checkpoint, or one of random weights of the sizes wanted."""
    if not bench.sizes.encoder:
        return fetch(PUBLISHED)
    plain, folder = bench.folder / "bert", bench.folder / NETWORK
    plain.mkdir()
    words = BertWordPieceTokenizer()
    words.train_from_iterator(austen_sentences()[:500], vocab_size=500)
    words.save_model(str(plain))
    BertTokenizerFast.from_pretrained(plain).save_pretrained(plain)
    config = BertConfig(vocab_size=words.get_vocab_size(), **bench.sizes.encoder)
    BertModel(config).save_pretrained(plain)
    transformer = Transformer(str(plain), max_seq_length=64)
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    modules = [transformer, pooling, Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder))
    return folder
