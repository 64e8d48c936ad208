"""How a tokenizer.json cuts texts into words: normalizer, pre-tokenizer, decoder.

They are found by what they mean: a regular expression has to be one of PATTERNS, to
the letter. What is found goes into the checkpoint's config, where the macro
_tokenizer_settings reads it.
"""

from __future__ import annotations

from typing import Any

from dbt_nn.checkpoint.vocabulary import TokenizerFile

SPACE = "\u2581"  # stands for a blank in SentencePiece's tokens

# As the families publish them; the macro _pre_token_pattern has each in SQL.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_OTHERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    rf"{_CONTRACTIONS}|\p{{N}}{{1,3}}{_OTHERS}": "llama3",
    rf"{_CONTRACTIONS}|\p{{N}}{_OTHERS}": "qwen2",
    (
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
        r"|\s+(?!\S)|\s+"
    ): "gpt2",
}
PREPEND_SCHEMES = ("always", "first", "never")

Part = dict[str, Any]


def word_settings(file: TokenizerFile) -> dict[str, Any]:
    """What config says of normalizer and pre-tokenizer; nothing for GPT-2's.

    Raises:
        CheckpointError: one of them, or the decoder, does something else.

    """
    normalizers = steps_of(file, "normalizer", "normalizers")
    before = steps_of(file, "pre_tokenizer", "pretokenizers")
    spaces = _spaces(file, normalizers, before)
    if spaces is not None:
        _check_space_decoder(file)
        return spaces
    return _byte_level(file, normalizers, before)


def steps_of(file: TokenizerFile, name: str, of_sequence: str) -> list[Part]:
    """A part as the list of its steps; an unknown form is refused."""
    part = file.part(name)
    if not part:
        return []
    if part.get("type") != "Sequence":
        return [part]
    steps = file.items(part.get(of_sequence), f"{name}.{of_sequence}")
    for step in steps:
        if not isinstance(step, dict):
            raise file.refuse(f"{name}.{of_sequence}", steps)
    return steps


def _byte_level(
    file: TokenizerFile, normalizers: list[Part], before: list[Part]
) -> dict[str, Any]:
    """GPT-2, Llama 3, Qwen: words by a pattern, then their bytes."""
    settings: dict[str, Any] = {}
    for step in normalizers:
        if step.get("type") != "NFC":
            raise file.refuse("normalizer.type", step.get("type"))
        settings["normalizer"] = "nfc"
    if not before or before[-1].get("type") != "ByteLevel":
        kind = before[-1].get("type") if before else None
        raise file.refuse("pre_tokenizer.type", kind)
    *splits, byte_level = before
    if byte_level.get("add_prefix_space"):
        raise file.refuse("pre_tokenizer.add_prefix_space", True)
    use_regex = byte_level.get("use_regex", True)
    match splits:
        case []:
            if not use_regex:
                raise file.refuse("pre_tokenizer.use_regex", False)
            kind = "gpt2"
        case [{"type": "Split"} as split]:
            if use_regex:
                raise file.refuse("pre_tokenizer.use_regex after a Split", True)
            kind = _split(file, split)
        case [{"type": "Digits"} as digits]:
            if digits.get("individual_digits") is not True:
                raise file.refuse(
                    "pre_tokenizer.individual_digits", digits.get("individual_digits")
                )
            if not use_regex:
                raise file.refuse("pre_tokenizer.use_regex after Digits", False)
            kind = "digits"
        case _:
            types = [step.get("type") for step in before]
            raise file.refuse("pre_tokenizer", types)
    decoder = file.part("decoder").get("type", "ByteLevel")
    if decoder != "ByteLevel":
        raise file.refuse("decoder.type", decoder)
    if kind != "gpt2":
        settings["pre_tokenizer"] = kind
    return settings


def _split(file: TokenizerFile, split: Part) -> str:
    """The pattern by which a text is split into its matches."""
    pattern = split.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if not isinstance(regex, str) or regex not in PATTERNS:
        raise file.refuse("pre_tokenizer.pattern", regex or pattern)
    # each pattern matches all of a text: what is between matches is nothing
    behavior = (split.get("behavior"), split.get("invert", False))
    if behavior not in (("Isolated", False), ("Removed", True)):
        raise file.refuse("pre_tokenizer.behavior and invert", behavior)
    return PATTERNS[regex]


def _spaces(
    file: TokenizerFile, normalizers: list[Part], before: list[Part]
) -> dict[str, Any] | None:
    """Llama 2, Mistral: blanks as U+2581, by the normalizer or the pre-tokenizer.

    None where a tokenizer has neither.
    """
    kinds = [step.get("type") for step in normalizers]
    if kinds in (["Prepend", "Replace"], ["Replace"]) and not before:
        replace = normalizers[-1]
        if replace.get("pattern") != {"String": " "}:
            raise file.refuse("normalizer.pattern", replace.get("pattern"))
        if replace.get("content") != SPACE:
            raise file.refuse("normalizer.content", replace.get("content"))
        scheme = "never"
        if len(normalizers) > 1:
            scheme = "every"
            if normalizers[0].get("prepend") != SPACE:
                raise file.refuse("normalizer.prepend", normalizers[0].get("prepend"))
        return {"pre_tokenizer": "none", "prepend_scheme": scheme}
    if not normalizers and [step.get("type") for step in before] == ["Metaspace"]:
        [space] = before
        if space.get("replacement") != SPACE:
            raise file.refuse("pre_tokenizer.replacement", space.get("replacement"))
        # files of before these keys
        default = "always" if space.get("add_prefix_space", True) else "never"
        scheme = space.get("prepend_scheme", default)
        if scheme not in PREPEND_SCHEMES:
            raise file.refuse("pre_tokenizer.prepend_scheme", scheme)
        is_split = space.get("split", True)
        if type(is_split) is not bool:
            raise file.refuse("pre_tokenizer.split", is_split)
        kind = "metaspace" if is_split else "none"
        return {"pre_tokenizer": kind, "prepend_scheme": scheme}
    return None


def _check_space_decoder(file: TokenizerFile) -> None:
    """Refuse a decoder that makes something else of tokens than their bytes.

    A blank that it strips from the start of a text is none of a completion's, which
    goes on where the prompt ends.
    """
    for step in steps_of(file, "decoder", "decoders"):
        kind = step.get("type")
        known = {
            "Replace": (step.get("pattern"), step.get("content"))
            == ({"String": SPACE}, " "),
            "Metaspace": step.get("replacement") == SPACE,
            "Strip": (step.get("content"), step.get("stop")) == (" ", 0),
            "ByteFallback": True,
            "Fuse": True,
        }
        if not isinstance(kind, str) or not known.get(kind, False):
            raise file.refuse("decoder", step)
