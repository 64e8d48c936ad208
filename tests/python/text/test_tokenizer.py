"""The tokenizer in SQL against `transformers`, and its decoder against Python's."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import sys
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg2.extensions import connection as Connection
from psycopg2.extras import execute_values
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AddedToken, GPT2Tokenizer

from dbt_nn.database import PROJECT
from macros import load_macros
from random_texts import (
    ASCII,
    CONTRACTIONS,
    EMOJI,
    NUMBERS,
    SCRIPTS,
    SPACES,
    SPECIALS,
    WORDS,
    random_texts,
)

SCHEMA = "tokenizer_test"
MACROS = load_macros(SCHEMA, "tokenizer/*.sql", "network/frontier.sql")
FOLDERS = {
    "gpt2": PROJECT / "tests" / "data" / "gpt2-bpe",
    "gpt2-twin": PROJECT / "checkpoints" / "gpt2-twin",
}
# One holds the other, one is full of what a regular expression reads.
MORE_SPECIALS = ["<|end", "<|endoftext|>!", "[né.*]\\d$", " pad "]


def byte_of_character() -> dict[str, int]:
    """The bytes that the printable characters of vocab.json stand for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {
        chr(256 + i): byte for i, byte in enumerate(others)
    }


class Tokenizer:
    """A tokenizer in the database, beside the one of `transformers`."""

    def __init__(
        self,
        connection: Connection,
        name: str,
        specials: Sequence[str | AddedToken] = (),
    ) -> None:
        """Load vocabulary and merges of a folder into a schema of their own."""
        self.cursor = connection.cursor()
        self.config: str | None = None
        self.schema = f"{SCHEMA}_{name}_{len(specials)}".replace("-", "_")
        self.reference = GPT2Tokenizer.from_pretrained(
            FOLDERS[name],
            model_max_length=sys.maxsize,  # it warns about longer texts
        )
        self.reference.add_special_tokens({"additional_special_tokens": list(specials)})
        added = self.reference.added_tokens_decoder
        byte_of = byte_of_character()
        token_ids = json.loads((FOLDERS[name] / "vocab.json").read_bytes())
        merges = (FOLDERS[name] / "merges.txt").read_text(encoding="utf-8")
        pairs = [
            line.split(" ")
            for line in merges.split("\n")
            if line and not line.startswith("#version")
        ]
        self.cursor.execute(f"""
            drop schema if exists {self.schema} cascade;
            create schema {self.schema};
            create table {self.schema}.vocabulary (
                token_id integer primary key,
                token bytea not null,
                special boolean not null
            );
            create table {self.schema}.merges (
                left_id integer,
                right_id integer,
                rank integer not null,
                token_id integer not null,
                primary key (left_id, right_id)
            );
            create table {self.schema}.texts (sequence_id integer, prompt text)
        """)
        execute_values(
            self.cursor,
            f"insert into {self.schema}.vocabulary values %s",
            [
                (token_id, bytes(byte_of[character] for character in token), False)
                for token, token_id in token_ids.items()
                if token_id not in added
            ]
            + [
                (token_id, token.content.encode(), True)
                for token_id, token in added.items()
            ],
            page_size=1000,
        )
        execute_values(
            self.cursor,
            f"insert into {self.schema}.merges values %s",
            [
                (token_ids[left], token_ids[right], rank, token_ids[left + right])
                for rank, (left, right) in enumerate(pairs)
            ],
            page_size=1000,
        )
        self.cursor.execute(f"analyze {self.schema}.vocabulary, {self.schema}.merges")

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

    def select(self) -> str:
        """The macro, of these texts."""
        relations = (f"{self.schema}.{x}" for x in ("texts", "vocabulary", "merges"))
        return str(MACROS.byte_pair_encode(*relations, config=self.config))

    def check(self, texts: list[str]) -> None:
        """Fail with the first text whose tokens differ, cut to where they do."""
        for text, ours in zip(texts, self.encode(texts), strict=True):
            expected = self.reference(text, add_special_tokens=False)["input_ids"]
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
                f"{self.reference.convert_ids_to_tokens(ours[shown])}, transformers "
                f"{self.reference.convert_ids_to_tokens(expected[shown])}",
                pytrace=False,
            )


@pytest.fixture(scope="module")
def functions(connection: Connection) -> Iterator[Connection]:
    """The connection, with the tokenizer's functions in the schema of the tests."""
    cursor = connection.cursor()
    cursor.execute(f"drop schema if exists {SCHEMA} cascade")
    cursor.execute(MACROS.create_tokenizer_functions())
    yield connection
    cursor.execute(f"drop schema {SCHEMA} cascade")


@pytest.fixture(scope="module", params=FOLDERS)
def tokenizer(
    functions: Connection, request: pytest.FixtureRequest
) -> Iterator[Tokenizer]:
    """GPT-2's own tokenizer, and the twin's."""
    loaded = Tokenizer(functions, request.param)
    yield loaded
    loaded.cursor.execute(f"drop schema {loaded.schema} cascade")


def test_random_texts(tokenizer: Tokenizer) -> None:
    """10,000 of them, in one batch."""
    tokenizer.check(random_texts(10_000, seed=42))


PIECES = [
    *ASCII, *SPACES, *CONTRACTIONS, *SPECIALS, *NUMBERS, *SCRIPTS, *EMOJI, *WORDS
]  # fmt: skip


@settings(
    max_examples=150,
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
def test_fuzzed_texts(tokenizer: Tokenizer, texts: list[str]) -> None:
    """Whatever hypothesis finds; it shortens what differs."""
    tokenizer.check(texts)


@pytest.mark.long
def test_austen(tokenizer: Tokenizer) -> None:
    """Six novels as one text."""
    with gzip.open(PROJECT / "data" / "austen.txt.gz", "rt", encoding="utf-8") as file:
        tokenizer.check([file.read()])


def test_long_words(tokenizer: Tokenizer) -> None:
    """Words on both sides of the length at which another algorithm takes over."""
    rng = random.Random(7)
    texts = []
    for length in [*range(120, 136), 1_000, 20_000]:
        for alphabet in ["a", "ab", "aAe", "etaoinshrdlu", "中文字漢", "!-*", "0123"]:
            texts.append("".join(rng.choices(alphabet, k=length)))
    texts.append("".join(rng.choices("etaoinshrdlucmfwypvbgkjqxz", k=100_000)))
    texts.append("a" * 100_001)
    texts.append(" " * 3_000 + "a" + "\n " * 3_000)
    tokenizer.check(texts)


def test_texts_without_tokens(tokenizer: Tokenizer) -> None:
    """Neither an empty text nor NULL has a row, and neither disturbs the others."""
    [empty, null, word] = tokenizer.encode(["", None, "word"])
    assert [empty, null] == [[], []]
    assert word == tokenizer.reference("word")["input_ids"]
    assert tokenizer.encode([]) == []


def test_text_is_literal(tokenizer: Tokenizer) -> None:
    """Quotes, backslashes, Jinja and SQL are text like any other."""
    tokenizer.check(
        [
            "it's \"quoted\" ''twice''",
            r"C:\new\x41 \\ \' $1 $body$ $pattern$ %s %%",
            "{{ target.schema }} {% do x %} {# note #}",
            "'; drop table texts; -- /* */",
        ]
    )


def test_more_special_tokens(functions: Connection) -> None:
    """The longest special token wins, and nothing in one is a pattern."""
    tokenizer = Tokenizer(functions, "gpt2-twin", MORE_SPECIALS)
    rng = random.Random(3)
    pieces = [*MORE_SPECIALS, *SPECIALS, "[n", "x", "\\d", "  ", "né.", "[nét]d"]
    tokenizer.check(
        ["".join(rng.choices(pieces, k=rng.randint(1, 9))) for _ in range(500)]
    )
    tokenizer.cursor.execute(f"drop schema {tokenizer.schema} cascade")


def test_special_tokens_with_their_space(functions: Connection) -> None:
    """White space beside a token belongs to it, as before RoBERTa's <mask>."""
    tokenizer = Tokenizer(
        functions,
        "gpt2-twin",
        [
            AddedToken("<mask>", lstrip=True, special=True),
            AddedToken("<mask>!", rstrip=True, special=True),
            AddedToken("(b)", lstrip=True, rstrip=True, special=True),
        ],
    )
    flags = ("lstrip", "rstrip")
    added = tokenizer.reference.added_tokens_decoder.items()
    config = [
        (f"{flag}_token_ids", json.dumps([i for i, t in added if getattr(t, flag)]))
        for flag in flags
    ]
    tokenizer.cursor.execute(
        f"create table {tokenizer.schema}.config (parameter text, value jsonb)"
    )
    execute_values(
        tokenizer.cursor, f"insert into {tokenizer.schema}.config values %s", config
    )
    tokenizer.config = f"{tokenizer.schema}.config"
    rng = random.Random(5)
    pieces = ["<mask>", "<mask>!", "(b)", "<|endoftext|>", "a", " a", "  ", "!", "\n"]
    pieces += SPACES
    tokenizer.check(
        ["".join(rng.choices(pieces, k=rng.randint(1, 12))) for _ in range(1_000)]
    )
    tokenizer.cursor.execute(f"drop schema {tokenizer.schema} cascade")


def test_no_special_tokens(tokenizer: Tokenizer) -> None:
    """A vocabulary may have none; what looks like one is text then."""
    text = "a <|endoftext|>b"
    tokenizer.cursor.execute("begin")
    try:
        tokenizer.cursor.execute(
            f"delete from {tokenizer.schema}.vocabulary where special"
        )
        [ours] = tokenizer.encode([text])
    finally:
        tokenizer.cursor.execute("rollback")
    assert ours == tokenizer.reference(text, split_special_tokens=True)["input_ids"]


def test_character_classes(functions: Connection) -> None:
    """Every code point next to a letter, a number and punctuation.

    Nothing above U+33500 is a letter, a number or whitespace: there, a sample.
    """
    code_points = [
        *range(1, 0xD800),
        *range(0xE000, 0x33500),
        *range(0x33500, sys.maxunicode + 1, 97),
    ]
    text = "".join(f"a{c}1{c}!{c}" for c in map(chr, code_points))
    split = ByteLevel(add_prefix_space=False, use_regex=True).pre_tokenize_str
    expected = [text[slice(*span)] for _, span in split(text)]
    cursor = functions.cursor()
    cursor.execute(f"select {SCHEMA}.split_pre_tokens(%s, 'gpt2')", [text])
    ours = [row[0] for row in cursor]
    for own_piece, piece in zip(ours, expected, strict=False):
        assert ascii(own_piece) == ascii(piece)
    assert len(ours) == len(expected)


def broken_texts() -> list[bytes]:
    """Bytes that are no UTF-8, and nearly: cut, overlong, surrogates, too high."""
    edges = [
        0x01, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF,
        0xE0, 0xE1, 0xEC, 0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF,
    ]  # fmt: skip
    rng = random.Random(11)
    found = [
        bytes(chosen) for n in range(4) for chosen in itertools.product(edges, repeat=n)
    ]
    found += [bytes(rng.choices(edges, k=rng.randint(4, 9))) for _ in range(5_000)]
    for text in random_texts(1_000, seed=5):
        raw = bytearray(text.encode())
        for _ in range(rng.randint(0, 3) if raw else 0):
            raw[rng.randrange(len(raw))] = rng.randrange(1, 256)
        start, stop = sorted(rng.choices(range(len(raw) + 1), k=2))
        found.append(bytes(raw[start:stop]))
    return found


def call(connection: Connection, function: str, values: list[bytes]) -> list:
    """One macro of a bytea over many values."""
    cursor = connection.cursor()
    cursor.execute(
        f"select {getattr(MACROS, function)('raw')}"
        " from unnest(%s::bytea[]) with ordinality as value (raw, i) order by i",
        [values],
    )
    return [row[0] for row in cursor]


def test_decode(functions: Connection) -> None:
    """As Python decodes with errors="replace"."""
    raw = broken_texts()
    for value, ours in zip(raw, call(functions, "decode_utf8", raw), strict=True):
        assert ascii(ours) == ascii(value.decode(errors="replace")), value


def test_decode_nul(functions: Connection) -> None:
    """No text in Postgres can hold U+0000: it turns into U+FFFD."""
    raw = [b"\0", b"a\0b\0", b"\xe4\0\xb8\xad", "中\0文".encode()]
    expected = [value.decode(errors="replace").replace("\0", "\ufffd") for value in raw]
    assert call(functions, "decode_utf8", raw) == expected


def test_complete(functions: Connection) -> None:
    """Only the beginning of a character is cut off an end, and all of it.

    Python's incremental decoder is no oracle here: it holds back the beginnings
    of surrogates as well, which nothing completes.
    """
    beginnings = {
        chr(code_point).encode()[:length]
        for code_point in range(0x80, sys.maxunicode + 1)
        if not 0xD800 <= code_point < 0xE000
        for length in range(1, len(chr(code_point).encode()))
    }
    raw = broken_texts()
    for value, ours in zip(raw, call(functions, "complete_utf8", raw), strict=True):
        ends = (value[-length:] for length in (3, 2, 1))
        held_back = next((end for end in ends if end in beginnings), b"")
        assert bytes(ours) + held_back == value, value


def test_token_text(tokenizer: Tokenizer) -> None:
    """The tokens of a text give it back, characters split over tokens too."""
    texts = [text for text in random_texts(300, seed=9) if text]
    tokenizer.encode(texts)
    tokenizer.cursor.execute(f"""
        select {MACROS.token_text("token", "position")}
        from ({tokenizer.select()}) as encoded
        inner join {tokenizer.schema}.vocabulary using (token_id)
        group by sequence_id
        order by sequence_id
    """)
    assert [row[0] for row in tokenizer.cursor] == texts
