"""WordPiece tokenizers, trained by `tokenizers`, and texts that are hard for them."""

from __future__ import annotations

import functools
import gzip
import json
import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer
from tokenizers.normalizers import BertNormalizer

from dbt_nn.database import PROJECT
from random_texts import random_texts

ROWS = 4_000
SPECIALS = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
IN_TEXTS = [*SPECIALS, "[SEP", "[mask]", "[CLS][SEP]", " [MASK] ", "[[PAD]]", "##"]
# Combining marks of several classes, letters that decompose or have odd cases,
# compatibility ideographs, Hangul, controls and what is removed.
MARKS = [
    *"\u0301\u0323\u0308\u0327\u0345\u05bc\u064b\u093f\u094d\u0e31\u20dd\u3099\u302a",
    *"ÅéỆǅİıẞßſK≠ΰͅΣςſ\u212b\u1fbe\u1fc1\u037e\u1fef\u0344",
    *"한글각\u1100\u1161\u11a8豈切\U0002f800\u3007\u3005",
    *"\x01\x7f\x85\xad\u200b\u200d\u2060\ufeff\ufffd\ufffe\U000e0001\ue000\U000f0000",
    *"\u2028\u2029\u3000\u00a0\u1680\u180e\u061c",
    *"¿«»§¶‘’“”…—₤€·‿⁀。、！？；：＂٪؟।",
]
VARIANTS = {
    "uncased": {"lowercase": True},
    "cased": {"lowercase": False},
    "uncased-accents": {"lowercase": True, "strip_accents": False},
    "cased-stripped": {"lowercase": False, "strip_accents": True},
    "no-chinese": {"lowercase": True, "handle_chinese_chars": False},
    "not-clean": {"lowercase": True, "clean_text": False},
}


def austen() -> str:
    """Six novels as one text."""
    with gzip.open(PROJECT / "data" / "austen.txt.gz", "rt", encoding="utf-8") as file:
        return file.read()


def hard_texts(count: int, seed: int) -> list[str]:
    """Random texts with BERT's special tokens, and marks between their letters."""
    rng = random.Random(seed)
    texts = random_texts(count, seed, IN_TEXTS)
    for i in range(0, count, 2):
        letters = list(texts[i])
        for _ in range(rng.randint(1, 12)):
            letters.insert(rng.randint(0, len(letters)), rng.choice(MARKS))
        texts[i] = "".join(letters)
    return texts


@functools.cache
def vocabulary() -> str:
    """Train a WordPiece on Austen and on all scripts: its tokenizer.json.

    Its texts are there as they are and without case and accents, so that it has
    pieces for every way to normalize them.
    """
    tokenizer = BertWordPieceTokenizer(lowercase=False, strip_accents=False)
    texts = [austen()[:300_000], *hard_texts(3_000, seed=1)]
    tokenizer.train_from_iterator(
        [*texts, *map(BertNormalizer(lowercase=True).normalize_str, texts)],
        vocab_size=ROWS,
        min_frequency=1,
        limit_alphabet=2_000,
        show_progress=False,
        special_tokens=SPECIALS,
    )
    return tokenizer.to_str()


def trained(variant: str) -> str:
    """The tokenizer.json of a WordPiece with the normalizer of a variant."""
    content = json.loads(vocabulary())
    content["normalizer"] |= {"strip_accents": None, **VARIANTS[variant]}
    return json.dumps(content)


def save(folder: Path, content: str | dict[str, Any]) -> Tokenizer:
    """Save a tokenizer.json, and open it by `tokenizers`."""
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    return Tokenizer.from_str(text)
