"""Sentence encoders and classifiers of two layers, as their libraries save them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import BertWordPieceTokenizer
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertTokenizerFast,
)

from dbt_nn import generate as generate_network
from runs import copy_bare_project

WIDTH, POSITIONS, LENGTH = 16, 48, 32
SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": POSITIONS,
}
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PROMPTS = {"query": "query: ", "cluster": "Group these by topic: "}
SAMPLE = [
    "It is a truth universally acknowledged, that a single man in possession of a "
    "good fortune, must be in want of a wife.",
    "query: what is the topic of these words? Group them by the truth: 0123456789",
    "abcdefghijklmnopqrstuvwxyz äöüß 中文 - . ; ! ' \"",
]


def random_network(seed: int, *, is_classifier: bool = False, **options: Any) -> Any:
    """A BERT of random weights, biases and norms too."""
    torch.manual_seed(seed)
    auto = AutoModelForSequenceClassification if is_classifier else AutoModel
    network = auto.from_config(BertConfig(**SIZES | options)).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, parameter.mean().item(), 0.3)
    return network


def save_transformer(folder: Path, seed: int, **options: Any) -> Path:
    """A network with a tokenizer that is trained on a few sentences."""
    folder.mkdir()
    trained = BertWordPieceTokenizer()
    trained.train_from_iterator(
        SAMPLE, vocab_size=250, min_frequency=1, special_tokens=SPECIALS
    )
    trained.save_model(str(folder))
    BertTokenizerFast.from_pretrained(folder, model_max_length=LENGTH).save_pretrained(
        folder
    )
    options.setdefault("vocab_size", trained.get_vocab_size())
    random_network(seed, **options).save_pretrained(folder)
    return folder


def save_sentence_encoder(folder: Path, seed: int = 0, **options: Any) -> Path:
    """What sentence-transformers saves: mean pooling, vectors of length 1, prompts."""
    plain = folder.with_name(f"{folder.name}-transformer")
    transformer = Transformer(
        str(save_transformer(plain, seed, **options)), max_seq_length=LENGTH
    )
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    SentenceTransformer(
        modules=[transformer, pooling, Normalize()], prompts=PROMPTS
    ).save(str(folder))
    return folder


def project_of(folder: Path, networks: dict[str, Path]) -> Path:
    """The project with the models of these checkpoints, and no others."""
    project = copy_bare_project(folder)
    for name, checkpoint in networks.items():
        files = generate_network.generate(checkpoint, name)
        generate_network.write(project / "models" / name, files)
    return project
