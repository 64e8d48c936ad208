"""The tokenizers of today's networks in SQL, and their loader, against `tokenizers`."""

from __future__ import annotations

import itertools
import json
import random
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg2.extensions import connection as Connection
from psycopg2.extras import execute_values
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from byte_pairs import BYTE_LEVEL, KINDS, SPECIALS, save, split, tokenizer_of
from dbt_nn.checkpoint.files import CheckpointError
from dbt_nn.checkpoint.tokenizer import read_tokenizer
from dbt_nn.writer import Writer, check_server
from macros import load_macros
from random_texts import random_texts
from word_pieces import MARKS, austen

SCHEMA = "tokenizer_kinds_test"
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
        found = read_tokenizer(
            save(folder, reference), {"model_type": "llama"}, reference.get_vocab_size()
        )
        assert found is not None
        self.tokenizer = found
        self.cursor.execute(f"""
            begin;
            drop schema if exists {self.schema} cascade;
            create schema {self.schema};
            create table {self.schema}.texts (sequence_id integer, prompt text)
        """)
        writer = Writer(self.cursor, self.schema, check_server(connection), "float32")
        writer.settings("config", "of the tokenizer", found.settings)
        writer.tokenizer(found)
        self.cursor.execute("commit")

    def encode(self, texts: list[str | None]) -> list[list[int]]:
        """Token ids of each text, by the macro."""
        self.cursor.execute(f"truncate {self.schema}.texts")
        execute_values(
            self.cursor,
            f"insert into {self.schema}.texts values %s",
            list(enumerate(texts)),
        )
        tables = (f"{self.schema}.{x}" for x in ("texts", "vocabulary", "merges"))
        select = MACROS.byte_pair_encode(*tables, config=f"{self.schema}.config")
        self.cursor.execute(f"{select} order by sequence_id, position")
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
            own, other = (
                [self.reference.id_to_token(i) for i in ids[shown]]
                for ids in (ours, expected)
            )
            pytest.fail(
                f"{text[:200]!a} from token {shown.start} on: SQL {own}, "
                f"tokenizers {other}",
                pytrace=False,
            )

    def decode(self, token_ids: list[list[int]]) -> list[str]:
        """The text of each sequence, by the vocabulary and token_text."""
        self.cursor.execute(
            f"""
            select (
                select {MACROS.token_text("vocabulary.token", "token.i")}
                from jsonb_array_elements_text(ids.ids::jsonb)
                    with ordinality as token (id, i)
                inner join {self.schema}.vocabulary as vocabulary
                    on token.id::integer = vocabulary.token_id
            )
            from unnest(%s::text[]) with ordinality as ids (ids, n)
            order by n
            """,
            [[json.dumps(ids) for ids in token_ids]],
        )
        return [row[0] for row in self.cursor]


@pytest.fixture(scope="module")
def load(
    connection: Connection, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Tokenizer], Loaded]]:
    """Load a tokenizer; the functions are in the schema of the tests."""
    cursor = connection.cursor()
    cursor.execute(f"drop schema if exists {SCHEMA} cascade")
    cursor.execute(MACROS.create_tokenizer_functions())
    yield lambda tokenizer: Loaded(
        connection, tmp_path_factory.mktemp("tokenizer"), tokenizer
    )
    for schema in (SCHEMA, *SCHEMAS):
        cursor.execute(f"drop schema {schema} cascade")


def texts_for(kind: str, count: int, seed: int) -> list[str]:
    """Random texts with the kind's special tokens, and marks between their letters."""
    specials = SPECIALS[kind]
    pieces = [*specials, specials[1] * 2, specials[0][:-1], f" {specials[1]} ", "▁"]
    texts = random_texts(count, seed, pieces)
    rng = random.Random(seed)
    for i in range(0, count, 2):
        letters = list(texts[i])
        for _ in range(rng.randint(1, 12)):
            letters.insert(rng.randint(0, len(letters)), rng.choice(MARKS))
        texts[i] = "".join(letters)
    return texts


def hostile_texts() -> list[str]:
    """What patterns, merges and SQL stumble over."""
    rng = random.Random(7)
    return [
        "",
        " ",
        "\n",
        "  \n \r\n\t  x\n\n\ny \n",
        "'S 'ſ 'LL 'Ll'VE 'rE'start don'T ''s '",
        "a1b22c333d4444e55555 ²½Ⅷ٣ 1 2  3",
        "!!!\n\n?? \r\n...\n x",
        "it's \"quoted\" ''twice'' $1 $body$ $pattern$ %s %% {{ x }} {% y %}",
        r"C:\new\x41 \\ \' [a-z]+ (?i:x) ^$",
        "▁▁a ▁ b▁c  ▁",
        "e\u0301\u0327 \u1100\u1161\u11a8 \u212b \u0345\u0897 a\u07fd\u0301",
        *(
            "".join(rng.choices(a, k=n))
            for n in (127, 129, 2_000)
            for a in ("ab ", "中文字")
        ),
        "a" * 3_001,
        " " * 3_001 + "x" + "\n " * 1_001,
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_random_texts(load: Callable, kind: str) -> None:
    """Some hundred, and what is hostile."""
    load(tokenizer_of(kind)).check([*hostile_texts(), *texts_for(kind, 400, seed=3)])


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_many_random_texts(load: Callable, kind: str) -> None:
    """10,000, and six novels as one text."""
    loaded = load(tokenizer_of(kind))
    loaded.check(texts_for(kind, 10_000, seed=42))
    loaded.check([austen()])


@pytest.mark.parametrize("kind", KINDS)
def test_decode(load: Callable, kind: str) -> None:
    """The tokens of a text give it back."""
    loaded = load(tokenizer_of(kind))
    texts = [text for text in texts_for(kind, 300, seed=5) if text]
    token_ids = [
        loaded.reference.encode(t, add_special_tokens=False).ids for t in texts
    ]
    decoded = [
        loaded.reference.decode(ids, skip_special_tokens=False) for ids in token_ids
    ]
    for ids, text, ours in zip(
        token_ids, decoded, loaded.decode(token_ids), strict=True
    ):
        if kind not in BYTE_LEVEL:  # its decoder strips a text's first blank
            ours = (ours or "").removeprefix(" ")
        assert ascii(ours) == ascii(text), ids


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_character_classes(load: Callable, kind: str) -> None:
    """Every code point next to a letter, a number and punctuation.

    Above U+33500 a sample.
    """
    code_points = [
        *range(1, 0xD800),
        *range(0xE000, 0x33500),
        *range(0x33500, sys.maxunicode + 1, 97),
    ]
    texts = ["".join(around(chr(c)) for c in code_points[i::50]) for i in range(50)]
    load(tokenizer_of(kind)).check(texts)


def around(character: str) -> str:
    """What shows of which class a character is."""
    return "".join(f"{other}{character}" for other in ("a", "1", "!", "'", "'l", " "))


@pytest.mark.parametrize("kind", ["qwen2", "digits"])
def test_some_character_classes(load: Callable, kind: str) -> None:
    """The edges of the classes, in one text each."""
    code_points = [c for c in range(1, 0x20000) if not 0xD800 <= c < 0xE000]
    kinds = [unicodedata.category(chr(c))[0] for c in code_points]
    edges = [
        c
        for c, own, other in zip(code_points[1:], kinds[1:], kinds, strict=False)
        if own != other
    ]
    load(tokenizer_of(kind)).check(["".join(around(chr(c)) for c in edges)])


def test_long_word(load: Callable) -> None:
    """160,000 characters in one word, of both ways to begin one."""
    rng = random.Random(11)
    word = "".join(rng.choices("etaoinshrdlu", k=160_000))
    for kind in ("qwen2", "llama2"):
        load(tokenizer_of(kind)).check([word])


def test_blanks_inside_tokens(load: Callable) -> None:
    """A merge over a blank: then a text is one word, and not cut at its blanks."""
    content = json.loads(tokenizer_of("llama2").to_str())
    model = content["model"]
    for pair in (["e", "▁"], ["e▁", "a"], ["▁t", "he▁a"], ["h", "e▁a"]):
        model["merges"].insert(0, pair)
        model["vocab"].setdefault("".join(pair), len(model["vocab"]))
    loaded = load(Tokenizer.from_str(json.dumps(content)))
    assert loaded.tokenizer.settings["pre_tokenizer"] == "none"
    loaded.check(["the a the  a", "e " * 300, *texts_for("llama2", 100, seed=9)])
    plain = load(tokenizer_of("llama2")).tokenizer
    assert plain.settings["pre_tokenizer"] == "spaces"


@pytest.mark.parametrize("split_words", [True, False])
@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_metaspace(load: Callable, scheme: str, split_words: bool) -> None:
    """Where a blank is put before a text, or a text between special tokens."""
    tokenizer = tokenizer_of("metaspace")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme=scheme, split=split_words
    )
    load(tokenizer).check(
        ["a", " a", "  a", "▁a", "<s>a", "<s> a</s>b", "a<s>b", "<s><s>a", " <s>a", ""]
        + texts_for("metaspace", 100, seed=13)
    )


def test_only_blanks_replaced(load: Callable) -> None:
    """The normalizer Replace alone puts none before a text."""
    tokenizer = tokenizer_of("llama2")
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    load(tokenizer).check(["a", " a", *texts_for("llama2", 50, seed=15)])


@pytest.mark.parametrize("fuse", [True, False])
def test_unknown_characters(load: Callable, fuse: bool) -> None:
    """One unknown token each, or for several in a row."""
    loaded = load(tokenizer_of("unknown", fuse_unk=fuse))
    loaded.check(["\U000f0000\U000f0001a\U000f0000 \U000f0000b", "\U000f0000" * 200])


@pytest.mark.parametrize("kind", ["llama3", "llama2"])
def test_flags_of_added_tokens(load: Callable, kind: str) -> None:
    """White space beside a token is its own."""
    tokens = [
        AddedToken("<left>", lstrip=True, normalized=False),
        AddedToken("<right>", rstrip=True, normalized=False),
        AddedToken("<both>", lstrip=True, rstrip=True, normalized=False),
        AddedToken("<left>!", normalized=False),
    ]
    rng = random.Random(5)
    pieces = [*(t.content for t in tokens), *SPECIALS[kind], *"a !\n\t\u3000▁", "  "]
    load(tokenizer_of(kind, tokens)).check(
        ["".join(rng.choices(pieces, k=rng.randint(1, 12))) for _ in range(300)]
    )


def test_frame(tmp_path: Path) -> None:
    """What goes around a text is what `tokenizers` puts there."""
    for kind in KINDS:
        tokenizer = tokenizer_of(kind)
        settings = read(save(tmp_path, tokenizer)).settings
        assert settings.get("prefix_token_ids", []) == tokenizer.encode("").ids
        assert "suffix_token_ids" not in settings
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> <unk> $A </s>",
        special_tokens=[("<s>", 1), ("<unk>", 0), ("</s>", 2)],
    )
    settings = read(save(tmp_path, tokenizer)).settings
    around_text = settings["prefix_token_ids"] + settings["suffix_token_ids"]
    assert around_text == tokenizer.encode("").ids


def read(folder: Path, model_type: str = "llama") -> Any:
    return read_tokenizer(folder, {"model_type": model_type}, 10_000)


def changed(kind: str, **parts: Any) -> Tokenizer:
    """A tokenizer with other parts."""
    tokenizer = tokenizer_of(kind)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
REFUSED = {
    "another pattern": (
        changed(
            "llama3",
            pre_tokenizer=pre_tokenizers.Sequence(
                [pre_tokenizers.Split(Regex(r"\p{Han}|."), "isolated"), BYTES]
            ),
        ),
        r"pre_tokenizer.pattern is '\\p{Han}|.'",
    ),
    "another behavior": (
        changed(
            "llama3",
            pre_tokenizer=pre_tokenizers.Sequence([split("llama3", "removed"), BYTES]),
        ),
        "('Removed', False)",
    ),
    "groups of digits": (
        changed(
            "digits",
            pre_tokenizer=pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=False),
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            ),
        ),
        "individual_digits is False",
    ),
    "another normalizer": (
        changed("qwen2", normalizer=normalizers.NFKC()),
        "normalizer.type is 'NFKC'",
    ),
    "lower case": (
        changed(
            "llama2",
            normalizer=normalizers.Sequence(
                [normalizers.Lowercase(), normalizers.Prepend("▁")]
            ),
        ),
        "normalizer.type is 'Lowercase'",
    ),
    "another decoder": (
        changed("llama2", decoder=decoders.WordPiece()),
        "decoder is",
    ),
    "another post-processor": (
        changed(
            "llama2",
            post_processor=processors.TemplateProcessing(
                single="$A $A", special_tokens=[]
            ),
        ),
        "post_processor.single is",
    ),
    "Unigram": (
        Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0)),
        "model.type is 'Unigram'",
    ),
    "single words": (
        tokenizer_of("llama3", [AddedToken("a", single_word=True, normalized=False)]),
        "'a' has the flag single_word",
    ),
    "normalized tokens": (
        tokenizer_of("qwen2", [AddedToken("<x>", normalized=True)]),
        "'<x>' has the flag normalized",
    ),
    "tokens that overlap": (
        tokenizer_of(
            "llama3",
            [
                AddedToken("<x>", normalized=True),
                AddedToken(">y", normalized=False),
            ],
        ),
        "'<x>' overlap",
    ),
    "dropout": (tokenizer_of("llama3", dropout=0.1), "model.dropout is 0.1"),
    "bytes of characters": (
        tokenizer_of("llama3", byte_fallback=True),
        "model.byte_fallback is True",
    ),
    "bytes missing": (
        tokenizer_of("unknown", byte_fallback=True),
        "without the token is '<0x00>'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    """What is not the same is refused, and named."""
    tokenizer, reason = REFUSED[case]
    save(tmp_path, tokenizer)
    with pytest.raises(CheckpointError) as error:
        read(tmp_path)
    assert reason in str(error.value)
    assert "--no-tokenizer" in str(error.value)


def test_refused_settings(tmp_path: Path) -> None:
    """tokenizer_config.json may not ask for what the tokenizer does not do."""
    save(tmp_path, tokenizer_of("llama2"))
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"add_bos_token": true, "add_prefix_space": true}')
    assert read(tmp_path).settings["prefix_token_ids"] == [1]
    config.write_text('{"add_bos_token": false}')
    with pytest.raises(CheckpointError, match="says add_bos_token = False"):
        read(tmp_path)


def test_files_without_words(tmp_path: Path) -> None:
    """Without tokenizer.json nothing says how words are cut."""
    (tmp_path / "tokenizer.model").write_bytes(b"sentencepiece")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model.*save_pretrained"):
        read(tmp_path)
    Tokenizer(models.BPE()).model.save(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"vocab\.json.*save_pretrained"):
        read(tmp_path)
    assert read(tmp_path, "gpt2") is not None
