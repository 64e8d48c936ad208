"""WordPiece in SQL, and the loader that reads it, against `tokenizers`."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg2.extensions import connection as Connection
from psycopg2.extras import execute_values
from tokenizers import AddedToken, Tokenizer

from dbt_nn import hub
from dbt_nn.checkpoint.wordpiece import read_word_pieces
from dbt_nn.writer import Writer, check_server
from macros import load_macros
from random_texts import ASCII, EMOJI, NUMBERS, SCRIPTS, SPACES, WORDS
from word_pieces import IN_TEXTS, MARKS, VARIANTS, austen, hard_texts, save, trained

SCHEMA = "word_piece_test"
SCHEMAS: list[str] = []  # of the tokenizers that tests have loaded
MACROS = load_macros(SCHEMA, "tokenizer/*.sql", "network/frontier.sql")


class Loaded:
    """A tokenizer in the database, beside the one of `tokenizers`."""

    def __init__(
        self, connection: Connection, folder: Path, reference: Tokenizer
    ) -> None:
        """Load a folder's files as the loader does, into a schema of their own."""
        self.reference = reference
        self.cursor = connection.cursor()
        self.schema = f"{SCHEMA}_{len(SCHEMAS)}"
        SCHEMAS.append(self.schema)
        self.tokenizer = read_word_pieces(folder, reference.get_vocab_size())
        assert self.tokenizer is not None
        self.cursor.execute(f"""
            begin;
            drop schema if exists {self.schema} cascade;
            create schema {self.schema};
            create table {self.schema}.texts (sequence_id integer, prompt text)
        """)
        writer = Writer(self.cursor, self.schema, check_server(connection), "float32")
        writer.settings("config", "of the tokenizer", self.tokenizer.settings)
        writer.tokenizer(self.tokenizer)
        writer.word_pieces(self.tokenizer)
        self.cursor.execute("commit")

    def select(self, texts: str = "") -> str:
        """The macro, of these texts."""
        tables = (f"{self.schema}.{x}" for x in ("vocabulary", "characters", "config"))
        return str(MACROS.word_piece_encode(texts or f"{self.schema}.texts", *tables))

    def encode(self, texts: list[str | None]) -> list[list[int]]:
        """Token ids of each text, by the macro."""
        self.cursor.execute(f"truncate {self.schema}.texts")
        execute_values(
            self.cursor,
            f"insert into {self.schema}.texts values %s",
            list(enumerate(texts)),
        )
        self.cursor.execute(f"{self.select()} order by sequence_id, position")
        token_ids: list[list[int]] = [[] for _ in texts]
        for sequence_id, position, token_id in self.cursor:
            assert position == len(token_ids[sequence_id])
            token_ids[sequence_id].append(token_id)
        return token_ids

    def check(self, texts: list[str]) -> None:
        """Fail with the first text whose tokens differ, cut to where they do."""
        for text, ours in zip(texts, self.encode(texts), strict=True):
            expected = self.reference.encode(text, add_special_tokens=False).ids
            if ours == expected:
                continue
            at = next(
                i
                for i, pair in enumerate(itertools.zip_longest(ours, expected))
                if len(set(pair)) == 2
            )
            shown = slice(max(at - 2, 0), at + 3)
            pytest.fail(
                f"{text[:200]!a} from token {shown.start} on: SQL "
                f"{[*map(self.reference.id_to_token, ours[shown])]}, tokenizers "
                f"{[*map(self.reference.id_to_token, expected[shown])]}",
                pytrace=False,
            )


@pytest.fixture(scope="module", params=VARIANTS)
def loaded(
    connection: Connection,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Loaded:
    """A trained tokenizer with each of BertNormalizer's options."""
    folder = tmp_path_factory.mktemp(request.param)
    return Loaded(connection, folder, save(folder, trained(request.param)))


@pytest.fixture
def uncased(connection: Connection, tmp_path: Path) -> Iterator[Loaded]:
    """The tokenizer that most checkpoints have."""
    yield Loaded(connection, tmp_path, save(tmp_path, trained("uncased")))


def test_random_texts(loaded: Loaded) -> None:
    """10,000 of them, in one batch."""
    loaded.check(hard_texts(10_000, seed=42))


PIECES = [*ASCII, *SPACES, *MARKS, *IN_TEXTS, *NUMBERS, *SCRIPTS, *EMOJI, *WORDS]


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
        | st.lists(st.sampled_from(PIECES)).map("".join),
        min_size=1,
        max_size=20,
    )
)
def test_fuzzed_texts(loaded: Loaded, texts: list[str]) -> None:
    """Whatever hypothesis finds; it shortens what differs."""
    loaded.check(texts)


@pytest.fixture(scope="module")
def minilm(connection: Connection) -> Loaded:
    """The tokenizer of the bundled example, with the vocabulary of BERT uncased."""
    folder = hub.fetch("sentence-transformers/all-MiniLM-L6-v2")
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    reference.no_padding()
    reference.no_truncation()
    return Loaded(connection, folder, reference)


def test_minilm(minilm: Loaded) -> None:
    """A published tokenizer: random texts, and paragraphs of Austen."""
    minilm.check(hard_texts(3_000, seed=4))
    minilm.check(austen().split("\n\n")[::5])


@pytest.mark.long
def test_austen(minilm: Loaded, uncased: Loaded) -> None:
    """Six novels as one text."""
    minilm.check([austen()])
    uncased.check([austen()])


def test_long_words(connection: Connection, tmp_path: Path) -> None:
    """Words on both sides of a limit, and pieces with another prefix."""
    content = json.loads(trained("uncased"))
    model = content["model"]
    model["vocab"] = {
        token.replace("##", "+-", 1) if token.startswith("##") else token: token_id
        for token, token_id in model["vocab"].items()
    }
    model |= {"continuing_subword_prefix": "+-", "max_input_chars_per_word": 17}
    loaded = Loaded(connection, tmp_path, save(tmp_path, content))
    rng = random.Random(7)
    texts = []
    for length in [1, 2, *range(15, 20), 99, 100, 101, 2_000]:
        for alphabet in ["a", "etaoinshrdlu", "éÉe\u0301", "한", "中文", "!-", "aﬡ"]:
            texts.append("".join(rng.choices(alphabet, k=length)))
    texts.append("a" * 100_000)
    texts.append("中" * 20_000)
    loaded.check(texts)


def test_hundred_characters(uncased: Loaded) -> None:
    """The usual limit, in characters and not in bytes."""
    uncased.check([letter * n for letter in "aяé한" for n in (99, 100, 101)])


def test_texts_without_tokens(uncased: Loaded) -> None:
    """Nothing but what is removed has no row, and disturbs no other text."""
    [*nothing, word] = uncased.encode(["", None, " \n", "\u0301\x01", "Word"])
    assert nothing == [[], [], [], []]
    assert word == uncased.reference.encode("Word", add_special_tokens=False).ids
    assert uncased.encode([]) == []


def test_text_is_literal(uncased: Loaded) -> None:
    """Quotes, backslashes, Jinja and SQL are text like any other."""
    uncased.check(
        [
            "it's \"quoted\" ''twice''",
            r"C:\new\x41 \\ \' $1 $body$ $pattern$ %s %%",
            "{{ target.schema }} {% do x %} {# note #}",
            "'; drop table texts; -- /* */",
            "\\N\t\\N \\x41",
        ]
    )


def test_more_special_tokens(connection: Connection, tmp_path: Path) -> None:
    """The longest special token wins; those that take white space change no id."""
    more = ["[SEP", "[SEP][SEP]", "[né.*]\\d$", "É", " pad ", "x"]
    reference = Tokenizer.from_str(trained("uncased"))
    reference.add_special_tokens(
        [
            AddedToken(token, lstrip=i % 2 == 0, rstrip=i % 3 == 0, normalized=False)
            for i, token in enumerate(more)
        ]
    )
    loaded = Loaded(connection, tmp_path, save(tmp_path, reference.to_str()))
    rng = random.Random(3)
    pieces = [*more, *IN_TEXTS, "[n", "X", "e\u0301", "\\d", " ", "\n", "pad", "É!"]
    loaded.check(
        ["".join(rng.choices(pieces, k=rng.randint(1, 9))) for _ in range(500)]
    )


def test_no_special_tokens(uncased: Loaded) -> None:
    """A vocabulary may have none; what looks like one is text then."""
    text = "a [SEP] b"
    uncased.cursor.execute(f"delete from {uncased.schema}.vocabulary where special")
    [ours] = uncased.encode([text])
    uncased.reference.encode_special_tokens = True
    assert ours == uncased.reference.encode(text, add_special_tokens=False).ids


def test_one_text_in_a_function(uncased: Loaded) -> None:
    """The macro reads a subquery, with the argument of a function in it."""
    select = uncased.select("(select 1 as sequence_id, given as prompt)")
    uncased.cursor.execute(f"""
        create function {uncased.schema}.encode(given text) returns integer[]
        language plpgsql as $encode$
        begin
            return (
                select array_agg(token_id order by position) from ({select}) as token
            );
        end
        $encode$
    """)
    for text in ["A proposal is refused, naïvely; [MASK] 中文!", "", "x" * 101, "你好"]:
        uncased.cursor.execute(f"select {uncased.schema}.encode(%s)", [text])
        [ours] = uncased.cursor.fetchone()
        expected = uncased.reference.encode(text, add_special_tokens=False).ids
        assert (ours or []) == expected
