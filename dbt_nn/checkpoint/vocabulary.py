"""What tokenizers of every kind share: their files, token ids and special tokens.

The files are read by hand. `tokenizers` does not say which options a file asks for,
and sets no bound to what a hostile file takes; tests compare with it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dbt_nn.checkpoint.files import MIB, CheckpointError, quoted, read_bytes, read_json

# GPT-2's has 1.4 MB, Llama 3's 17 MB; JSON takes up to 25 times its size once it is
# parsed.
MAX_TOKENIZER_BYTES = 24 * MIB
NO_TOKENIZER = "load with --no-tokenizer and give token ids as prompts"
# The files that may name special tokens, and say how texts are tokenized.
SETTINGS = ("special_tokens_map.json", "tokenizer_config.json")
# The special tokens that transformers names, and the first and last of a text.
KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer, as tables.

    Attributes:
        vocabulary: (token_id, the token's bytes, special) by token_id. Special
            tokens are matched whole in a text and are never made by merges.
        merges: of a byte-level BPE, (left_id, right_id, rank, token_id) by rank;
            0 is merged first.
        characters: of a WordPiece, (first_codepoint, last_codepoint, replacement,
            isolated): what its words have for each character of a text. None
            stands for the character itself; an isolated one is a word.
        scores: of a Unigram, token_id -> the log-probability of a piece.
        replacements: of a Unigram, (text, what its normalizer has for it).
        settings: what the checkpoint's config says of it.

    """

    vocabulary: list[tuple[int, bytes, bool]]
    merges: list[tuple[int, int, int, int]] = field(default_factory=list)
    characters: list[tuple[int, int, str | None, bool]] = field(default_factory=list)
    scores: dict[int, float] = field(default_factory=dict)
    replacements: list[tuple[str, str]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


class TokenizerFile:
    """A tokenizer.json: its parts, each of the type that it has to be."""

    def __init__(self, path: Path, supported: str) -> None:
        """Read it; `supported` is the kind of tokenizer that refusals name."""
        self.path = path
        self.supported = supported
        self.content = read_json(path, MAX_TOKENIZER_BYTES)

    def refuse(self, what: str, value: object) -> CheckpointError:
        """The error for a value that is not supported."""
        return CheckpointError(
            f"{self.path}: {what} is {quoted(value)}, but only {self.supported} is "
            f"supported. Choose another checkpoint, or {NO_TOKENIZER}."
        )

    def part(self, name: str) -> dict[str, Any]:
        """An object, empty where it is null or missing."""
        value = self.content.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.refuse(name, value)
        return value or {}

    def items(self, values: object, what: str) -> list[Any]:
        """A list, empty for null."""
        if values is not None and not isinstance(values, list):
            raise self.refuse(what, values)
        return values or []

    def ids(self) -> dict[str, Any]:
        """The model's vocabulary: token -> id."""
        ids = self.part("model").get("vocab")
        if not isinstance(ids, dict):
            raise self.refuse("model.vocab", type(ids).__name__)
        return ids

    def added(self) -> dict[str, dict[str, Any]]:
        """The added tokens by their text: id, and flags such as lstrip."""
        added = {}
        for entry in self.items(self.content.get("added_tokens"), "added_tokens"):
            if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
                raise CheckpointError(
                    f"{self.path}: the added token {quoted(entry)} has no content. "
                    "Fetch the file again."
                )
            added[entry["content"]] = entry
        return added

    def frame(self) -> dict[str, list[int]]:
        """The ids that the post-processor puts before and after a single text.

        By prefix_token_ids and suffix_token_ids, which only a tokenizer with such
        tokens has.
        """
        after = self.part("post_processor")
        steps = [after] if after else []
        if after.get("type") == "Sequence":
            steps = self.items(after.get("processors"), "post_processor.processors")
        before: list[int] = []
        behind: list[int] = []
        for step in steps:
            kind = step.get("type") if isinstance(step, dict) else None
            if kind == "ByteLevel":
                continue
            if kind in ("BertProcessing", "RobertaProcessing"):
                cls, sep = (self._id_of_pair(step.get(key)) for key in ("cls", "sep"))
                first, last = [cls], [sep]
            elif kind == "TemplateProcessing":
                first, last = self._template(step)
            else:
                raise self.refuse("post_processor.type", kind)
            before, behind = first + before, behind + last
        found = {"prefix_token_ids": before, "suffix_token_ids": behind}
        return {key: ids for key, ids in found.items() if ids}

    def _id_of_pair(self, pair: object) -> int:
        """The id in a token and its id."""
        match pair:
            case [str(), token_id] if type(token_id) is int:
                return token_id
        raise self.refuse("post_processor", pair)

    def _template(self, template: dict[str, Any]) -> tuple[list[int], list[int]]:
        """The ids before and after the text in a template for one text."""
        single, specials = template.get("single"), template.get("special_tokens")
        parts: list[list[int]] = [[]]
        for step in self.items(single, "post_processor.single"):
            match step:
                case {"Sequence": _}:
                    parts.append([])
                case {"SpecialToken": {"id": str(name)}}:
                    entry = specials.get(name) if isinstance(specials, dict) else None
                    ids = entry.get("ids") if isinstance(entry, dict) else None
                    if not isinstance(ids, list) or not all(
                        type(i) is int for i in ids
                    ):
                        raise self.refuse("post_processor.special_tokens", specials)
                    parts[-1] += ids
                case _:
                    raise self.refuse("post_processor.single", single)
        if len(parts) != 2:
            raise self.refuse("post_processor.single", single)
        return parts[0], parts[1]

    def ends(self) -> tuple[str | None, str | None]:
        """The first and last token that the post-processor puts around a text.

        None where it puts none, as for a language network.
        """
        after = self.part("post_processor")
        kind = after.get("type", "ByteLevel")
        if kind == "ByteLevel":
            return None, None
        if kind in ("BertProcessing", "RobertaProcessing"):
            found = []
            for key in ("cls", "sep"):
                value = after.get(key)
                token = value[0] if isinstance(value, list) and value else None
                if not isinstance(token, str):
                    raise self.refuse(f"post_processor.{key}", value)
                found.append(token)
            return found[0], found[1]
        if kind != "TemplateProcessing":
            raise self.refuse("post_processor.type", kind)
        single = after.get("single")
        steps = single if isinstance(single, list) else [single]
        tokens = [self._special_token(step, single) for step in steps]
        if tokens == [None]:
            return None, None
        if [token is None for token in tokens] != [False, True, False]:
            raise self.refuse("post_processor.single", single)
        return tokens[0], tokens[2]

    def _special_token(self, step: object, single: object) -> str | None:
        """The special token that a template's step puts there; None for the text."""
        kinds = step if isinstance(step, dict) else {}
        if "Sequence" in kinds:
            return None
        value = kinds.get("SpecialToken")
        token = value.get("id") if isinstance(value, dict) else None
        if not isinstance(token, str):
            raise self.refuse("post_processor.single", single)
        return token


def utf8(text: str, where: Path) -> bytes:
    """A token's text as bytes."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise CheckpointError(
            f"{where} holds the token {quoted(text)}, which is not valid Unicode. "
            "Fetch the tokenizer again."
        ) from None


def read_text(path: Path) -> str:
    """A text file of tokens."""
    try:
        return read_bytes(path, MAX_TOKENIZER_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{path} is not UTF-8 (byte {error.start}). Fetch it again."
        ) from None


def check_ids(ids: dict[str, Any], where: Path, rows: int) -> None:
    """Refuse an id that is no number, that the embedding lacks, or given twice."""
    owner: dict[int, str] = {}
    for text, token_id in ids.items():
        if type(token_id) is not int or token_id < 0:
            raise CheckpointError(
                f"{where} gives token {quoted(text)} the id {quoted(token_id)}, where "
                "a whole number is needed. Fetch the tokenizer again."
            )
        if token_id >= rows:
            raise CheckpointError(
                f"{where} gives token {quoted(text)} the id {token_id}, but the "
                f"embedding has {rows} rows: the vocabulary does not fit the "
                f"checkpoint. Use the tokenizer that belongs to it, or {NO_TOKENIZER}."
            )
        if token_id in owner:
            raise CheckpointError(
                f"{where} gives the id {token_id} to two tokens, "
                f"{quoted(owner[token_id])} and {quoted(text)}. Fetch the tokenizer "
                "again."
            )
        owner[token_id] = text


class Settings:
    """The files beside a vocabulary that name special tokens and options."""

    def __init__(self, folder: Path) -> None:
        """Read those that the folder has."""
        self.files = {
            path: read_json(path, MAX_TOKENIZER_BYTES)
            for path in (folder / name for name in SETTINGS)
            if path.is_file()
        }
        path = folder / "added_tokens.json"
        self._ids = read_json(path, MAX_TOKENIZER_BYTES) if path.is_file() else {}

    def token(self, kind: str) -> str | None:
        """The text of a special token, one of KINDS, if a file says it."""
        found = None
        for content in self.files.values():
            value = content.get(f"{kind}_token")
            value = value.get("content") if isinstance(value, dict) else value
            found = value if isinstance(value, str) else found
        return found

    def value(self, key: str) -> Any:
        """What the last file that has this key says of it; None without one."""
        found = [content[key] for content in self.files.values() if key in content]
        return found[-1] if found else None

    def added(self) -> dict[str, dict[str, Any]]:
        """The added tokens by their text, as TokenizerFile.added has them."""
        result = {text: {"id": token_id} for text, token_id in self._ids.items()}
        for content in self.files.values():
            decoder = content.get("added_tokens_decoder")
            for number, entry in decoder.items() if isinstance(decoder, dict) else ():
                text = entry.get("content") if isinstance(entry, dict) else None
                if isinstance(text, str) and re.fullmatch("[0-9]{1,9}", number):
                    result[text] = {**entry, "id": int(number)}
        return result

    def entries(self) -> list[tuple[str, dict[str, Any]]]:
        """The added tokens, and the special tokens that have flags."""
        found = [*self.added().items()]
        for content in self.files.values():
            for kind in KINDS:
                value = content.get(f"{kind}_token")
                text = value.get("content") if isinstance(value, dict) else None
                if isinstance(text, str):
                    found.append((text, value))
        return found

    def special_tokens(
        self, ids: dict[str, Any], defaults: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """Find special tokens that only these files name: text -> id.

        Those without an id are left out: nothing in the checkpoint could make them.

        Args:
            ids: the known tokens.
            defaults: tokens that are special whatever the files say.

        """
        result = {text: entry["id"] for text, entry in self.added().items()}
        texts: list[object] = []
        for content in self.files.values():
            texts += [content.get(f"{kind}_token") for kind in KINDS]
            extra = content.get("additional_special_tokens")
            texts += extra if isinstance(extra, list) else []
        known = {**ids, **result}
        for text in [*texts, *defaults]:
            text = text.get("content") if isinstance(text, dict) else text
            if isinstance(text, str) and text in known:
                result[text] = known[text]
        return result


def stripping_tokens(
    entries: list[tuple[str, dict[str, Any]]], ids: dict[str, int]
) -> dict[str, list[int]]:
    """The special tokens that take the white space before them, or after them.

    Args:
        entries: the added tokens, as often as files name them.
        ids: all tokens.

    Returns:
        Their ids by lstrip_token_ids and rstrip_token_ids, which only a tokenizer
        with such tokens has.

    """
    found = {
        f"{flag}_token_ids": sorted(
            {ids[text] for text, entry in entries if entry.get(flag) and text in ids}
        )
        for flag in ("lstrip", "rstrip")
    }
    return {key: token_ids for key, token_ids in found.items() if token_ids}


def end_tokens(
    named: tuple[str | None, str | None],
    settings: Settings,
    defaults: tuple[str, str],
    ids: dict[str, int],
    where: Path,
) -> dict[str, int]:
    """The ids of the tokens that an encoder's texts begin and end with.

    Args:
        named: by the post-processor.
        settings: the files that name them otherwise.
        defaults: what transformers takes where no file names them.
        ids: all tokens.
        where: the vocabulary, for the error.

    """
    result = {}
    for kind, text, default in zip(("cls", "sep"), named, defaults, strict=True):
        text = text or settings.token(kind) or default
        if text not in ids:
            raise CheckpointError(
                f"{where} lacks the token {quoted(text)}, which each text needs as "
                f"its {kind}_token. Use the tokenizer that belongs to the checkpoint, "
                f"or {NO_TOKENIZER}."
            )
        result[f"{kind}_token_id"] = ids[text]
    return result
