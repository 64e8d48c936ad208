"""A byte-level BPE tokenizer, from tokenizer.json or vocab.json and merges.txt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dbt_nn.checkpoint.files import CheckpointError, quoted, read_json
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

SUPPORTED = "a byte-level BPE as GPT-2's"


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable characters for the 256 bytes: character -> byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }


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
        CheckpointError: incomplete, not a byte-level BPE as GPT-2's, or an id
            that the embedding does not have.

    """
    fast, slow = folder / "tokenizer.json", folder / "vocab.json"
    merges_txt = folder / "merges.txt"
    ends: tuple[str | None, str | None] = (None, None)
    if fast.is_file():
        where = fast
        ids, pairs, entries, ends = _read_fast(fast, is_encoder=is_encoder)
    elif slow.is_file() and merges_txt.is_file():
        where = slow
        ids = read_json(slow, MAX_TOKENIZER_BYTES)
        pairs, entries = _read_merges(merges_txt), {}
    elif slow.is_file() or merges_txt.is_file():
        missing = merges_txt if slow.is_file() else slow
        raise CheckpointError(
            f"{missing} is missing: the tokenizer needs vocab.json and merges.txt. "
            f"Fetch it, or {NO_TOKENIZER}."
        )
    elif (folder / "vocab.txt").is_file():
        raise CheckpointError(
            f"{folder} has vocab.txt, but a network of this kind needs {SUPPORTED}: "
            "tokenizer.json, or vocab.json and merges.txt. Fetch them, or "
            f"{NO_TOKENIZER}."
        )
    else:
        return None

    settings = Settings(folder)
    _check_settings(settings)
    # transformers' tokenizers have these whatever the files say
    always = ("<s>", "</s>", "<unk>", "<pad>", "<mask>")
    always = always if is_encoder else ("<|endoftext|>",)
    added = {text: entry.get("id") for text, entry in entries.items()}
    added |= settings.special_tokens({**ids, **added}, always)
    ids = {**ids, **added}
    check_ids(ids, where, rows)
    made = {ids.get(left + right) for left, right in pairs}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token_id = config.get(key)
        for text, number in ids.items():
            if number == token_id and len(text) > 1 and number not in made:
                added[text] = number

    alphabet = byte_alphabet()
    vocabulary = []
    for text, token_id in ids.items():
        if text not in added and all(character in alphabet for character in text):
            token = bytes(alphabet[character] for character in text)
        else:
            # as `tokenizers` decodes what is not made of its alphabet
            token = utf8(text, where)
        vocabulary.append((token_id, token, text in added))
    for_config = {}
    if is_encoder:
        for_config = {
            **end_tokens(ends, settings, ("<s>", "</s>"), ids, where),
            **stripping_tokens([*entries.items(), *settings.entries()], ids),
        }
    return Tokenizer(
        sorted(vocabulary), _merge_ids(pairs, ids, where), settings=for_config
    )


def _check_settings(settings: Settings) -> None:
    for path, content in settings.files.items():
        if (
            content.get("add_prefix_space") is True
            or content.get("add_bos_token") is True
        ):
            raise CheckpointError(
                f"{path} asks for add_prefix_space or add_bos_token, which are not "
                "supported: the token ids would differ. Set both to false if the "
                "checkpoint allows it, or load with --no-tokenizer."
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


def _read_fast(
    path: Path, *, is_encoder: bool
) -> tuple[
    dict[str, Any],
    list[tuple[str, str]],
    dict[str, dict[str, Any]],
    tuple[str | None, str | None],
]:
    """Read tokenizer.json: token ids, merges, added tokens, a text's ends."""
    file = TokenizerFile(path, SUPPORTED)
    model, before = file.part("model"), file.part("pre_tokenizer")
    if model.get("type", "BPE") != "BPE":
        raise file.refuse("model.type", model["type"])
    for key in ("byte_fallback", "ignore_merges", "dropout"):
        if model.get(key):
            raise file.refuse(f"model.{key}", model[key])
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise file.refuse(f"model.{key}", model[key])
    if file.part("normalizer"):
        raise file.refuse("normalizer", file.content["normalizer"])
    if before.get("type") != "ByteLevel":
        raise file.refuse("pre_tokenizer.type", before.get("type"))
    if before.get("add_prefix_space"):
        raise file.refuse("pre_tokenizer.add_prefix_space", True)
    if not before.get("use_regex", True):
        raise file.refuse("pre_tokenizer.use_regex", False)
    ends = file.ends()
    if ends != (None, None) and not is_encoder:
        raise file.refuse("post_processor", file.content["post_processor"])

    ids = file.ids()
    pairs = []
    for rank, merge in enumerate(file.items(model.get("merges"), "model.merges")):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(parts, list)
            or len(parts) != 2
            or not all(isinstance(token, str) for token in parts)
        ):
            raise CheckpointError(
                f"{path}: merge {rank}, {quoted(merge)}, is not a pair of tokens. "
                "Fetch the file again."
            )
        pairs.append((parts[0], parts[1]))
    return ids, pairs, file.added(), ends
