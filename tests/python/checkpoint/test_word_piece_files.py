"""The files of a WordPiece tokenizer: what is read is what `tokenizers` reads."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import BertConfig, BertModel, BertTokenizer

from dbt_nn.checkpoint.files import CheckpointError
from dbt_nn.checkpoint.folder import open_checkpoint
from dbt_nn.checkpoint.wordpiece import characters, read_word_pieces
from word_pieces import ROWS, SPECIALS, hard_texts, save, trained

EVERY = [*range(1, 0xD800), *range(0xE000, sys.maxunicode + 1)]
OPTIONS = {
    "uncased": (True, True, None, True),
    "cased": (True, True, None, False),
    "uncased-accents": (True, True, False, True),
    "cased-stripped": (True, True, True, False),
    "no-chinese": (True, False, None, True),
    "not-clean": (False, True, None, True),
}
# of a post-processor, other tokens than the usual ones
ENDS = {"type": "BertProcessing", "cls": ["a", 5], "sep": ["b", 6]}
NAMES = ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase")


def mapped(table: list[tuple[int, int, str | None, bool]]) -> dict[str, str]:
    """What the table has for the characters that don't stay themselves."""
    result = {}
    for first, last, replacement, isolated in table:
        for code_point in range(first, last + 1):
            made = chr(code_point) if replacement is None else replacement
            result[chr(code_point)] = f" {made} " if isolated else made
    return result


def check_words(text: str, made: dict[str, str], options: dict[str, Any]) -> None:
    """Characters, put together and parted at blanks, are the words of a text."""
    ours = "".join(made.get(letter, letter) for letter in text).split(" ")
    normal = BertNormalizer(**options).normalize_str(text)
    expected = [word for word, _ in BertPreTokenizer().pre_tokenize_str(normal)]
    ours = [word for word in ours if word]
    if ours != expected:
        at = next(
            i
            for i, (x, y) in enumerate(itertools.zip_longest(ours, expected))
            if x != y
        )
        pytest.fail(f"{ours[at : at + 3]!a}, tokenizers {expected[at : at + 3]!a}")


@pytest.mark.parametrize(
    "name",
    [n if n == "uncased" else pytest.param(n, marks=pytest.mark.long) for n in OPTIONS],
)
def test_characters(name: str) -> None:
    """The table says of every character of Unicode what `tokenizers` makes of it."""
    options = dict(zip(NAMES, OPTIONS[name], strict=True))
    table = characters(options)
    assert all(
        first <= last < after
        for (first, last, *_), (after, *_) in itertools.pairwise(table)
    )
    # not one for those up to the next
    assert characters(options, EVERY) == table
    made = mapped(table)
    # between letters, so that one that parts words does so here
    assigned = [c for c in EVERY if c < 0x33500 or 0xE0000 <= c < 0xE0200]
    check_words("".join(f"q{chr(c)}q\n" for c in assigned), made, options)
    check_words("\n".join(hard_texts(5_000, seed=8)), made, options)


# --- Files --------------------------------------------------------------------


def tokens(folder: Path) -> dict[int, tuple[bytes, bool]]:
    """The vocabulary that is read of a folder: the token and whether it is special."""
    read = read_word_pieces(folder, ROWS)
    assert read is not None
    return {token_id: (token, special) for token_id, token, special in read.vocabulary}


def normalizer(folder: Path) -> list[tuple[int, int, str | None, bool]]:
    """The table of characters that is read of a folder."""
    read = read_word_pieces(folder, ROWS)
    assert read is not None
    return read.characters


def expected_table(tokenizer: Tokenizer) -> list[tuple[int, int, str | None, bool]]:
    """The same, of a tokenizer of `tokenizers`."""
    options = json.loads(tokenizer.to_str())["normalizer"]
    return characters({name: options[name] for name in NAMES})


def test_tokenizer_json(tmp_path: Path) -> None:
    """Each token as bytes, its id, and what the SQL needs to know."""
    reference = save(tmp_path, trained("uncased"))
    ids = reference.get_vocab()
    assert tokens(tmp_path) == {
        token_id: (token.encode(), token in SPECIALS) for token, token_id in ids.items()
    }
    assert read_word_pieces(tmp_path, ROWS).settings == {
        "cls_token_id": ids["[CLS]"],
        "sep_token_id": ids["[SEP]"],
        "unk_token_id": ids["[UNK]"],
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
    }
    assert read_word_pieces(tmp_path / "nothing", ROWS) is None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_lower_case": False},
        {"strip_accents": False},
        {"tokenize_chinese_chars": False, "mask_token": "[SEP]"},
    ],
)
@pytest.mark.parametrize("line", ["\n", "\r\n"])
def test_vocab_txt(tmp_path: Path, options: dict[str, Any], line: str) -> None:
    """A folder without tokenizer.json: as transformers reads it."""
    vocabulary = Tokenizer.from_str(trained("uncased")).get_vocab()
    names = sorted(vocabulary, key=vocabulary.__getitem__)
    path = tmp_path / "vocab.txt"
    path.write_text("".join(name + line for name in names), "utf-8", newline="")
    reference = BertTokenizer(vocab=vocabulary, **options)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    special = {*reference.all_special_tokens, *SPECIALS}
    assert tokens(tmp_path) == {
        token_id: (token.encode(), token in special)
        for token, token_id in vocabulary.items()
    }
    assert normalizer(tmp_path) == expected_table(reference.backend_tokenizer)
    settings = read_word_pieces(tmp_path, ROWS).settings
    assert settings["cls_token_id"] == reference.cls_token_id
    assert settings["sep_token_id"] == reference.sep_token_id
    assert settings["unk_token_id"] == reference.unk_token_id


def test_tokenizer_config_has_the_last_word(tmp_path: Path) -> None:
    """Where both files say how a text is normalized, as for transformers."""
    save(tmp_path, trained("uncased"))
    before = normalizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"do_lower_case": False, "tokenizer_class": "BertTokenizer"})
    )
    reference = BertTokenizer.from_pretrained(tmp_path)
    assert normalizer(tmp_path) == expected_table(reference.backend_tokenizer)
    assert normalizer(tmp_path) != before


@pytest.mark.parametrize("kind", ["template", "bert", "none"])
def test_ends(tmp_path: Path, kind: str) -> None:
    """The post-processor names the tokens around a text, else their usual names do."""
    content = json.loads(trained("uncased"))
    special = [
        {"SpecialToken": {"id": token, "type_id": 0}} for token in ("[PAD]", "!")
    ]
    content["post_processor"] = {
        "template": {
            "type": "TemplateProcessing",
            "single": [special[0], {"Sequence": {"id": "A", "type_id": 0}}, special[1]],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {
                token: {
                    "id": token,
                    "ids": [content["model"]["vocab"][token]],
                    "tokens": [token],
                }
                for token in ("[PAD]", "!")
            },
        },
        "bert": {
            "type": "BertProcessing",
            "cls": ["[PAD]", content["model"]["vocab"]["[PAD]"]],
            "sep": ["!", content["model"]["vocab"]["!"]],
        },
        "none": None,
    }[kind]
    reference = save(tmp_path, content)
    ids = [reference.token_to_id(token) for token in ("[CLS]", "[SEP]")]
    if kind != "none":
        ids = reference.encode("").ids
    settings = read_word_pieces(tmp_path, ROWS).settings
    assert [settings["cls_token_id"], settings["sep_token_id"]] == ids


def test_checkpoint(tmp_path: Path) -> None:
    """A checkpoint's config says what the tokenizer adds; its digest covers it all."""
    config = BertConfig(
        vocab_size=ROWS, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path)
    content = json.loads(trained("uncased"))
    digests = set()
    for change in [
        {},
        {"model": {**content["model"], "max_input_chars_per_word": 17}},
        {"normalizer": {**content["normalizer"], "strip_accents": False}},
        {"post_processor": ENDS},
    ]:
        save(tmp_path, {**content, **change})
        with open_checkpoint(tmp_path) as opened:
            digests.add(opened.digest)
            assert opened.tokenizer.settings.items() <= opened.config.items()
    assert len(digests) == 4
    with open_checkpoint(tmp_path, tokenizer=False) as opened:
        assert opened.tokenizer is None


# --- Errors -------------------------------------------------------------------

Change = Callable[[dict[str, Any]], Any]


def added(**flags: Any) -> dict[str, Any]:
    return {"id": 9, "content": "[X]", "special": True, **flags}


@pytest.mark.parametrize(
    ("change", "culprits"),
    [
        (lambda c: c["model"].update(type="BPE"), ["model.type is 'BPE'", "WordPiece"]),
        (lambda c: c["model"].pop("type") and c["model"].update(merges=[]), ["'BPE'"]),
        (lambda c: c["model"].update(unk_token=None), ["model.unk_token is None"]),
        (lambda c: c["model"].update(unk_token="<u>"), ["lacks the token '<u>'"]),
        (lambda c: c["model"].update(max_input_chars_per_word=1.5), ["is 1.5"]),
        (lambda c: c["model"].update(vocab=[]), ["model.vocab is 'list'"]),
        (lambda c: c["model"]["vocab"].update(zzz=ROWS), ["'zzz'", f"{ROWS} rows"]),
        (lambda c: c["model"]["vocab"].update(zzz=7), ["id 7", "'zzz'"]),
        (lambda c: c["model"]["vocab"].update({"\ud800": 8}), ["id 8"]),
        (lambda c: c["normalizer"].update(type="NFKC"), ["normalizer.type is 'NFKC'"]),
        (lambda c: c.update(normalizer=None), ["normalizer.type is None"]),
        (lambda c: c["normalizer"].update(lowercase=1), ["normalizer.lowercase is 1"]),
        (
            lambda c: c["pre_tokenizer"].update(type="Whitespace"),
            ["pre_tokenizer.type is 'Whitespace'"],
        ),
        (lambda c: c["post_processor"].update(type="Odd"), ["post_processor.type"]),
        (lambda c: c["post_processor"].update(cls="x"), ["post_processor.cls is 'x'"]),
        (
            lambda c: c["post_processor"].update(sep=["</s>", 2]),
            ["lacks the token '</s>'", "sep_token"],
        ),
        (lambda c: c["added_tokens"].append({"id": 1}), ["has no content"]),
        (
            lambda c: c["added_tokens"].append(added(normalized=True)),
            ["normalized"],
        ),
        (
            lambda c: c["added_tokens"].append(added(single_word=True)),
            ["'[X]' has the flag single_word"],
        ),
    ],
)
def test_errors(tmp_path: Path, change: Change, culprits: list[str]) -> None:
    """What is not a WordPiece as BERT's is refused by name."""
    content = json.loads(trained("uncased"))
    content["post_processor"] = dict(ENDS)
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as error:
        read_word_pieces(tmp_path, ROWS)
    for culprit in culprits:
        assert culprit in str(error.value)


@pytest.mark.parametrize(
    ("files", "culprits"),
    [
        ({"vocab.json": b"{}", "merges.txt": b""}, ["vocab.json", "WordPiece"]),
        ({"vocab.txt": b"a\nb\n"}, ["lacks the token '[UNK]'", "--no-tokenizer"]),
        ({"vocab.txt": b"[UNK]\n[CLS]\n"}, ["lacks the token '[SEP]'"]),
        ({"vocab.txt": b"\xff"}, ["vocab.txt is not UTF-8"]),
        (
            {
                "vocab.txt": b"[UNK]\n[CLS]\n[SEP]",
                "tokenizer_config.json": b'{"do_lower_case": "yes"}',
            },
            ["do_lower_case = 'yes'"],
        ),
        (
            {
                "vocab.txt": b"[UNK]\n[CLS]\n[SEP]",
                "tokenizer_config.json": b'{"added_tokens_decoder":'
                b' {"1": {"content": "[CLS]", "normalized": true}}}',
            },
            ["'[CLS]' has the flag normalized"],
        ),
    ],
)
def test_bad_files(
    tmp_path: Path, files: dict[str, bytes], culprits: list[str]
) -> None:
    """So are files that are incomplete, or of another kind of tokenizer."""
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_word_pieces(tmp_path, ROWS)
    for culprit in culprits:
        assert culprit in str(error.value)
