"""Texts that tokenizers stumble over, of every script and plane of Unicode."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence

ASCII = [chr(c) for c in range(0x20, 0x7F)]
SPACES = [*" \t\n\r\v\f\x1c\x1f\x85\xa0\u1680\u2003\u200b\u2028\u202f\u3000\ufeff"]
CONTRACTIONS = [
    quote + letters
    for quote in "'’"
    for letters in ("s", "t", "re", "ve", "m", "ll", "d", "S", "RE", "l", "x", "")
]
SPECIALS = ["<|endoftext|>", "<|endoftext", "<|", "|>", "<|endoftext|>!", " "]
NUMBERS = [*"0123456789", *"²½Ⅷ٣९〇一㊿𝟘", "_", "1_000", "3.14"]
SCRIPTS = [
    *"éÉñßœİıǅ",
    *"e\u0301a\u0308n\u0303\u0e31\u093f\u20dd",
    *"中文字漢あアㄅ한글",
    *"שלוםعربيلا\u200f\u202e\u0640",
    *"русскийαβγ",
]
EMOJI = ["👩‍👩‍👧‍👦", "🏳️‍🌈", "🇳🇿", "👍🏽", "☺️", "🧑🏿‍🚀", "🙂", "\u200d", "\ufe0f", "🏴󠁧󠁢󠁥󠁮󠁧󠁿"]
WORDS = ["the", " the", " Emma", "don't", "PostgreSQL", "ing", "  ", "\n\n", "--"]


def any_character(rng: random.Random) -> str:
    """Any code point that Postgres can hold, unassigned ones too."""
    limit = rng.choice([0x100, 0x3000, 0x10000, 0x20000, sys.maxunicode + 1])
    while True:
        code_point = rng.randrange(1, limit)
        if not 0xD800 <= code_point < 0xE000:
            return chr(code_point)


def random_texts(
    count: int, seed: int, specials: Sequence[str] = SPECIALS
) -> list[str]:
    """Texts of a few alphabets each, with runs of the same piece."""
    rng = random.Random(seed)
    alphabets = [
        ASCII, SPACES, CONTRACTIONS, specials, NUMBERS, SCRIPTS, EMOJI, WORDS, None
    ]  # fmt: skip
    texts = []
    for _ in range(count):
        chosen = rng.sample(alphabets, rng.randint(1, 4))
        text = ""
        for _ in range(rng.randint(0, 24)):
            alphabet = rng.choice(chosen)
            piece = rng.choice(alphabet) if alphabet else any_character(rng)
            text += piece * rng.choice([1, 1, 1, 1, 2, 3])
        texts.append(text)
    return texts
