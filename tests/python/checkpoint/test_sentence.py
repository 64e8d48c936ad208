"""Sentence encoders and cross-encoders: what is read is what sentence-transformers has.

Checkpoints are tiny random networks that sentence-transformers and transformers save;
the expected values are attributes of what sentence-transformers loads of them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from dbt_nn.checkpoint.files import CheckpointError
from dbt_nn.checkpoint.folder import Checkpoint, open_checkpoint
from dbt_nn.checkpoint.sentence import SCORES, read_modules, sentence_keys
from dbt_nn.checkpoint.tensors import Tensor
from dbt_nn.generate import describe

WIDTH, POSITIONS = 8, 40
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##c"]
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": POSITIONS,
}

Content = dict[str, Any]


def save_tokenizer(folder: Path, **options: Any) -> None:
    folder.mkdir(exist_ok=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS), encoding="utf-8")
    BertTokenizerFast(vocab_file=str(vocabulary), **options).save_pretrained(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of transformers: no modules.json."""
    folder = tmp_path_factory.mktemp("bert")
    BertModel(BertConfig(**SIZES)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def saved(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four modules, as sentence-transformers saves them."""
    folder = tmp_path_factory.mktemp("saved")
    modules = [
        Transformer(str(bert), max_seq_length=17),
        Pooling(WIDTH, "cls"),
        Dense(WIDTH, 5),
        Normalize(),
    ]
    SentenceTransformer(
        modules=modules,
        prompts={"query": "query: ", "clustering": "Group: "},
        default_prompt_name="clustering",
        similarity_fn_name="dot",
    ).save(str(folder))
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return shutil.copytree(saved, tmp_path / "copy")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Give a function that saves a BertForSequenceClassification."""

    def save(labels: int, **options: Any) -> Path:
        folder = tmp_path_factory.mktemp("classifier")
        config = BertConfig(**SIZES, num_labels=labels, **options)
        BertForSequenceClassification(config).save_pretrained(folder)
        save_tokenizer(folder)
        return folder

    return save


def edit(path: Path, *without: str, **changes: Any) -> None:
    """Change keys of a JSON file, or make it."""
    content = json.loads(path.read_text()) if path.is_file() else {}
    content = {k: v for k, v in content.items() if k not in without}
    path.write_text(json.dumps(content | changes))


def read(folder: Path) -> Content:
    """What we read of a checkpoint beside its config.json."""
    modules = read_modules(folder)
    network = modules.transformer if modules else folder
    config = json.loads((network / "config.json").read_text())
    return sentence_keys(folder, modules, config, config["model_type"])


def activation(dense: Dense) -> str | None:
    name = type(dense.activation_function).__name__.lower()
    return None if name == "identity" else name


def check(folder: Path) -> Content:
    """Compare with what sentence-transformers loads; return what we read."""
    found, network = read(folder), SentenceTransformer(str(folder))
    kinds = {type(module): module for module in network}
    dense = kinds.get(Dense)
    assert found == {
        "max_seq_length": network.get_max_seq_length(),
        "do_lower_case": kinds[Transformer].do_lower_case,
        "pooling_mode": kinds[Pooling].pooling_mode,
        "normalize_embeddings": Normalize in kinds,
        "prompts": network.prompts,
        "default_prompt_name": network.default_prompt_name,
        "similarity_fn_name": network.similarity_fn_name,
        "dense_in_features": dense.in_features if dense else None,
        "dense_out_features": dense.out_features if dense else None,
        **(
            {"dense_bias": dense.bias, "dense_activation": activation(dense)}
            if dense
            else {}
        ),
    }
    return found


def check_weights(folder: Path) -> None:
    """Compare the weights with those that sentence-transformers loads."""
    state = SentenceTransformer(str(folder)).state_dict()
    with open_checkpoint(folder, tokenizer=False) as opened:
        stored = {name: tensor.read(0, tensor.size) for name, tensor in _used(opened)}
    assert "dense.linear.weight" in stored
    for name, values in stored.items():
        own = name.replace("dense.", "2.", 1) if "linear" in name else f"0.model.{name}"
        assert values.tolist() == state[own].flatten().tolist(), name


def _used(opened: Checkpoint) -> list[tuple[str, Tensor]]:
    names = {name for module in opened.modules for name, _ in module.tensors()}
    return [(name, opened.tensors[name]) for name in sorted(names)]


def test_weights(saved: Path) -> None:
    """Those of Dense come with those of the transformer."""
    check_weights(saved)


def test_loader_and_generator_agree(folder: Path) -> None:
    """Both see the same network, be it the folder or its config.json."""
    with open_checkpoint(folder, tokenizer=False) as opened:
        checked = opened.family.config_type.read(opened.config)
    for source in (folder, folder / "config.json"):
        network = describe(source, "net")
        assert network.config == checked
        assert "net_dense_linear" in network.models


def test_vector_in_spite_of_a_head(folder: Path) -> None:
    """Modules decide, whatever network the transformer was before."""
    edit(folder / "config.json", architectures=["BertForSequenceClassification"])
    assert check(folder)["pooling_mode"] == "cls"
    assert "net_embeddings" in describe(folder, "net").models


def test_all_modules(saved: Path) -> None:
    found = check(saved)
    assert (found["pooling_mode"], found["max_seq_length"]) == ("cls", 17)
    assert (found["dense_out_features"], found["dense_activation"]) == (5, "tanh")
    assert (found["normalize_embeddings"], found["default_prompt_name"]) == (
        True,
        "clustering",
    )


@pytest.mark.parametrize("mode", ["mean", "cls", "max", "lasttoken"])
def test_pooling(bert: Path, tmp_path: Path, mode: str) -> None:
    network = [Transformer(str(bert)), Pooling(WIDTH, mode)]
    SentenceTransformer(modules=network).save(str(tmp_path))
    assert check(tmp_path)["pooling_mode"] == mode


@pytest.mark.parametrize("name", ["Identity", "Tanh", "ReLU", "GELU", "Sigmoid"])
@pytest.mark.parametrize("bias", [True, False])
def test_dense(bert: Path, tmp_path: Path, name: str, bias: bool) -> None:
    dense = Dense(WIDTH, 3, bias, getattr(torch.nn, name)())
    network = [Transformer(str(bert)), Pooling(WIDTH), dense]
    SentenceTransformer(modules=network).save(str(tmp_path))
    found = check(tmp_path)
    assert found["dense_bias"] == bias
    assert found["dense_activation"] == (None if name == "Identity" else name.lower())
    check_weights(tmp_path)


def old_layout(folder: Path, place: str = "") -> None:
    """The files as sentence-transformers 3 and 4 write them.

    These are those of sentence-transformers/all-MiniLM-L6-v2 and of LaBSE on the Hub.
    """
    names = ["Transformer", "Pooling", "Dense", "Normalize"]
    modules = [
        {
            "idx": n,
            "name": str(n),
            "path": f"{n}_{name}" if n else place,
            "type": f"sentence_transformers.models.{name}",
        }
        for n, name in enumerate(names)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").unlink()
    edit(
        folder / "1_Pooling" / "config.json",
        word_embedding_dimension=WIDTH,
        pooling_mode_cls_token=False,
        pooling_mode_mean_tokens=True,
        pooling_mode_max_tokens=False,
        pooling_mode_mean_sqrt_len_tokens=False,
    )
    for name in ("module_input_name", "module_output_name"):
        edit(folder / "2_Dense" / "config.json", name)
    shutil.rmtree(folder / "3_Normalize")
    (folder / "sentence_bert_config.json").unlink()
    edit(folder / "sentence_bert_config.json", max_seq_length=25, do_lower_case=True)
    edit(folder / "config_sentence_transformers.json", "model_type", "prompts")
    edit(folder / "config_sentence_transformers.json", default_prompt_name=None)


def test_old_layout(folder: Path) -> None:
    old_layout(folder)
    found = check(folder)
    assert (found["pooling_mode"], found["max_seq_length"]) == ("mean", 25)
    assert found["do_lower_case"]


@pytest.mark.parametrize("is_cased", [False, True])
@pytest.mark.parametrize("lower", [False, True])
def test_lower_case(bert: Path, tmp_path: Path, is_cased: bool, lower: bool) -> None:
    """Each character becomes what sentence-transformers' tokenizer makes of it."""
    folder = shutil.copytree(bert, tmp_path / "copy")
    save_tokenizer(folder, do_lower_case=not is_cased)
    SentenceTransformer(
        modules=[Transformer(str(folder)), Pooling(WIDTH)]
    ).save_pretrained(str(tmp_path / "saved"))
    edit(tmp_path / "saved" / "sentence_bert_config.json", do_lower_case=lower)
    network = SentenceTransformer(str(tmp_path / "saved"))
    normalizer = network.tokenizer.backend_tokenizer.normalizer
    with open_checkpoint(tmp_path / "saved") as opened:
        table = opened.tokenizer.characters
    assert normalizer.normalize_str("A") == ("A" if is_cased and not lower else "a")
    for character in "aAÄäÉΣİẞ\u01c5\u0301ﬁ":
        found = [row[2] for row in table if row[0] <= ord(character) <= row[1]]
        made = character if not found or found[0] is None else found[0]
        assert made == normalizer.normalize_str(character), character


def test_lower_case_of_bytes(tmp_path: Path) -> None:
    """It is refused with a byte-level BPE, which has no such step."""
    RobertaModel(RobertaConfig(**SIZES, pad_token_id=1)).save_pretrained(tmp_path)
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    modules += [{"path": "1", "type": "sentence_transformers.models.Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1").mkdir()
    edit(tmp_path / "1" / "config.json", word_embedding_dimension=WIDTH)
    edit(tmp_path / "sentence_bert_config.json", do_lower_case=True)
    with pytest.raises(CheckpointError, match="do_lower_case = True"):
        open_checkpoint(tmp_path)


def test_transformer_in_a_folder(folder: Path) -> None:
    """Config, weights and tokenizer come from there."""
    place = folder / "0_Transformer"
    old_layout(folder, place.name)
    place.mkdir()
    for path in [*folder.iterdir()]:
        beside = ("modules.json", "config_sentence_transformers.json", "README.md")
        if path.is_file() and path.name not in beside:
            path.rename(place / path.name)
    assert check(folder)["max_seq_length"] == 25
    assert read_modules(folder).transformer == place
    check_weights(folder)


def test_no_pooling_key(folder: Path) -> None:
    """The mean, where a file has no pooling_mode, or old keys that are all false."""
    path = folder / "1_Pooling" / "config.json"
    edit(path, "pooling_mode")
    assert check(folder)["pooling_mode"] == "mean"
    edit(path, pooling_mode_cls_token=False, pooling_mode_mean_tokens=False)
    assert check(folder)["pooling_mode"] == "mean"
    edit(path, pooling_mode=["max"])
    assert check(folder)["pooling_mode"] == "max"


def test_include_prompt(folder: Path) -> None:
    """It says nothing where there are no prompts."""
    edit(folder / "1_Pooling" / "config.json", include_prompt=False)
    edit(
        folder / "config_sentence_transformers.json",
        prompts={"query": ""},
        default_prompt_name=None,
    )
    assert check(folder)["prompts"] == {"query": "", "document": ""}


# --- Without modules.json -----------------------------------------------------


@pytest.mark.parametrize("limit", [None, 12, 512, 1e30, 10**30])
@pytest.mark.parametrize("key", ["model_max_length", "max_len"])
def test_plain_checkpoint(
    bert: Path, tmp_path: Path, limit: float | None, key: str
) -> None:
    folder = shutil.copytree(bert, tmp_path / "copy")
    edit(folder / "tokenizer_config.json", "model_max_length", **{key: limit})
    # not looked at, without modules.json
    edit(folder / "sentence_bert_config.json", max_seq_length=5)
    edit(folder / "config_sentence_transformers.json", prompts={"query": "q: "})
    found = check(folder)
    assert found["max_seq_length"] == min(limit or POSITIONS, POSITIONS)
    assert (found["pooling_mode"], found["normalize_embeddings"]) == ("mean", False)


def test_no_tokenizer_config(bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bert, tmp_path / "copy")
    (folder / "tokenizer_config.json").unlink()
    assert read(folder)["max_seq_length"] == POSITIONS


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_padded_positions(tmp_path: Path, padding: int) -> None:
    """A RoBERTa has no position for one more token than we read."""
    torch.manual_seed(0)
    network = RobertaModel(RobertaConfig(**SIZES, pad_token_id=padding)).eval()
    network.save_pretrained(tmp_path)
    longest = read(tmp_path)["max_seq_length"]
    network(torch.full((1, longest), 5))
    with pytest.raises((IndexError, RuntimeError)):
        network(torch.full((1, longest + 1), 5))
    edit(tmp_path / "tokenizer_config.json", model_max_length=longest - 1)
    assert read(tmp_path)["max_seq_length"] == longest - 1


# --- Classifiers --------------------------------------------------------------


def check_classifier(folder: Path) -> Content:
    """Compare with what CrossEncoder loads; return what we read."""
    found, network = read(folder), CrossEncoder(str(folder))
    assert found == {
        "max_seq_length": network.max_seq_length,
        "do_lower_case": False,
        "num_labels": network.num_labels,
        "id2label": {str(n): name for n, name in network.config.id2label.items()},
        "problem_type": network.config.problem_type,
        "activation_fn": type(network.activation_fn).__name__.lower(),
    }
    return found


@pytest.mark.parametrize("labels", [1, 2, 3])
@pytest.mark.parametrize("is_saved", [False, True])
def test_classifier(
    classifier: Callable[..., Path], tmp_path: Path, labels: int, is_saved: bool
) -> None:
    """From transformers, and as sentence-transformers saves it."""
    folder = classifier(labels)
    if is_saved:
        CrossEncoder(str(folder), max_length=20).save_pretrained(str(tmp_path))
        folder = tmp_path
    found = check_classifier(folder)
    assert found["num_labels"] == labels
    assert found["activation_fn"] == ("sigmoid" if labels == 1 else "identity")


@pytest.mark.parametrize("name", ["Sigmoid", "Identity"])
@pytest.mark.parametrize("key", ["new", "old", "saved"])
def test_activation_of_a_cross_encoder(
    classifier: Callable[..., Path], tmp_path: Path, name: str, key: str
) -> None:
    folder = classifier(1)
    path = next(path for path in SCORES if path.endswith(f".{name}"))
    if key == "new":
        own = {"activation_fn": path, "version": "4.1.0"}
        edit(folder / "config.json", sentence_transformers=own)
    elif key == "old":
        edit(folder / "config.json", sbert_ce_default_activation_function=path)
    else:
        network = CrossEncoder(str(folder), activation_fn=getattr(torch.nn, name)())
        network.save_pretrained(str(tmp_path))
        folder = tmp_path
    assert check_classifier(folder)["activation_fn"] == name.lower()


def test_labels(classifier: Callable[..., Path]) -> None:
    names = {0: "contradiction", 1: "entailment", 2: "neutral"}
    folder = classifier(
        3,
        id2label=names,
        label2id={name: n for n, name in names.items()},
        problem_type="multi_label_classification",
    )
    assert check_classifier(folder)["id2label"]["1"] == "entailment"
    edit(folder / "config.json", "id2label", "label2id")
    assert read(folder)["num_labels"] == 2


# --- What is refused ----------------------------------------------------------

LAYER_NORM = {"idx": 4, "name": "4", "path": "4_LayerNorm"}
LAYER_NORM["type"] = "sentence_transformers.models.LayerNorm"
SENTENCE = "config_sentence_transformers.json"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]}, "'cls', 'mean'"),
        ("1_Pooling/config.json", {"pooling_mode": "weightedmean"}, "'weightedmean'"),
        ("1_Pooling/config.json", {"pooling_mode": 3}, "mean, cls, lasttoken and max"),
        ("1_Pooling/config.json", {"include_prompt": False}, "has prompts"),
        ("1_Pooling/config.json", {"include_prompt": "no"}, "true and false are"),
        ("1_Pooling/config.json", {"embedding_dimension": 9}, "8, the hidden_size"),
        ("2_Dense/config.json", {"use_residual": True}, "only false is"),
        ("2_Dense/config.json", {"in_features": 9}, "8, the hidden_size"),
        ("2_Dense/config.json", {"out_features": 0}, "1 to 16,000 are"),
        ("2_Dense/config.json", {"activation_function": "os.system"}, "'os.system'"),
        (
            "2_Dense/config.json",
            {"module_input_name": "token_embeddings"},
            'only "sentence_embedding" is',
        ),
        ("3_Normalize/config.json", {"module_output_name": "x"}, "module_output_name"),
        ("sentence_bert_config.json", {"max_seq_length": 0}, "a whole number above 0"),
        ("sentence_bert_config.json", {"do_lower_case": 1}, "true and false are"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "fill-mask"),
        ("sentence_bert_config.json", {"query_length": 32}, "query_length"),
        (
            "sentence_bert_config.json",
            {"processing_kwargs": {"text": {"max_length": 5}}},
            "processing_kwargs",
        ),
        (
            "sentence_bert_config.json",
            {"tokenizer_args": {"model_max_length": 5}},
            "model_max_length",
        ),
        (
            "sentence_bert_config.json",
            {"modality_config": {"text": {"method": "get_text_features"}}},
            "text by forward and last_hidden_state is",
        ),
        (SENTENCE, {"prompts": {"query": 3}}, "an object of texts is"),
        (SENTENCE, {"prompts": {"a\0": "b"}}, "zero character"),
        (SENTENCE, {"default_prompt_name": "passage"}, "'clustering'"),
        (SENTENCE, {"similarity_fn_name": "maxsim"}, "cosine, dot, euclidean"),
        (SENTENCE, {"truncate_dim": 4}, "truncate_dim"),
        (SENTENCE, {"model_type": "SparseEncoder"}, "SparseEncoder"),
        (SENTENCE, {"model_type": "CrossEncoder"}, "neither a Pooling"),
        ("tokenizer_config.json", {"model_max_length": "long"}, "a number above 0"),
        ("tokenizer_config.json", {"model_max_length": -1}, "a number above 0"),
        ("tokenizer_config.json", {"truncation_side": "left"}, 'only "right" is'),
    ],
)
def test_refused(folder: Path, file: str, change: Content, message: str) -> None:
    edit(folder / file, **change)
    with pytest.raises(CheckpointError) as caught:
        read(folder)
    assert message in str(caught.value)
    assert Path(file).name in str(caught.value) or "neither" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: [*m, LAYER_NORM], "LayerNorm' after Normalize"),
        (lambda m: [m[0], m[1], m[3], m[2]], "Dense' after Normalize"),
        (lambda m: [*m[:3], m[2], m[3]], "Dense' after Dense"),
        (lambda m: m[1:], "Pooling' first"),
        (lambda m: m[:1], "neither a Pooling"),
        (lambda m: [], "has no module"),
        (lambda m: {"0": m[0]}, "should hold a JSON list"),
        (lambda m: [3], "None first"),
        (lambda m: [{**m[0], "type": "mine.Transformer"}], "'mine.Transformer'"),
        (lambda m: [{**m[0], "path": "../other"}], "name of a folder"),
        (lambda m: [{**m[0], "path": "/etc"}], "name of a folder"),
        (lambda m: [{**m[0], "path": None}], "name of a folder"),
        (
            lambda m: [
                {
                    "path": "",
                    "type": "sentence_transformers.base.modules.router.Router",
                }
            ],
            "Router' first",
        ),
    ],
)
def test_refused_modules(folder: Path, change: Any, message: str) -> None:
    path = folder / "modules.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(CheckpointError, match=message):
        read(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id2label": {"0": "a", "2": "b"}}, '"0" … "1"'),
        ({"id2label": {}}, "id2label"),
        ({"id2label": ["a", "b"]}, "id2label"),
        ({"problem_type": "ranking"}, "regression, single_label"),
        ({"sbert_ce_default_activation_function": "mine.f"}, "'mine.f'"),
        (
            {
                "sbert_ce_default_activation_function": (
                    "torch.nn.modules.activation.Tanh"
                )
            },
            "torch.nn.modules.activation.Sigmoid are",
        ),
        ({"sentence_transformers": {"activation_fn": 3}}, "activation_fn = 3"),
    ],
)
def test_refused_classifier(
    classifier: Callable[..., Path], change: Content, message: str
) -> None:
    folder = classifier(2)
    edit(folder / "config.json", **change)
    with pytest.raises(CheckpointError) as caught:
        read(folder)
    assert message in str(caught.value)
