"""Byte pair encodings of today's networks, trained small by `tokenizers`."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from word_pieces import austen, hard_texts

ROWS = 1_500
# As the families publish them.
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
OTHERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    "llama3": WORDS + r"\p{N}{1,3}" + OTHERS,
    "qwen2": WORDS + r"\p{N}" + OTHERS,
}
SPECIALS = {
    "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>"],
    "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "digits": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "llama2": ["<unk>", "<s>", "</s>"],
    "metaspace": ["<unk>", "<s>", "</s>"],
    "unknown": ["<unk>", "<s>", "</s>"],
}
BYTE_LEVEL = ("llama3", "qwen2", "digits")
KINDS = tuple(SPECIALS)


def byte_level(*before: Any, use_regex: bool = False) -> Any:
    """A pre-tokenizer that ends with the bytes of words."""
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    return pre_tokenizers.Sequence([*before, last]) if before else last


def split(kind: str, behavior: str = "isolated") -> Any:
    """A pre-tokenizer by one of the patterns."""
    return pre_tokenizers.Split(Regex(PATTERNS[kind]), behavior)


def untrained(kind: str) -> Tokenizer:
    """Everything but the vocabulary."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    if kind in BYTE_LEVEL:
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    else:
        tokenizer.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
    match kind:
        case "llama3":
            tokenizer.pre_tokenizer = byte_level(split(kind))
        case "qwen2":
            tokenizer.normalizer = normalizers.NFC()
            tokenizer.pre_tokenizer = byte_level(split(kind))
        case "digits":
            digits = pre_tokenizers.Digits(individual_digits=True)
            tokenizer.pre_tokenizer = byte_level(digits, use_regex=True)
        case "llama2":
            tokenizer.normalizer = normalizers.Sequence(
                [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            )
        case "metaspace":
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
                prepend_scheme="first", split=False
            )
        case "unknown":
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return tokenizer


@functools.cache
def trained(kind: str) -> str:
    """Train it on Austen and on all scripts: its tokenizer.json."""
    tokenizer = untrained(kind)
    if kind not in BYTE_LEVEL:  # SentencePiece's words end at blanks
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    texts = [austen()[:100_000], *hard_texts(300, seed=1)]
    trainer = trainers.BpeTrainer(
        vocab_size=ROWS,
        special_tokens=SPECIALS[kind],
        show_progress=False,
        limit_alphabet=300,
        initial_alphabet=(
            pre_tokenizers.ByteLevel.alphabet() if kind in BYTE_LEVEL else []
        ),
    )
    tokenizer.train_from_iterator(texts, trainer)
    content = json.loads(tokenizer.to_str())
    parts = json.loads(untrained(kind).to_str())
    content |= {key: parts[key] for key in ("normalizer", "pre_tokenizer")}
    model = content["model"]
    if kind in ("llama2", "metaspace"):
        model |= {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
        for byte in range(256):
            model["vocab"][f"<0x{byte:02X}>"] = len(model["vocab"])
        runs = ["▁▁", "▁▁▁▁", "▁▁▁▁▁▁▁▁"]
        for token in runs:
            half = token[: len(token) // 2]
            model["merges"].insert(0, [half, half])
            model["vocab"].setdefault(token, len(model["vocab"]))
    if kind == "unknown":
        model |= {"fuse_unk": True, "unk_token": "<unk>"}
    return with_frame(kind, json.dumps(content))


def with_frame(kind: str, content: str) -> str:
    """Add what the families put before a text."""
    tokenizer = Tokenizer.from_str(content)
    bos = {"llama3": "<|begin_of_text|>", "llama2": "<s>", "metaspace": "<s>"}.get(kind)
    if bos:
        frame = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
        if kind == "llama3":
            frame = processors.Sequence([processors.ByteLevel(), frame])
        tokenizer.post_processor = frame
    return tokenizer.to_str()


def tokenizer_of(
    kind: str, tokens: list[AddedToken] | None = None, **model: Any
) -> Tokenizer:
    """The trained tokenizer, with more added tokens, or other options of its model."""
    content = json.loads(trained(kind))
    content["model"] |= model
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_tokens(tokens or [])
    return tokenizer


def save(folder: Path, tokenizer: Tokenizer) -> Path:
    """Write tokenizer.json."""
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
