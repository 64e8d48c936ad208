"""The files of an encoder's byte-level BPE, as RoBERTa's: its special tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, ByteLevelBPETokenizer
from tokenizers.processors import RobertaProcessing, TemplateProcessing
from transformers import RobertaTokenizer

from dbt_nn.checkpoint.files import CheckpointError
from dbt_nn.checkpoint.tokenizer import read_tokenizer
from dbt_nn.checkpoint.vocabulary import Tokenizer

ROWS = 400
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@pytest.fixture
def trained() -> ByteLevelBPETokenizer:
    """RoBERTa's kind of tokenizer, without a post-processor."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        ["Emma Woodhouse, née Ωmega, 你好 — handsome, clever, and rich"] * 3,
        vocab_size=300,
        special_tokens=SPECIALS,
        show_progress=False,
    )
    return tokenizer


def read(folder: Path, *, is_encoder: bool = True) -> Tokenizer:
    found = read_tokenizer(folder, {}, ROWS, is_encoder=is_encoder)
    assert found is not None
    return found


def check(folder: Path, reference: Any) -> None:
    """Compare with a tokenizer of transformers."""
    found = read(folder)
    begin, end = reference("")["input_ids"]
    assert found.settings["cls_token_id"] == begin
    assert found.settings["sep_token_id"] == end
    for flag in ("lstrip", "rstrip"):
        assert found.settings.get(f"{flag}_token_ids", []) == [
            token_id
            for token_id, token in sorted(reference.added_tokens_decoder.items())
            if getattr(token, flag)
        ]
    special = {token.decode(): i for i, token, special in found.vocabulary if special}
    assert special == {
        token: reference.convert_tokens_to_ids(token)
        for token in reference.all_special_tokens
    }
    merges = json.loads(reference.backend_tokenizer.to_str())["model"]["merges"]
    ids = reference.get_vocab()
    assert [(left, right) for left, right, *_ in found.merges] == [
        (ids[left], ids[right]) for left, right in merges
    ]


def test_saved_by_transformers(trained: ByteLevelBPETokenizer, tmp_path: Path) -> None:
    """tokenizer.json with RobertaProcessing."""
    content = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in content["merges"]]
    mask = AddedToken("<mask>", lstrip=True, special=True)
    reference = RobertaTokenizer(vocab=content["vocab"], merges=merges, mask_token=mask)
    reference.save_pretrained(tmp_path)
    assert reference.added_tokens_decoder[reference.mask_token_id].lstrip
    check(tmp_path, reference)


def test_vocab_json(trained: ByteLevelBPETokenizer, tmp_path: Path) -> None:
    """vocab.json and merges.txt: the usual names, or those of the settings."""
    trained.save_model(str(tmp_path))
    check(tmp_path, RobertaTokenizer.from_pretrained(tmp_path))
    mask = {"content": "<mask>", "lstrip": True, "rstrip": True}
    names = {"cls_token": "<pad>", "sep_token": "E", "mask_token": mask}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(names))
    ids = trained.get_vocab()
    assert read(tmp_path).settings == {
        "cls_token_id": ids["<pad>"],
        "sep_token_id": ids["E"],
        "lstrip_token_ids": [ids["<mask>"]],
        "rstrip_token_ids": [ids["<mask>"]],
    }


@pytest.mark.parametrize("kind", ["roberta", "template"])
def test_post_processors(
    trained: ByteLevelBPETokenizer, tmp_path: Path, kind: str
) -> None:
    """Both ways to say it; a language network has them around a prompt."""
    ids = {token: trained.token_to_id(token) for token in ("<pad>", "<mask>")}
    trained._tokenizer.post_processor = {
        "roberta": RobertaProcessing(
            ("<mask>", ids["<mask>"]), ("<pad>", ids["<pad>"])
        ),
        "template": TemplateProcessing(
            single="<pad> $A <mask>", special_tokens=list(ids.items())
        ),
    }[kind]
    trained.save(str(tmp_path / "tokenizer.json"))
    settings = read(tmp_path).settings
    ends = [settings["cls_token_id"], settings["sep_token_id"]]
    assert ends == trained.encode("").ids
    settings = read(tmp_path, is_encoder=False).settings
    assert [*settings["prefix_token_ids"], *settings["suffix_token_ids"]] == ends


@pytest.mark.parametrize(
    ("single", "culprit"),
    [
        ("$A <mask>", "post_processor.single"),
        ("<pad> $A $A", "post_processor.single"),
        ("<pad> <pad> $A <mask>", "post_processor.single"),
    ],
)
def test_odd_templates(
    trained: ByteLevelBPETokenizer, tmp_path: Path, single: str, culprit: str
) -> None:
    """Only one token before a text and one after it are put there."""
    ids = [(token, trained.token_to_id(token)) for token in ("<pad>", "<mask>")]
    trained._tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=ids
    )
    trained.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=culprit):
        read(tmp_path)


def test_another_kind(tmp_path: Path) -> None:
    """A WordPiece's vocab.txt is no byte-level BPE."""
    (tmp_path / "vocab.txt").write_text("[UNK]")
    with pytest.raises(CheckpointError, match=r"vocab\.txt"):
        read(tmp_path)
