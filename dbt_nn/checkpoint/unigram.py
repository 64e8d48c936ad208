"""SentencePiece's Unigram tokenizer, as XLM-RoBERTa's, from tokenizer.json.

Kudo 2018, "Subword Regularization". Each piece has a score, its log-probability, and a
word is parted into the pieces of the highest sum.

transformers makes XLMRobertaTokenizer anew from a file's pieces and charsmap: what
else the file says of normalizer and words it leaves out. So does this loader.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from dbt_nn.checkpoint.charsmap import read_charsmap
from dbt_nn.checkpoint.files import CheckpointError, quoted, read_bytes
from dbt_nn.checkpoint.pre_tokenizer import SPACE, steps_of
from dbt_nn.checkpoint.vocabulary import (
    MAX_TOKENIZER_BYTES,
    NO_TOKENIZER,
    Settings,
    Tokenizer,
    TokenizerFile,
    check_ids,
    end_tokens,
    stripping_tokens,
    utf8,
)

SUPPORTED = "a Unigram as XLM-RoBERTa's"
ENDS = ("<s>", "</s>")
# The classes that transformers makes anew, and the id of their unknown token.
REBUILT, REBUILT_UNKNOWN = ("XLMRobertaTokenizer", "XLMRobertaTokenizerFast"), 3
# What an unknown character has less than the least of all pieces, as in SentencePiece.
UNKNOWN_PENALTY = 10.0

Pieces = list[tuple[str, float]]


def is_unigram(folder: Path) -> bool:
    """Whether a checkpoint's tokenizer.json is of this kind."""
    path = folder / "tokenizer.json"
    # files of before the key type; a piece of this text would have its quotes escaped
    pattern = rb'"type"\s*:\s*"Unigram"|"unk_id"\s*:'
    return path.is_file() and bool(
        re.search(pattern, read_bytes(path, MAX_TOKENIZER_BYTES))
    )


def read_unigram(folder: Path, config: dict[str, Any], rows: int) -> Tokenizer | None:
    """Read the tokenizer from tokenizer.json.

    Args:
        folder: the checkpoint.
        config: its config.json.
        rows: how many tokens the embedding has.

    Returns:
        None if the folder has no tokenizer.

    Raises:
        CheckpointError: another kind of tokenizer, or an id that the embedding does
            not have.

    """
    where = folder / "tokenizer.json"
    if not where.is_file():
        for name in ("sentencepiece.bpe.model", "spiece.model", "tokenizer.model"):
            if (folder / name).is_file():
                raise CheckpointError(
                    f"{folder} has {name}, but a network of this kind needs "
                    f"{SUPPORTED}, in a tokenizer.json. Write it with transformers: "
                    "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER). "
                    f"Or {NO_TOKENIZER}."
                )
        return None
    file = TokenizerFile(where, SUPPORTED)
    settings = Settings(folder)
    model = file.part("model")
    if model.get("type", "Unigram") != "Unigram":
        raise file.refuse("model.type", model["type"])
    asked = settings.value("tokenizer_class") or config.get("tokenizer_class")
    if asked is None and config.get("model_type") == "xlm-roberta":
        asked = REBUILT[0]
    pieces = _pieces(file, model)
    if asked in REBUILT:
        unknown: Any = REBUILT_UNKNOWN
        found = _rebuilt(file, settings)
    else:
        pieces = _as_tokenizers_reads(model)
        unknown = model.get("unk_id")
        found = _words(file)
        if model.get("byte_fallback"):
            found["byte_token_ids"] = _byte_tokens(file, pieces)
    if type(unknown) is not int or not 0 <= unknown < len(pieces):
        raise file.refuse("model.unk_id", unknown)
    replacements = _replacements(file)

    # the last of equal pieces counts, as in `tokenizers`
    ids: dict[str, Any] = {text: n for n, (text, _) in enumerate(pieces)}
    scores = {n: pieces[n][1] for n in ids.values()}
    # transformers takes the flags of tokenizer_config.json, where it has a token
    added = file.added() | settings.added()
    special = {text: entry.get("id") for text, entry in added.items()}
    special |= settings.special_tokens({**ids, **special}, (*ENDS, "<pad>", "<mask>"))
    ids |= special
    check_ids(ids, where, rows)
    _check_pair(file)
    return Tokenizer(
        sorted((i, utf8(text, where), text in special) for text, i in ids.items()),
        scores=scores,
        replacements=sorted(replacements.items()),
        settings={
            **end_tokens(file.ends(), settings, ENDS, ids, where),
            "unk_token_id": unknown,
            "unknown_score": min(score for _, score in pieces) - UNKNOWN_PENALTY,
            "longest_piece": max(len(text) for text, _ in pieces),
            **found,
            **stripping_tokens([*added.items()], ids),
            **_normalized_tokens(added, ids, where),
        },
    )


def _pieces(file: TokenizerFile, model: dict[str, Any]) -> Pieces:
    """The pieces and their scores, by token id."""
    found = file.items(model.get("vocab"), "model.vocab")
    for entry in found:
        match entry:
            case [str(), float() | int() as score] if math.isfinite(score):
                continue
            case _:
                raise file.refuse("model.vocab", entry)
    if not found:
        raise file.refuse("model.vocab", found)
    return [(text, float(score)) for text, score in found]


def _as_tokenizers_reads(model: dict[str, Any]) -> Pieces:
    """The scores as `tokenizers` parses them: some differ in the last bit.

    That decides between sums that would be equal, as of the pieces of "-----".
    """
    # importing it takes a tenth of a second
    from tokenizers import Tokenizer as Library

    content = {"version": "1.0", "model": {"type": "Unigram", **model}}
    read = Library.from_str(json.dumps(content))
    return [
        (text, score) for text, score in json.loads(read.to_str())["model"]["vocab"]
    ]


def _rebuilt(file: TokenizerFile, settings: Settings) -> dict[str, Any]:
    """How transformers' XLMRobertaTokenizer cuts a text into words."""
    prefix = settings.value("add_prefix_space")
    if prefix not in (None, True, False):
        raise file.refuse("add_prefix_space", prefix)
    return {
        "pre_tokenizer": "whitespace",
        "prepend_scheme": "never" if prefix is False else "always",
    }


def _words(file: TokenizerFile) -> dict[str, Any]:
    """What config says of normalizer and pre-tokenizer."""
    result: dict[str, Any] = {}
    others = _normalizers(file)[1]
    for step in others:
        kind, pattern = step.get("type"), step.get("pattern")
        sides = [step.get(f"strip_{side}") for side in ("left", "right")]
        if kind == "Strip" and all(type(side) is bool for side in sides):
            continue
        if kind != "Replace":
            raise file.refuse("normalizer.type", kind)
        if pattern != {"Regex": " {2,}"} or step.get("content") not in (" ", SPACE):
            raise file.refuse("normalizer", step)
    if others:
        result["normalizers"] = others
    match steps_of(file, "pre_tokenizer", "pretokenizers"):
        case [{"type": "Metaspace"} as space]:
            kind = "metaspace"
        case [{"type": "WhitespaceSplit"}, {"type": "Metaspace"} as space]:
            kind = "whitespace"
        case steps:
            raise file.refuse("pre_tokenizer", [step.get("type") for step in steps])
    if space.get("replacement") != SPACE:
        raise file.refuse("pre_tokenizer.replacement", space.get("replacement"))
    # files of before these keys
    default = "always" if space.get("add_prefix_space", True) else "never"
    scheme = space.get("prepend_scheme", default)
    if scheme not in ("always", "never"):
        raise file.refuse("pre_tokenizer.prepend_scheme", scheme)
    is_split = space.get("split", True)
    if is_split is not True and (is_split is not False or kind == "whitespace"):
        raise file.refuse("pre_tokenizer.split", is_split)
    result["pre_tokenizer"] = kind if is_split else "none"
    result["prepend_scheme"] = scheme
    return result


def _normalizers(file: TokenizerFile) -> tuple[str | None, list[dict[str, Any]]]:
    """The charsmap of a Precompiled, and the steps after it."""
    steps = steps_of(file, "normalizer", "normalizers")
    if not steps or steps[0].get("type") != "Precompiled":
        return None, steps
    content = steps[0].get("precompiled_charsmap")
    if not isinstance(content, str):
        raise file.refuse("normalizer.precompiled_charsmap", content)
    return content, steps[1:]


def _replacements(file: TokenizerFile) -> dict[str, str]:
    """What the charsmap replaces."""
    content, _ = _normalizers(file)
    if content is None:
        return {}
    try:
        found = read_charsmap(content)
    except ValueError as error:
        raise CheckpointError(
            f"{file.path}: the precompiled_charsmap of the normalizer is not one "
            f"({error}). Fetch the tokenizer again."
        ) from None
    for text, made in found.items():
        # a text is cut before its blanks, and no Postgres text has NUL
        if text.startswith(" ") or "\0" in made:
            raise file.refuse("normalizer.precompiled_charsmap, with the text", text)
    return found


def _byte_tokens(file: TokenizerFile, pieces: Pieces) -> list[int]:
    """The ids of the bytes 0 to 255, which stand for an unknown character."""
    ids = {text: n for n, (text, _) in enumerate(pieces)}
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    for name in names:
        if name not in ids:
            raise file.refuse("model.byte_fallback, without the token", name)
    return [ids[name] for name in names]


def _check_pair(file: TokenizerFile) -> None:
    """Refuse another template for a pair of texts than <s> A </s> </s> B </s>."""
    after = file.part("post_processor")
    if after.get("type") != "TemplateProcessing" or "pair" not in after:
        return
    steps = [
        next(iter(step), None) if isinstance(step, dict) else None
        for step in file.items(after["pair"], "post_processor.pair")
    ]
    special, text = "SpecialToken", "Sequence"
    if steps != [special, text, special, special, text, special]:
        raise file.refuse("post_processor.pair", after["pair"])


def _normalized_tokens(
    added: dict[str, dict[str, Any]], ids: dict[str, int], where: Path
) -> dict[str, list[int]]:
    """The special tokens that are found in a text after it is normalized."""
    for text, entry in added.items():
        if entry.get("single_word"):
            raise CheckpointError(
                f"{where}: the added token {quoted(text)} has the flag single_word, "
                "which is not supported: added tokens are found whatever stands beside "
                f"them. Choose another checkpoint, or {NO_TOKENIZER}."
            )
    found = {ids[text] for text, entry in added.items() if entry.get("normalized")}
    return {"normalized_token_ids": sorted(found)} if found else {}
