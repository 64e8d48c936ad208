"""Unigram in SQL, and the loader that reads it, against `tokenizers`."""

from __future__ import annotations

import base64
import itertools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg2.extensions import connection as Connection
from psycopg2.extras import execute_values
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer, XLMRobertaConfig

from dbt_nn.checkpoint.charsmap import read_charsmap
from dbt_nn.checkpoint.files import CheckpointError
from dbt_nn.checkpoint.unigram import is_unigram, read_unigram
from dbt_nn.writer import Writer, check_server
from macros import load_macros
from unigrams import (
    ROWS,
    charsmap,
    hard_texts,
    one_blank,
    precompiled,
    save,
    tokenizer_of,
)
from word_pieces import austen

SCHEMA = "unigram_test"
SCHEMAS: list[str] = []  # of the tokenizers that tests have loaded
MACROS = load_macros(SCHEMA, "tokenizer/*.sql", "network/frontier.sql")

METASPACE = pre_tokenizers.Metaspace
# Normalizer and pre-tokenizer, as transformers has written them at times.
VARIANTS: dict[str, dict[str, Any]] = {
    "xlm-roberta": {},
    "one blank": {"normalizer": precompiled(one_blank(" "))},
    "metaspace": {
        "normalizer": precompiled(
            normalizers.Strip(left=False, right=True), one_blank("▁")
        ),
        "pre_tokenizer": METASPACE(),
    },
    "never": {"pre_tokenizer": METASPACE(prepend_scheme="never")},
    "whole": {
        "normalizer": normalizers.Sequence([normalizers.Strip(), one_blank(" ")]),
        "pre_tokenizer": METASPACE(split=False),
    },
}


class Loaded:
    """A tokenizer in the database, beside the one of `tokenizers`."""

    def __init__(
        self, connection: Connection, folder: Path, reference: Tokenizer
    ) -> None:
        """Load a folder's files as the loader does, into a schema of their own."""
        save(folder, reference)
        # which may read other scores than it wrote, by the last bit
        self.reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.cursor = connection.cursor()
        self.schema = f"{SCHEMA}_{len(SCHEMAS)}"
        SCHEMAS.append(self.schema)
        found = read_unigram(folder, {}, reference.get_vocab_size())
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
        writer.tokenizer(found, has_scores=True)
        writer.unigram(found)
        self.cursor.execute("commit")

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, by the macro."""
        self.cursor.execute(f"truncate {self.schema}.texts")
        execute_values(
            self.cursor,
            f"insert into {self.schema}.texts values %s",
            list(enumerate(texts)),
        )
        tables = [
            f"{self.schema}.{name}"
            for name in ("texts", "vocabulary", "replacements", "config")
        ]
        select = MACROS.unigram_encode(*tables)
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
                f"{text[:200]!a} from token {shown.start} on: SQL {own!a}, "
                f"tokenizers {other!a}",
                pytrace=False,
            )


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


def hostile_texts() -> list[str]:
    """What normalizers, sums and SQL stumble over."""
    rng = random.Random(7)
    return [
        *("", " ", "\n", "\x01", "  \n \r\n\t  x\n\n\ny \n", "a ", " a", "▁", "a▁▁ b"),
        *("\u0301", "\u0301\u0301", " \u0301a", "e\u0301\u0323"),
        *("ﬁ\u0301", "\r\n\u0301", "©\u200d™\u0301"),
        *("\u0600e\u0301", "\u0600 \u0301", "\u0915\u094d\u0958\u0301"),
        *("<mask>a  <mask> b", "＜s＞ ＜unk＞＜unk＞x", "<ma\x01sk>", "<s>\u0301"),
        *("-" * n for n in range(1, 60)),
        "it's \"quoted\" ''twice'' $1 $body$ $pattern$ %s %% {{ x }} {% y %}",
        r"C:\new\x41 \\ \' [a-z]+ (?i:x) ^$",
        *("".join(rng.choices("ab中文字", k=n)) for n in (255, 257, 2_000)),
        "\U000f0000" * 300 + "a" + "\U000f0000",
        " " * 3_001 + "x" + "\n " * 1_001,
    ]  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_random_texts(load: Callable, variant: str) -> None:
    """Some hundred, and what is hostile."""
    loaded = load(tokenizer_of(**VARIANTS[variant]))
    loaded.check([*hostile_texts(), *hard_texts(400, seed=3)])


@pytest.mark.long
@pytest.mark.parametrize("variant", VARIANTS)
def test_many_random_texts(load: Callable, variant: str) -> None:
    """10,000, and six novels as one text."""
    loaded = load(tokenizer_of(**VARIANTS[variant]))
    loaded.check(hard_texts(10_000, seed=42))
    if variant != "whole":  # there it would be one word
        loaded.check([austen()])


def test_bytes_of_unknown_characters(load: Callable) -> None:
    """Where a tokenizer has them, and its own unknown token stays that."""
    content = json.loads(tokenizer_of().to_str())
    content["model"]["byte_fallback"] = True
    vocab = content["model"]["vocab"]
    vocab += [[f"<0x{byte:02X}>", -30.0 - byte] for byte in range(256)]
    texts = ["\U000f0000\U000f0001a\U000f0000 é", "＜unk＞", "a＜unk＞\U000f0000"]
    loaded = load(Tokenizer.from_str(json.dumps(content)))
    loaded.check([*texts, "<0x41>", *hard_texts(100, seed=4)])


def test_equal_pieces(load: Callable) -> None:
    """The last of two counts."""
    vocab = json.loads(tokenizer_of().to_str())["model"]["vocab"]
    again = [[text, score / 2] for text, score in vocab[5:200:3]]
    loaded = load(tokenizer_of(vocab=vocab + again))
    loaded.check([austen()[:20_000]])


def test_long_word(load: Callable) -> None:
    """100,000 characters without a blank."""
    rng = random.Random(11)
    load(tokenizer_of()).check(["".join(rng.choices("etaoinshrdlu中", k=100_000))])


@pytest.mark.parametrize("normalized", [True, False])
def test_flags_of_added_tokens(load: Callable, normalized: bool) -> None:
    """White space beside a token is its own, before or after it is normalized."""
    tokenizer = tokenizer_of()
    flags = [("<left>", True, False), ("<right>", False, True), ("<both>", True, True)]
    tokenizer.add_special_tokens(
        [
            AddedToken(text, lstrip=left, rstrip=right, normalized=normalized)
            for text, left, right in flags
        ]
    )
    rng = random.Random(5)
    pieces = [*(text for text, *_ in flags), *"a !\n\t\u3000▁\x01\u200b＜", "  "]
    pieces += ["＜left＞", "<mask>", "<le\x01ft>", "\u0301"]
    load(tokenizer).check(
        ["".join(rng.choices(pieces, k=rng.randint(1, 12))) for _ in range(300)]
    )


@pytest.mark.parametrize(
    "asked",
    [
        *({}, {"tokenizer_class": "XLMRobertaTokenizerFast"}),
        {"tokenizer_class": "PreTrainedTokenizerFast"},
        {"tokenizer_class": "XLMRobertaTokenizer", "add_prefix_space": False},
    ],
)
def test_class(load: Callable, tmp_path: Path, asked: dict[str, Any]) -> None:
    """A tokenizer is what AutoTokenizer makes of the folder."""
    XLMRobertaConfig(vocab_size=ROWS).save_pretrained(tmp_path)
    content = json.loads(tokenizer_of(**VARIANTS["metaspace"]).to_str())
    for piece in content["model"]["vocab"]:
        piece[1] *= 1.1  # that `tokenizers` reads some of these otherwise
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(asked))
    made = AutoTokenizer.from_pretrained(tmp_path).backend_tokenizer
    loaded = load(made)
    found = read_unigram(tmp_path, {"model_type": "xlm-roberta"}, ROWS)
    assert found is not None
    vocab = json.loads(made.to_str())["model"]["vocab"]
    assert found.scores == dict(enumerate(score for _, score in vocab))
    words = ("pre_tokenizer", "prepend_scheme", "normalizers")
    own, other = found.settings, loaded.tokenizer.settings
    assert [own.get(key) for key in words] == [other.get(key) for key in words]
    texts = [" a  b <mask> ", "x\x85y\u2003 z", *("-" * n for n in range(1, 60))]
    loaded.check(texts)


def test_charsmap() -> None:
    """What it replaces is what `tokenizers` replaces, of each character."""
    found = read_charsmap(base64.b64encode(charsmap()).decode())
    normalize = normalizers.Precompiled(charsmap()).normalize_str
    for code_point in [*range(1, 0xD800), *range(0xE000, 0x33500)]:
        letter = chr(code_point)
        assert found.get(letter, letter) == normalize(letter), ascii(letter)
    assert found["e\u0301"] == normalize("e\u0301") == "é"


def refused(folder: Path, **parts: Any) -> str:
    """What the loader says of a tokenizer.json with other parts."""
    content = json.loads(tokenizer_of().to_str())
    content["model"] |= parts.pop("model", {})
    (folder / "tokenizer.json").write_text(json.dumps(content | parts))
    with pytest.raises(CheckpointError) as error:
        read_unigram(folder, {}, ROWS)
    return str(error.value)


def test_refused(tmp_path: Path) -> None:
    """What is not the same is refused, and named."""

    def normalizer(content: str) -> dict[str, Any]:
        return {"type": "Precompiled", "precompiled_charsmap": content}

    space = {"type": "Metaspace", "replacement": "▁", "split": True}
    token = {"id": 5, "content": ",", "single_word": True}
    for reason, parts in {
        "model.type is 'BPE'": {"model": {"type": "BPE"}},
        "model.unk_id is None": {"model": {"unk_id": None}},
        "model.vocab is ['a']": {"model": {"vocab": [["a"]]}},
        "without the token is '<0x00>'": {"model": {"byte_fallback": True}},
        "normalizer.type is 'Lowercase'": {"normalizer": {"type": "Lowercase"}},
        "(no base64)": {"normalizer": normalizer("é")},
        "(cut short)": {"normalizer": normalizer("AAAA")},
        "prepend_scheme is 'first'": {
            "pre_tokenizer": space | {"prepend_scheme": "first"}
        },
        "replacement is '_'": {"pre_tokenizer": space | {"replacement": "_"}},
        "pre_tokenizer is ['Whitespace']": {"pre_tokenizer": {"type": "Whitespace"}},
        "has the flag single_word": {"added_tokens": [token]},
        "post_processor.pair is": {
            "post_processor": {"type": "TemplateProcessing", "pair": []}
        },
    }.items():
        assert reason in refused(tmp_path, **parts), reason


def test_file_without_type(tmp_path: Path) -> None:
    """As old ones are."""
    save(tmp_path, tokenizer_of())
    found = read_unigram(tmp_path, {}, ROWS)
    content = json.loads(tokenizer_of().to_str())
    del content["model"]["type"], content["model"]["byte_fallback"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert is_unigram(tmp_path)
    assert read_unigram(tmp_path, {}, ROWS) == found
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    assert not is_unigram(tmp_path)


def test_no_tokenizer_json(tmp_path: Path) -> None:
    """SentencePiece's own file is not read."""
    assert read_unigram(tmp_path, {}, ROWS) is None
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"sentencepiece")
    with pytest.raises(CheckpointError, match="save_pretrained"):
        read_unigram(tmp_path, {}, ROWS)
