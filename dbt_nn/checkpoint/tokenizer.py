"""A byte pair encoding, from tokenizer.json or vocab.json and merges.txt.

Byte-level, as GPT-2's, Llama 3's and Qwen's, or of characters, as SentencePiece's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dbt_nn.checkpoint.files import CheckpointError, quoted, read_json
from dbt_nn.checkpoint.pre_tokenizer import SPACE, word_settings
from dbt_nn.checkpoint.vocabulary import (
    MAX_TOKENIZER_BYTES,
    NO_TOKENIZER,
    Settings,
    Tokenizer,
    TokenizerFile,
    check_ids,
    end_tokens,
    read_text,
    stripping_tokens,
    utf8,
)

SUPPORTED = "a BPE as GPT-2's, Llama's, Qwen's or Mistral's"


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable characters for the 256 bytes: character -> byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }


ALPHABET = byte_alphabet()


@dataclass
class BytePairs:
    """What the files say of a byte pair encoding.

    Attributes:
        ids: the tokens of the model, and their ids.
        pairs: what is merged, the first pair first.
        added: the added tokens by their text: id, and flags such as lstrip.
        ends: the first and last token of an encoder's text.
        settings: what config says of it.

    """

    ids: dict[str, Any]
    pairs: list[tuple[str, str]]
    added: dict[str, dict[str, Any]] = field(default_factory=dict)
    ends: tuple[str | None, str | None] = (None, None)
    settings: dict[str, Any] = field(default_factory=dict)


def read_tokenizer(
    folder: Path, config: dict[str, Any], rows: int, *, is_encoder: bool = False
) -> Tokenizer | None:
    """Read the tokenizer from tokenizer.json, or from vocab.json and merges.txt.

    Args:
        folder: the checkpoint.
        config: its config.json, for the ids of special tokens.
        rows: how many tokens the embedding has.
        is_encoder: whether special tokens go around a text, as RoBERTa's <s>, </s>.

    Returns:
        None if the folder has no tokenizer.

    Raises:
        CheckpointError: incomplete, another kind of tokenizer, or an id that the
            embedding does not have.

    """
    # of GPT2Tokenizer and RobertaTokenizer, which need no tokenizer.json
    is_known = is_encoder or config.get("model_type", "gpt2") == "gpt2"
    where = folder / "tokenizer.json"
    if where.is_file():
        found = _read_fast(where, is_encoder=is_encoder)
    elif files := _slow_files(folder, is_known=is_known):
        where = files[0]
        ids = read_json(where, MAX_TOKENIZER_BYTES)
        found = BytePairs(ids, _read_merges(files[1]))
    else:
        return None

    settings = Settings(folder)
    _check_settings(settings, found.settings)
    # transformers' tokenizers have these whatever the files say
    always = ("<s>", "</s>", "<unk>", "<pad>", "<mask>")
    always = always if is_encoder else ("<|endoftext|>",)
    added = {text: entry.get("id") for text, entry in found.added.items()}
    added |= settings.special_tokens({**found.ids, **added}, always if is_known else ())
    ids = {**found.ids, **added}
    check_ids(ids, where, rows)
    _check_frame(found.settings, ids, where)
    if is_known:
        added |= _special_in_config(config, ids, found.pairs)
    _check_added(found, added, where)
    entries = [*found.added.items(), *settings.entries()]

    for_config = {**found.settings, **stripping_tokens(entries, ids)}
    if is_encoder:
        for_config |= end_tokens(found.ends, settings, ("<s>", "</s>"), ids, where)
    bytes_of = _piece_bytes if "prepend_scheme" in for_config else _byte_level_bytes
    fallback = for_config.get("byte_token_ids")
    byte_of = {token_id: byte for byte, token_id in enumerate(fallback or ())}
    vocabulary = []
    for text, token_id in ids.items():
        if text in added:
            token = utf8(text, where)
        elif token_id in byte_of:
            token = bytes([byte_of[token_id]])
        else:
            token = bytes_of(text, where)
        vocabulary.append((token_id, token, text in added))
    return Tokenizer(
        sorted(vocabulary),
        _merge_ids(found.pairs, ids, where),
        settings=for_config,
    )


def _slow_files(folder: Path, *, is_known: bool) -> tuple[Path, Path] | None:
    """vocab.json and merges.txt, which say nothing of how a text is cut into words."""
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    for name in ("tokenizer.model", "vocab.txt"):
        if (folder / name).is_file() and not vocab.is_file():
            raise CheckpointError(
                f"{folder} has {name}, but a network of this kind needs {SUPPORTED}, "
                "in a tokenizer.json. Write it with transformers: "
                "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER). Or "
                f"{NO_TOKENIZER}."
            )
    if not vocab.is_file() and not merges.is_file():
        return None
    if not vocab.is_file() or not merges.is_file():
        missing = merges if vocab.is_file() else vocab
        raise CheckpointError(
            f"{missing} is missing: the tokenizer needs vocab.json and merges.txt. "
            f"Fetch it, or {NO_TOKENIZER}."
        )
    if not is_known:
        raise CheckpointError(
            f"{folder} has vocab.json and merges.txt, which don't say how a text is "
            "cut into words. Fetch its tokenizer.json, or write it with transformers: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER). Or "
            f"{NO_TOKENIZER}."
        )
    return vocab, merges


def _special_in_config(
    config: dict[str, Any], ids: dict[str, int], pairs: list[tuple[str, str]]
) -> dict[str, int]:
    """The tokens that config.json names, and nothing makes by merges."""
    named: list[object] = []
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = config.get(key)
        named += value if isinstance(value, list) else [value]
    made = {ids.get(left + right) for left, right in pairs}
    return {
        text: number
        for text, number in ids.items()
        if number in named and len(text) > 1 and number not in made
    }


def _byte_level_bytes(text: str, where: Path) -> bytes:
    """The bytes of a token of a byte-level BPE."""
    if all(character in ALPHABET for character in text):
        return bytes(ALPHABET[character] for character in text)
    # as `tokenizers` decodes what is not made of its alphabet
    return utf8(text, where)


def _piece_bytes(text: str, where: Path) -> bytes:
    """The bytes of one of SentencePiece's tokens, which have U+2581 for blanks."""
    return utf8(text.replace(SPACE, " "), where)


def _check_settings(settings: Settings, found: dict[str, Any]) -> None:
    """Refuse options of tokenizer_config.json that the tokenizer does not follow."""
    for path, content in settings.files.items():
        follows = {
            "add_prefix_space": "prepend_scheme" in found,
            "add_bos_token": "prefix_token_ids" in found,
            "add_eos_token": "suffix_token_ids" in found,
        }
        for key, is_so in follows.items():
            value = content.get(key)
            if key == "add_prefix_space" and is_so:
                continue
            if type(value) is bool and value != is_so:
                raise CheckpointError(
                    f"{path} says {key} = {value}, and the tokenizer does otherwise: "
                    "which token ids are meant is not known. Correct it if the "
                    "checkpoint allows it, or load with --no-tokenizer."
                )


def _check_frame(found: dict[str, Any], ids: dict[str, int], where: Path) -> None:
    """Refuse ids around a text that are of no token."""
    known = set(ids.values())
    for key in ("prefix_token_ids", "suffix_token_ids"):
        for token_id in found.get(key, ()):
            if token_id not in known:
                raise CheckpointError(
                    f"{where}: the post_processor puts the token {token_id} beside a "
                    "text, and the vocabulary lacks it. Fetch the tokenizer again, or "
                    f"{NO_TOKENIZER}."
                )


def _check_added(found: BytePairs, added: dict[str, int], where: Path) -> None:
    """Refuse added tokens that are not found in a text as they stand."""
    is_normalized = "normalizer" in found.settings or "prepend_scheme" in found.settings
    groups: dict[bool, list[str]] = {True: [], False: []}
    for text, entry in found.added.items():
        flags = [flag for flag in ("single_word",) if entry.get(flag)]
        if entry.get("normalized") and is_normalized:
            flags.append("normalized")
        if flags:
            raise CheckpointError(
                f"{where}: the added token {quoted(text)} has the flag {flags[0]}, "
                "which is not supported: added tokens are found in a text before it "
                "is normalized, whatever stands beside them. Choose another "
                f"checkpoint, or {NO_TOKENIZER}."
            )
        groups[bool(entry.get("normalized"))].append(text)
    # `tokenizers` finds those that are not normalized first, wherever they are
    for own in groups[False]:
        for other in groups[True]:
            if _overlap(own, other) or _overlap(other, own):
                raise CheckpointError(
                    f"{where}: the added tokens {quoted(own)} and {quoted(other)} "
                    "overlap, and one has the flag normalized: which of them a text "
                    "has is not supported. Choose another checkpoint, or "
                    f"{NO_TOKENIZER}."
                )


def _overlap(own: str, other: str) -> bool:
    """Whether a text can have both in places that overlap, `own` first."""
    return other in own or any(
        own.endswith(other[:n]) for n in range(1, min(len(own), len(other)))
    )


def _merge_ids(
    pairs: list[tuple[str, str]], ids: dict[str, int], where: Path
) -> list[tuple[int, int, int, int]]:
    merges: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, (left, right) in enumerate(pairs):
        for token in (left, right, left + right):
            if token not in ids:
                raise CheckpointError(
                    f"Merge {rank} of {where.parent}, {quoted(left)} with "
                    f"{quoted(right)}, needs the token {quoted(token)}, which the "
                    "vocabulary lacks: they do not belong together. Fetch both again."
                )
        # the last of equal pairs counts, as in `tokenizers`
        merges[ids[left], ids[right]] = (rank, ids[left + right])
    return sorted(
        ((left, right, rank, token) for (left, right), (rank, token) in merges.items()),
        key=lambda merge: merge[2],
    )


def _read_merges(path: Path) -> list[tuple[str, str]]:
    text = read_text(path)
    pairs = []
    # not splitlines(), which also splits at characters that tokens can hold
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.rstrip("\r")
        if not line or line.startswith("#version"):
            continue
        parts = line.split(" ")
        if len(parts) != 2:
            raise CheckpointError(
                f"{path}, line {number}: {quoted(line)} is not a pair of tokens. "
                "Fetch the file again."
            )
        pairs.append((parts[0], parts[1]))
    return pairs


def _read_fast(path: Path, *, is_encoder: bool) -> BytePairs:
    """Read tokenizer.json."""
    file = TokenizerFile(path, SUPPORTED)
    model = file.part("model")
    # files of before this key
    if model.get("type", "BPE") != "BPE":
        raise file.refuse("model.type", model["type"])
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise file.refuse(f"model.{key}", model[key])
    ids = file.ids()
    settings = word_settings(file)
    if is_encoder and settings:
        raise file.refuse("pre_tokenizer", settings)
    if "prepend_scheme" in settings:
        settings |= _fallback(file, model, ids)
    elif model.get("byte_fallback"):
        raise file.refuse("model.byte_fallback", True)
    elif (unknown := model.get("unk_token")) and not ALPHABET.keys() <= ids.keys():
        raise file.refuse("model.unk_token, with bytes that are no token,", unknown)
    if model.get("ignore_merges"):
        settings["ignore_merges"] = True
    pairs = _read_pairs(file, model)
    if settings.get("pre_tokenizer") == "none" and _words_end_at_spaces(ids, pairs):
        settings["pre_tokenizer"] = "spaces"
    if is_encoder:
        return BytePairs(ids, pairs, file.added(), file.ends(), settings)
    settings |= file.frame()
    return BytePairs(ids, pairs, file.added(), settings=settings)


def _read_pairs(file: TokenizerFile, model: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges, each a pair or "left right"."""
    pairs = []
    for rank, merge in enumerate(file.items(model.get("merges"), "model.merges")):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(parts, list)
            or len(parts) != 2
            or not all(isinstance(token, str) for token in parts)
        ):
            raise CheckpointError(
                f"{file.path}: merge {rank}, {quoted(merge)}, is not a pair of tokens. "
                "Fetch the file again."
            )
        pairs.append((parts[0], parts[1]))
    return pairs


def _fallback(
    file: TokenizerFile, model: dict[str, Any], ids: dict[str, Any]
) -> dict[str, Any]:
    """What stands for a character that is no token: its bytes, or the unknown one."""
    if any(" " in token for token in ids):
        token = next(token for token in ids if " " in token)
        raise file.refuse("model.vocab, with a blank in a token,", token)
    if model.get("byte_fallback"):
        names = [f"<0x{byte:02X}>" for byte in range(256)]
        for name in names:
            if name not in ids:
                raise file.refuse("model.byte_fallback, without the token", name)
        return {"byte_token_ids": [ids[name] for name in names]}
    unknown = model.get("unk_token")
    if unknown is None:
        return {}
    if not isinstance(unknown, str) or unknown not in ids:
        raise file.refuse("model.unk_token, which is no token,", unknown)
    return {"unk_token_id": ids[unknown], "fuse_unk": bool(model.get("fuse_unk"))}


def _words_end_at_spaces(ids: dict[str, Any], pairs: list[tuple[str, str]]) -> bool:
    """Whether no merge joins a blank to what is before it, but other blanks.

    A text is then cut before its blanks, with the same tokens: short words are
    encoded once for all texts.
    """
    return SPACE in ids and all(
        not right.startswith(SPACE) or not left.strip(SPACE) for left, right in pairs
    )
