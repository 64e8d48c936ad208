"""Unigram tokenizers as XLM-RoBERTa's, trained small by `tokenizers`."""

from __future__ import annotations

import functools
import json
import lzma
import random
from pathlib import Path
from typing import Any

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from dbt_nn.database import PROJECT
from random_texts import random_texts
from word_pieces import MARKS, austen

ROWS = 3_000
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
IN_TEXTS = [*SPECIALS, "<mask", " <mask> ", "<s></s>", "＜unk＞", "＜s＞", "▁", "▁▁"]
# What the charsmap joins, drops or replaces, with what makes clusters of it.
CLUSTERS = [
    *"e\u0301\u0323\u0327\u0345ﬁ™©①ªµ\u200d\u0600\u06dd\u070fﾞｶ\u3099か",
    *"\u0627\u0653\u064b\u0915\u0958\u094d\u093c\u200c\ufe0f\r\n\x01\x0b\x85\u2003",
    *"\u1100\u1161\u11a8가ㅏ\U0001f1fa\U0001f3fd\u212b\u1e9b\u0e33\u0eb3",
]


def charsmap() -> bytes:
    """SentencePiece's nmt_nfkc, as the library of version 0.2.1 writes it in models."""
    return lzma.decompress((PROJECT / "tests/data/nmt_nfkc.charsmap.xz").read_bytes())


def hard_texts(count: int, seed: int) -> list[str]:
    """Random texts with the special tokens, and marks between their letters."""
    rng = random.Random(seed)
    texts = random_texts(count, seed, IN_TEXTS)
    for i in range(0, count, 2):
        letters = list(texts[i])
        for _ in range(rng.randint(1, 16)):
            letters.insert(
                rng.randint(0, len(letters)), rng.choice([*MARKS, *CLUSTERS, *CLUSTERS])
            )
        texts[i] = "".join(letters)
    return texts


@functools.cache
def trained() -> str:
    """Train it on Austen and on all scripts: its tokenizer.json."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Precompiled(charsmap())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=ROWS, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False
    )
    runs = ["-" * n for n in range(1, 40)] * 20
    tokenizer.train_from_iterator(
        [austen()[:200_000], *hard_texts(300, seed=1), *runs], trainer
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    content = json.loads(tokenizer.to_str())
    model, flags = content["model"], content["added_tokens"][0]
    pieces = dict(reversed(model["vocab"]))
    model["vocab"] = [[text, pieces[text]] for text in dict(model["vocab"])]
    content["added_tokens"] = [
        flags | {"id": n, "content": text, "lstrip": text == "<mask>"}
        for n, text in enumerate(SPECIALS)
    ]
    return json.dumps(content)


def tokenizer_of(
    normalizer: Any = None, pre_tokenizer: Any = None, **model: Any
) -> Tokenizer:
    """The trained tokenizer, with other parts."""
    content = json.loads(trained())
    content["model"] |= model
    tokenizer = Tokenizer.from_str(json.dumps(content))
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    return tokenizer


def one_blank(content: str) -> Any:
    """The normalizer that transformers puts after Precompiled."""
    return normalizers.Replace(Regex(" {2,}"), content)


def precompiled(*others: Any) -> Any:
    """SentencePiece's normalizer, and others after it."""
    return normalizers.Sequence([normalizers.Precompiled(charsmap()), *others])


def save(folder: Path, tokenizer: Tokenizer) -> Path:
    """Save its tokenizer.json."""
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
