"""BERT's WordPiece tokenizer, from tokenizer.json or vocab.txt.

A text is normalized character by character, so that a table of characters says all
of it. The table is what `tokenizers` answers when it is asked for each one.

It leaves out one thing that depends on more than a character. To strip accents, the
text is decomposed (NFD), which also sorts combining marks. Those that only accent a
letter are gone afterwards. Two that stay, such as the Hangul tone marks U+302E and
U+302F or musical stems, may stand in another order here. That changes token ids only
if the vocabulary has pieces for them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dbt_nn.checkpoint.files import CheckpointError, quoted
from dbt_nn.checkpoint.vocabulary import (
    NO_TOKENIZER,
    Settings,
    Tokenizer,
    TokenizerFile,
    check_ids,
    end_tokens,
    read_text,
    utf8,
)

SUPPORTED = "a WordPiece as BERT's"
# Of BertTokenizer in transformers, for a vocab.txt.
UNKNOWN, PREFIX, MAX_CHARACTERS = "[UNK]", "##", 100
ENDS = ("[CLS]", "[SEP]")
SPECIALS = (UNKNOWN, *ENDS, "[PAD]", "[MASK]")
# BertNormalizer's options by the names that tokenizer_config.json has for them.
OPTIONS = {
    "lowercase": "do_lower_case",
    "strip_accents": "strip_accents",
    "handle_chinese_chars": "tokenize_chinese_chars",
}
# The characters that `tokenizers` is asked about. Each stands for those up to the
# next: no text has surrogates, and all of planes 4 to 13, which are empty, and of 15
# and 16, which are private, are alike but for the last two of a plane.
CODE_POINTS = [
    *[*range(1, 0xD800), *range(0xE000, 0x40001), *range(0xE0000, 0xF0001)],
    *[0xFFFFE, 0x100000, 0x10FFFE],
]
# A letter that stays itself, and that no other character turns into.
DELIMITER = "ʘ"

Options = dict[str, bool | None]
Characters = list[tuple[int, int, str | None, bool]]


def read_word_pieces(
    folder: Path, rows: int, *, lower_first: bool = False
) -> Tokenizer | None:
    """Read the tokenizer from tokenizer.json, or else from vocab.txt.

    Args:
        folder: the checkpoint.
        rows: how many tokens the embedding has.
        lower_first: whether texts of a cased tokenizer are lower-cased before.

    Returns:
        None if the folder has no tokenizer.

    Raises:
        CheckpointError: not a WordPiece as BERT's, or an id that the embedding
            does not have.

    """
    fast, slow = folder / "tokenizer.json", folder / "vocab.txt"
    settings = Settings(folder)
    ends: tuple[str | None, str | None] = (None, None)
    added: dict[str, dict[str, Any]] = {}
    if fast.is_file():
        where = fast
        file = TokenizerFile(fast, SUPPORTED)
        ids, model, options = _read_fast(file)
        added, ends = file.added(), file.ends()
    elif slow.is_file():
        where = slow
        # not splitlines(), which also splits at characters that tokens can hold
        lines = read_text(slow).removesuffix("\n").split("\n")
        ids = {line.rstrip("\r"): token_id for token_id, line in enumerate(lines)}
        model = {
            "unk_token": settings.token("unk") or UNKNOWN,
            "continuing_subword_prefix": PREFIX,
            "max_input_chars_per_word": MAX_CHARACTERS,
        }
        options = {
            "clean_text": True,
            "lowercase": True,
            "strip_accents": None,
            "handle_chinese_chars": True,
        }
    elif (folder / "vocab.json").is_file():
        raise CheckpointError(
            f"{folder} has vocab.json, but a network of this kind needs {SUPPORTED}: "
            f"tokenizer.json or vocab.txt. Fetch one of them, or {NO_TOKENIZER}."
        )
    else:
        return None

    for text, entry in [*added.items(), *settings.added().items()]:
        _check_flags(text, entry, where)
    special = {text: entry.get("id") for text, entry in added.items()}
    always = () if fast.is_file() else SPECIALS
    special |= settings.special_tokens({**ids, **special}, always)
    ids = {**ids, **special}
    check_ids(ids, where, rows)
    unknown = model.pop("unk_token")
    if unknown not in ids:
        raise CheckpointError(
            f"{where} lacks the token {quoted(unknown)}, which stands for unknown "
            f"words. Use the tokenizer that belongs to the checkpoint, or "
            f"{NO_TOKENIZER}."
        )
    return Tokenizer(
        sorted((i, utf8(text, where), text in special) for text, i in ids.items()),
        characters=characters(_chosen(options, settings), lower_first=lower_first),
        settings={
            **end_tokens(ends, settings, ENDS, ids, where),
            "unk_token_id": ids[unknown],
            **model,
        },
    )


def _read_fast(file: TokenizerFile) -> tuple[dict[str, Any], dict[str, Any], Options]:
    """Read tokenizer.json: token ids, the model's options, the normalizer's."""
    model = file.part("model")
    kind = model.get("type", "BPE" if "merges" in model else "WordPiece")
    if kind != "WordPiece":
        raise file.refuse("model.type", kind)
    found = {}
    for key, default, expected in (
        ("unk_token", UNKNOWN, str),
        ("continuing_subword_prefix", PREFIX, str),
        ("max_input_chars_per_word", MAX_CHARACTERS, int),
    ):
        found[key] = model.get(key, default)
        if type(found[key]) is not expected:
            raise file.refuse(f"model.{key}", found[key])
    for name, expected in (
        ("pre_tokenizer", "BertPreTokenizer"),
        ("normalizer", "BertNormalizer"),
    ):
        if file.part(name).get("type") != expected:
            raise file.refuse(f"{name}.type", file.part(name).get("type"))
    options: Options = {}
    for key in ("clean_text", *OPTIONS):
        options[key] = file.part("normalizer").get(key)
        if not _is_option(key, options[key]):
            raise file.refuse(f"normalizer.{key}", options[key])
    return file.ids(), found, options


def _is_option(key: str, value: object) -> bool:
    return type(value) is bool or (key == "strip_accents" and value is None)


def _chosen(options: Options, settings: Settings) -> Options:
    """Let tokenizer_config.json have the last word, as transformers does."""
    for path, content in settings.files.items():
        for key, name in OPTIONS.items():
            value = content.get(name, options[key])
            if not _is_option(key, value):
                raise CheckpointError(
                    f"{path} says {name} = {quoted(value)}, where true or false is "
                    "needed. Correct it."
                )
            options = {**options, key: value}
    return options


def _check_flags(text: str, entry: dict[str, Any], where: Path) -> None:
    """Refuse added tokens that are not simply found in a text.

    The flags lstrip and rstrip change nothing: words never have white space.
    """
    for flag in ("normalized", "single_word"):
        if entry.get(flag):
            raise CheckpointError(
                f"{where.parent}: the added token {quoted(text)} has the flag {flag}, "
                "which is not supported: added tokens are found in a text before it "
                "is normalized, whatever stands beside them. Choose another "
                f"checkpoint, or {NO_TOKENIZER}."
            )


def characters(
    options: Options,
    code_points: Sequence[int] = CODE_POINTS,
    *,
    lower_first: bool = False,
) -> Characters:
    """What BERT's normalizer and pre-tokenizer make of each character.

    Returns:
        (first_codepoint, last_codepoint, replacement, isolated) of each run of
        characters that are treated alike; those that stay themselves have none.

    """
    # importing it takes a tenth of a second
    from tokenizers import normalizers

    steps = [normalizers.BertNormalizer(**options)]
    if lower_first and not options["lowercase"]:
        steps.insert(0, normalizers.Lowercase())
    text = DELIMITER.join(" " if c == ord(DELIMITER) else chr(c) for c in code_points)
    made = normalizers.Sequence(steps).normalize_str(text).split(DELIMITER)
    assert len(made) == len(code_points)
    words = _words(set("".join(made)))

    runs: Characters = []
    nexts = [*code_points[1:], sys.maxunicode + 1]
    for code_point, after, normal in zip(code_points, nexts, made, strict=True):
        own = chr(code_point)
        if (normal == own and own not in words) or own == DELIMITER:
            continue
        kind = _kind(own, "".join(words.get(c, c) for c in normal))
        # letters of the same lower case have a row each
        alike = kind[0] is None or not kind[0].strip(" ")
        if alike and runs and runs[-1][1:] == (code_point - 1, *kind):
            runs[-1] = (runs[-1][0], after - 1, *kind)
        else:
            runs.append((code_point, after - 1, *kind))
    return runs


def _kind(own: str, made: str) -> tuple[str | None, bool]:
    """The replacement for a character, and whether that is a word of its own."""
    word = made.strip(" ")
    if len(word) == 1 and made[0] == made[-1] == " ":
        return (None if word == own else word), True
    return made if word else made[:1], False


def _words(letters: set[str]) -> dict[str, str]:
    """What the pre-tokenizer makes of those letters that don't stay themselves.

    Returns:
        A blank for white space, and blanks around punctuation.

    """
    from tokenizers.pre_tokenizers import BertPreTokenizer

    text = DELIMITER + "".join(letter + DELIMITER for letter in sorted(letters))
    found: dict[str, str] = {}
    end = 0
    for word, (start, stop) in BertPreTokenizer().pre_tokenize_str(text):
        if start > end:
            found[text[end]] = " "
        if len(word) == 1 and word != DELIMITER:
            found[word] = f" {word} "
        end = stop
    return found
