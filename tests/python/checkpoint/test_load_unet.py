"""The loader on UNets: what it stores is what diffusers has, the rest is refused.

Checkpoints are tiny random UNet2DModels, made and saved by `diffusers`; the
expected values are its own.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import json
import math
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    PNDMScheduler,
    UNet2DModel,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_load_checkpoint import (
    edit,
    execute,
    f4,
    json_values,
    matrix,
    query,
    snapshot,
)

from dbt_nn import binary_copy, hub
from dbt_nn import load as command
from dbt_nn.checkpoint import scheduler as schedulers
from dbt_nn.checkpoint.files import CheckpointError
from dbt_nn.checkpoint.folder import open_checkpoint
from dbt_nn.cli import invoke
from dbt_nn.networks import modules
from dbt_nn.networks.unet2d import UNet2D, UNet2DConfig

State = dict[str, torch.Tensor]

# two levels, attention in the lower one and in the middle
TINY: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (4, 8),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "attention_head_dim": 4,
}
WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler_config.json"


# --- Checkpoints, made by diffusers -------------------------------------------


def network(**options: Any) -> UNet2DModel:
    """A random UNet, norms and biases included."""
    torch.manual_seed(0)
    unet = UNet2DModel(**{**TINY, **options})
    unet.load_state_dict({k: torch.randn_like(t) for k, t in unet.state_dict().items()})
    return unet


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, State]:
    """A pipeline that the tests copy, and its state_dict."""
    folder, unet = tmp_path_factory.mktemp("made") / "good", network()
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
    return folder, unet.state_dict()


@pytest.fixture
def state(made: tuple[Path, State]) -> State:
    """The state_dict of `folder`."""
    return dict(made[1])


@pytest.fixture
def folder(made: tuple[Path, State], tmp_path: Path) -> Path:
    """A good pipeline."""
    return shutil.copytree(made[0], tmp_path / "good")


# --- The database -------------------------------------------------------------


@pytest.fixture
def name(connection: Any) -> Iterator[str]:
    """A schema name of the test's own, dropped at the end."""
    schema = f"t_{uuid.uuid4().hex[:16]}"
    yield schema
    execute(connection, f"drop schema if exists {schema} cascade")


@pytest.fixture
def load(name: str, capsys: Any) -> Callable[..., SimpleNamespace]:
    """Run the command line on the test's database: exit code and both outputs."""

    def run(source: object, *options: str) -> SimpleNamespace:
        capsys.readouterr()
        code = invoke(command.main, [str(source), "--name", name, *options])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


def parameters(connection: Any, name: str, relation: str) -> dict[str, Any]:
    """Read config or scheduler."""
    return dict(query(connection, f"select parameter, value from {name}.{relation}"))


def tables(connection: Any, name: str) -> set[str]:
    """The tables of a schema."""
    rows = query(
        connection,
        "select relname from pg_class where relkind = 'r' "
        "and relnamespace = %s::regnamespace",
        name,
    )
    return {table for (table,) in rows}


def check_weights(connection: Any, name: str, state: State) -> None:
    """Compare every table with the state_dict, exactly."""
    modules = {tensor.rsplit(".", 1)[0] for tensor in state}
    relations = {module.replace(".", "_"): module for module in modules}
    assert tables(connection, name) == {*relations, "config", "tensors", "scheduler"}
    for relation, module in relations.items():
        weight, bias = state[f"{module}.weight"].float(), state[f"{module}.bias"]
        if weight.dim() == 1:
            [(stored, shift)] = query(
                connection,
                f"select weight::real[], bias::real[] from {name}.{relation}",
            )
            stored, shift = f4(stored), f4(shift)
        else:
            stored, shift = matrix(connection, name, relation)
        if weight.dim() == 4:
            weight = weight.permute(0, 2, 3, 1).flatten(1)
        np.testing.assert_array_equal(stored, weight.numpy(), relation)
        np.testing.assert_array_equal(shift, bias.float().numpy(), relation)


def plain(config: Any) -> dict[str, Any]:
    """A diffusers configuration as JSON has it, without private keys."""
    values = json.loads(json.dumps(dict(config)))
    return {key: value for key, value in values.items() if key[0] != "_"}


# --- What is stored -----------------------------------------------------------

NETWORKS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "one level": {
        "block_out_channels": (4,),
        "down_block_types": ("AttnDownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "sample_size": (3, 5),
        "add_attention": False,
        "in_channels": 1,
        "out_channels": 1,
    },
    "uneven": {
        "block_out_channels": (4, 4, 12),
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "sample_size": (12, 8),
        "time_embedding_dim": 6,
        "attention_head_dim": None,
        "attn_norm_num_groups": 3,
        "downsample_padding": 0,
        "center_input_sample": True,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "dropout": 0.1,
        "act_fn": "swish",
        "in_channels": 16,
        "out_channels": 16,
    },
}


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_weights(
    connection: Any,
    name: str,
    load: Callable[..., Any],
    tmp_path: Path,
    options: dict[str, Any],
) -> None:
    """Every module has its table, and every configuration its rows."""
    unet = network(**options)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "c")
    result = load(tmp_path / "c")
    assert (result.code, result.err) == (0, "")
    check_weights(connection, name, unet.state_dict())
    stored = parameters(connection, name, "config")
    assert stored == json.loads((tmp_path / "c/unet/config.json").read_text())
    assert stored["_class_name"] == "UNet2DModel"
    assert plain(stored) == plain(unet.config)
    manifest = query(connection, f"select tensor, shape, relation from {name}.tensors")
    assert {(tensor, tuple(shape)) for tensor, shape, _ in manifest} == {
        (tensor, tuple(t.shape)) for tensor, t in unet.state_dict().items()
    }
    assert {relation for *_, relation in manifest} == tables(connection, name) - {
        *["config", "tensors", "scheduler"]
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(
    connection: Any,
    name: str,
    load: Callable[..., Any],
    tmp_path: Path,
    dtype: torch.dtype,
) -> None:
    """Half-precision weights are stored as the float32 that they stand for."""
    unet = network().to(dtype)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "c")
    assert load(tmp_path / "c").code == 0
    check_weights(connection, name, unet.state_dict())


def test_chunks(
    connection: Any,
    name: str,
    load: Callable[..., Any],
    folder: Path,
    state: State,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wide convolutions are split in chunks and read in stripes, with no change."""
    monkeypatch.setattr(binary_copy, "CHUNK", 50)
    for module in (modules, binary_copy):
        monkeypatch.setattr(module, "BLOCK_BYTES", 1000)
    assert load(folder).code == 0
    rows = query(connection, f"select count(*) from {name}.mid_block_resnets_0_conv1")
    assert rows == [(2 * 8,)]
    check_weights(connection, name, state)


def test_order_of_a_patch(
    connection: Any, name: str, load: Callable[..., Any], folder: Path, state: State
) -> None:
    """A row times a patch in the order (y, x, channel) is torch's convolution."""
    assert load(folder).code == 0
    stored, bias = matrix(connection, name, "down_blocks_1_resnets_0_conv1")
    weight = state["down_blocks.1.resnets.0.conv1.weight"]
    outputs, channels, height, width = weight.shape
    assert (channels, height, width) == (4, 3, 3)
    for y, x, channel in itertools.product(range(3), range(3), range(channels)):
        place = (y * 3 + x) * channels + channel
        expected = weight[:, channel, y, x].numpy()
        np.testing.assert_array_equal(stored[:, place], expected)
    image = torch.randn(channels, 3, 3)
    expected = torch.nn.functional.conv2d(
        image[None], weight, state["down_blocks.1.resnets.0.conv1.bias"]
    )
    patch = image.permute(1, 2, 0).flatten().numpy()
    # float32 sums of 36 products in another order
    np.testing.assert_allclose(
        stored @ patch + bias, expected.numpy().reshape(outputs), atol=1e-5
    )


@pytest.mark.parametrize("scheduler", [DDPMScheduler, DDIMScheduler])
def test_defaults(
    connection: Any,
    name: str,
    load: Callable[..., Any],
    tmp_path: Path,
    scheduler: Any,
) -> None:
    """Keys that the files lack are stored with the values that diffusers takes."""
    unet = network()
    DDPMPipeline(unet, scheduler()).save_pretrained(tmp_path / "c")
    for path, source in (
        (tmp_path / "c/unet/config.json", UNet2DModel),
        (tmp_path / "c/scheduler" / SCHEDULER, scheduler),
    ):
        arguments = inspect.signature(source.__init__).parameters
        content = json.loads(path.read_text())
        kept = {
            key: value
            for key, value in content.items()
            if key not in arguments or value != default(arguments[key])
        }
        assert len(kept) < len(content) / 2
        path.write_text(json.dumps(kept))
    assert load(tmp_path / "c").code == 0
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "c")
    stored = parameters(connection, name, "config")
    assert plain(stored) == plain(pipeline.unet.config)
    stored = parameters(connection, name, "scheduler")
    assert plain(stored) == plain(pipeline.scheduler.config)
    assert stored["_class_name"] == scheduler.__name__


def default(argument: inspect.Parameter) -> Any:
    """An argument's default as JSON has it."""
    return json.loads(json.dumps(argument.default))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (UNet2DModel, UNet2DConfig.defaults()),
        (DDPMScheduler, schedulers.DDPM.defaults()),
        (DDIMScheduler, schedulers.DDIM.defaults()),
    ],
)
def test_all_defaults(source: Any, expected: dict[str, Any]) -> None:
    """The defaults are those of the arguments of the classes."""
    arguments = list(inspect.signature(source.__init__).parameters.values())[1:]
    assert {a.name: default(a) for a in arguments} == expected


def test_unset_keys(folder: Path) -> None:
    """As in diffusers, `_use_default_values` says that a key's value is not meant."""
    path = folder / "scheduler" / SCHEDULER
    edit(path, beta_end=0.5, beta_start=0.3, _use_default_values=["beta_end", 7])
    edit(path, beta_start=0.01)
    with open_checkpoint(folder) as opened:
        reference = DDPMScheduler.from_pretrained(folder / "scheduler").config
        for key, value in (("beta_end", 0.02), ("beta_start", 0.01)):
            assert opened.scheduler[key] == reference[key] == value


def test_old_attention_names(
    connection: Any, name: str, load: Callable[..., Any], folder: Path, state: State
) -> None:
    """Old names of attention are read as diffusers reads them."""
    old = {
        "to_q": "query",
        "to_k": "key",
        "to_v": "value",
        "to_out.0": "proj_attn",
    }
    renamed = state
    for new, former in old.items():
        renamed = {
            tensor.replace(f".{new}.", f".{former}."): t
            for tensor, t in renamed.items()
        }
    assert sum("query" in tensor for tensor in renamed) == 8
    save_file(renamed, folder / "unet" / WEIGHTS)
    loaded = UNet2DModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)
    assert all(torch.equal(t, state[k]) for k, t in loaded.state_dict().items())
    assert load(folder).code == 0
    check_weights(connection, name, state)


def test_second_name_of_a_sampler(folder: Path, state: State) -> None:
    """`Conv2d_0`, which diffusers ignores, is ignored, but does not replace `conv`."""
    path, sampler = folder / "unet" / WEIGHTS, "down_blocks.0.downsamplers.0"
    kept = state[f"{sampler}.conv.weight"]
    state[f"{sampler}.Conv2d_0.weight"] = kept + 1
    save_file(state, path)
    loaded = UNet2DModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)
    assert torch.equal(loaded.state_dict()[f"{sampler}.conv.weight"], kept)
    with open_checkpoint(folder) as opened:
        found = opened.tensors[f"{sampler}.conv.weight"]
        np.testing.assert_array_equal(found.read(0, found.size), kept.flatten().numpy())
    del state[f"{sampler}.conv.weight"]
    save_file(state, path)
    with pytest.raises(CheckpointError, match=rf"{sampler}\.conv\.weight is missing"):
        open_checkpoint(folder)


# --- Layouts of files ---------------------------------------------------------


def in_the_root(folder: Path) -> Path:
    """Lay out as google/ddpm-*: everything beside model_index.json."""
    for path in [*folder.glob("unet/*"), *folder.glob("scheduler/*")]:
        path.rename(folder / path.name)
    (folder / "unet").rmdir()
    (folder / "scheduler").rmdir()
    return folder


def without_index(folder: Path) -> Path:
    in_the_root(folder)
    (folder / "model_index.json").unlink()
    return folder


def mixed(folder: Path) -> Path:
    (folder / "scheduler" / SCHEDULER).rename(folder / SCHEDULER)
    (folder / "scheduler").rmdir()
    return folder


def unet_of_a_pipeline(folder: Path) -> Path:
    return folder / "unet"


def bare_with_scheduler(folder: Path) -> Path:
    for path in folder.glob("unet/*"):
        path.rename(folder / path.name)
    (folder / "unet").rmdir()
    (folder / "model_index.json").unlink()
    return folder


def sharded(folder: Path) -> Path:
    (folder / "unet" / WEIGHTS).unlink()
    network().save_pretrained(folder / "unet", max_shard_size="10KB")
    assert len(list(folder.glob("unet/*-of-*.safetensors"))) > 2
    return folder


LAYOUTS = [
    in_the_root,
    without_index,
    mixed,
    unet_of_a_pipeline,
    bare_with_scheduler,
    sharded,
]


@pytest.mark.parametrize("arrange", LAYOUTS, ids=[x.__name__ for x in LAYOUTS])
def test_layouts(folder: Path, state: State, arrange: Callable[[Path], Path]) -> None:
    """Every layout of files is the same checkpoint."""
    with open_checkpoint(folder) as opened:
        config, scheduler = opened.config, opened.scheduler
    place = arrange(folder)
    if (place / "model_index.json").exists():
        # so it is one for diffusers, too
        pipeline = DDPMPipeline.from_pretrained(place)
        found = pipeline.unet.state_dict()
        assert all(torch.equal(found[k], t) for k, t in state.items())
    with open_checkpoint(place) as opened:
        assert (opened.config, opened.scheduler) == (config, scheduler)
        assert opened.tensors.keys() == state.keys()
        for tensor, expected in state.items():
            values = opened.tensors[tensor].read(0, expected.numel())
            np.testing.assert_array_equal(values, expected.flatten().numpy())


def test_ddim_pipeline(
    connection: Any, name: str, load: Callable[..., Any], tmp_path: Path
) -> None:
    """A DDIMPipeline is read as well; its scheduler is the table's."""
    noise = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        set_alpha_to_one=False,
        steps_offset=1,
        num_train_timesteps=50,
        clip_sample_range=2,
    )
    DDIMPipeline(network(), noise).save_pretrained(tmp_path / "c")
    assert load(tmp_path / "c").code == 0
    stored = parameters(connection, name, "scheduler")
    assert plain(stored) == plain(noise.config)


# --- The database -------------------------------------------------------------


def test_if_changed(
    connection: Any, name: str, load: Callable[..., Any], folder: Path
) -> None:
    """--if-changed sees another noise schedule, but no default written out."""
    edit(folder / "scheduler" / SCHEDULER, clip_sample_range=...)
    assert load(folder).code == 0
    before = snapshot(connection, name)
    edit(folder / "scheduler" / SCHEDULER, clip_sample_range=1.0)
    assert "unchanged" in load(folder, "--if-changed").out
    assert snapshot(connection, name) == before
    edit(folder / "scheduler" / SCHEDULER, beta_end=0.03)
    assert load(folder, "--if-changed").code == 0
    assert parameters(connection, name, "scheduler")["beta_end"] == 0.03


def test_output_and_list(
    connection: Any, name: str, load: Callable[..., Any], folder: Path, capsys: Any
) -> None:
    """What was loaded is said: images and timesteps in place of tokens."""
    count = f"{UNet2DModel(**TINY).num_parameters():,}"
    out = load(folder).out
    assert out.startswith(f"Loaded {name}: UNet2DModel, {count} parameters, images of ")
    assert "8 x 8 pixels and 3 channel(s), 1,000 timesteps of a DDPMScheduler" in out
    assert invoke(command.main, ["--list"]) == 0
    [line] = [x for x in capsys.readouterr().out.splitlines() if name in x]
    assert line.split() == [name, "UNet2DModel", count, str(folder)]


# --- Errors: the culprit is named, nothing is left behind ---------------------

Spoil = Callable[[Path], "Path | None"]


def option(**changes: Any) -> Spoil:
    """Make an edit of the UNet's config.json."""

    def change(folder: Path) -> None:
        edit(folder / "unet/config.json", **changes)

    change.__name__ = "-".join(f"{k}={v!r}"[:50] for k, v in changes.items())
    return change


def noise(**changes: Any) -> Spoil:
    """Make an edit of scheduler_config.json."""

    def change(folder: Path) -> None:
        edit(folder / "scheduler" / SCHEDULER, **changes)

    change.__name__ = "-".join(f"{k}={v!r}"[:50] for k, v in changes.items())
    return change


def pipeline(**changes: Any) -> Spoil:
    """Make an edit of model_index.json."""

    def change(folder: Path) -> None:
        edit(folder / "model_index.json", **changes)

    change.__name__ = "-".join(f"{k}={v!r}"[:50] for k, v in changes.items())
    return change


def tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Spoil:
    """Make a change of a tensor, or remove it."""

    def spoil(folder: Path) -> None:
        state = load_file(folder / "unet" / WEIGHTS)
        state[name] = change(state.get(name))
        kept = {k: t.contiguous() for k, t in state.items() if t is not None}
        save_file(kept, folder / "unet" / WEIGHTS)

    spoil.__name__ = name
    return spoil


def with_value(value: float, *index: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(weight: torch.Tensor) -> torch.Tensor:
        weight = weight.clone()
        weight[index] = value
        return weight

    return change


def no_scheduler(folder: Path) -> None:
    shutil.rmtree(folder / "scheduler")


def bare_unet(folder: Path) -> Path:
    return shutil.copytree(folder / "unet", folder.parent / "bare")


def bare_folder_named_unet(folder: Path) -> Path:
    return shutil.copytree(folder / "unet", folder.parent / "elsewhere/unet")


def no_config(folder: Path) -> None:
    (folder / "unet/config.json").unlink()


def no_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def only_pickle(folder: Path) -> None:
    (folder / "unet" / WEIGHTS).rename(folder / "unet/diffusion_pytorch_model.bin")


def several_files(folder: Path) -> None:
    path = folder / "unet" / WEIGHTS
    shutil.copy(path, folder / "unet/a.safetensors")
    path.rename(folder / "unet/b.safetensors")


def broken_index(folder: Path) -> None:
    (folder / "model_index.json").write_text('{"unet": ')


def broken_scheduler(folder: Path) -> None:
    (folder / "scheduler" / SCHEDULER).write_text("[]")


def zero_in_scheduler(folder: Path) -> None:
    edit(folder / "scheduler" / SCHEDULER, note="a\0b")


def other_scheduler(folder: Path) -> None:
    noise = PNDMScheduler()
    unet = UNet2DModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)
    DDPMPipeline(unet, noise).save_pretrained(folder)


def unet_of_latent_diffusion(folder: Path) -> Path:
    edit(folder / "model_index.json", vqvae=["diffusers", "VQModel"])
    return folder / "unet"


def too_wide(folder: Path) -> None:
    edit(folder / "unet/config.json", block_out_channels=[400, 804])


MID = "mid_block.resnets.1.conv2.weight"
QUERY = "down_blocks.1.attentions.0.query.weight"
DDPM = ["DDPMPipeline, DDIMPipeline"]
UNET_ONLY = ["class 'UNet2DConditionModel'", "UNet2DModel is", *DDPM]
SCHEDULERS_ONLY = ["DDPMScheduler and DDIMScheduler are", "DDIMScheduler.from_config("]

ERRORS: list[tuple[Spoil, list[str]]] = [
    # layouts
    (no_scheduler, [f"has no {SCHEDULER}", "noise schedule", f"scheduler/{SCHEDULER}"]),
    (bare_unet, [f"bare has no {SCHEDULER}", f"bare as scheduler/{SCHEDULER} or"]),
    (bare_folder_named_unet, [f"unet has no {SCHEDULER}", "noise schedule"]),
    (no_config, ["unet/config.json is missing"]),
    (no_index, ["config.json is missing", "model_index.json"]),
    (only_pickle, ["no safetensors", "model.bin", "DDPMPipeline.from_pretrained("]),
    (several_files, ["2 safetensors files", f"no {WEIGHTS}.index.json"]),
    (broken_index, ["model_index.json is not valid JSON"]),
    (broken_scheduler, [f"{SCHEDULER} should hold a JSON object"]),
    (zero_in_scheduler, [SCHEDULER, r"a\x00b"]),
    # pipelines
    (pipeline(vae=["diffusers", "AutoencoderKL"]), ["'vae'", "needs a VAE", *DDPM]),
    (
        pipeline(text_encoder=["transformers", "CLIPTextModel"], vqvae=["x", "y"]),
        ["'text_encoder', 'vqvae'", "'DDPMPipeline' has the part(s)"],
    ),
    (unet_of_latent_diffusion, ["'vqvae'", "needs a VAE"]),
    (pipeline(unet=["diffusers", "UNet2DConditionModel"]), UNET_ONLY),
    (pipeline(unet=["my_module", "UNet2DModel"]), ["'my_module'", "for unet"]),
    (pipeline(unet=[None, None]), ["None for unet"]),
    (pipeline(scheduler=...), ["None for scheduler"]),
    (pipeline(_class_name="ScoreSdeVePipeline"), ["'ScoreSdeVePipeline'", *DDPM]),
    (pipeline(_class_name=...), ["class None", *DDPM]),
    (
        pipeline(scheduler=["diffusers", "DDIMScheduler"]),
        ["asks for a scheduler of class 'DDIMScheduler'", "class 'DDPMScheduler'"],
    ),
    (pipeline(_class_name="DDIMPipeline"), ["asks for", "'DDIMScheduler'", SCHEDULER]),
    # the UNet
    (option(_class_name="UNet2DConditionModel"), ["'UNet2DConditionModel'", "gpt2"]),
    (option(sample_size=None), ["sample_size = None", "[height, width]"]),
    (option(sample_size=...), ["sample_size = None"]),
    (option(sample_size=[8, 8, 8]), ["sample_size = [8, 8, 8]"]),
    (option(sample_size=[8, "8"]), ["sample_size = [8, '8']"]),
    (option(sample_size=0), ["sample_size = 0"]),
    (option(sample_size=40_000), ["sample_size = 40000"]),
    (option(sample_size=[8, 9]), ["sample_size = [8, 9]", "a multiple of 2"]),
    (option(in_channels=0), ["in_channels = 0", "1 to 16"]),
    (option(in_channels=17), ["in_channels = 17", "1 to 16"]),
    (option(out_channels=6), ["out_channels = 6", "as many as in_channels, 3"]),
    (option(center_input_sample=1), ["center_input_sample = 1", "true and false"]),
    (option(flip_sin_to_cos=None), ["flip_sin_to_cos = None"]),
    (option(add_attention="no"), ["add_attention = 'no'"]),
    (option(time_embedding_type="fourier"), ["time_embedding_type = 'fourier'"]),
    (option(time_embedding_dim=0), ["time_embedding_dim = 0"]),
    (option(time_embedding_dim=16_001), ["time_embedding_dim = 16001", "16,000"]),
    (option(freq_shift="0"), ["freq_shift = '0'"]),
    (option(freq_shift=2), ["freq_shift = 2", "half of the first width"]),
    (
        option(down_block_types=["DownBlock2D", "SkipDownBlock2D"]),
        ["down_block_types = 'SkipDownBlock2D'", "DownBlock2D and AttnDownBlock2D are"],
    ),
    (
        option(up_block_types=["AttnUpBlock2D", "ResnetUpsampleBlock2D"]),
        ["up_block_types = 'ResnetUpsampleBlock2D'", "UpBlock2D and AttnUpBlock2D are"],
    ),
    (option(up_block_types="UpBlock2D"), ["up_block_types = 'UpBlock2D'", "a list"]),
    (
        option(up_block_types=["UpBlock2D"] * 3),
        ["3 up_block_types", "2 block_out_channels"],
    ),
    (option(down_block_types=...), ["4 down_block_types", "2 block_out_channels"]),
    (option(mid_block_type=None), ["mid_block_type = None", '"UNetMidBlock2D"']),
    (option(mid_block_type="X"), ["mid_block_type = 'X'"]),
    (option(block_out_channels=[]), ["block_out_channels = []"]),
    (option(block_out_channels=[4, 1602]), ["[4, 1602]", "1,600", "16,000"]),
    (too_wide, ["[400, 804]", "up_blocks.0", "1,608", "1,600", "16,000"]),
    (option(layers_per_block=0), ["layers_per_block = 0"]),
    (option(layers_per_block=[1, 2]), ["layers_per_block = [1, 2]"]),
    (option(mid_block_scale_factor=2), ["mid_block_scale_factor = 2", "only 1 is"]),
    (option(mid_block_scale_factor=True), ["mid_block_scale_factor = True"]),
    (option(downsample_padding=2), ["downsample_padding = 2", "0 and 1 are"]),
    (option(downsample_type="resnet"), ["downsample_type = 'resnet'", '"conv"']),
    (option(upsample_type="resnet"), ["upsample_type = 'resnet'", '"conv"']),
    (option(act_fn="mish"), ["act_fn = 'mish'", "silu and swish are"]),
    (option(attention_head_dim=3), ["attention_head_dim = 3", "8 channels of down_"]),
    (option(attention_head_dim=0), ["attention_head_dim = 0"]),
    (option(norm_num_groups=8), ["norm_num_groups = 8", "every width, 4 among"]),
    (option(norm_num_groups=None), ["norm_num_groups = None"]),
    (option(attn_norm_num_groups=3), ["attn_norm_num_groups = 3", "mid block's 8"]),
    (option(norm_eps=0), ["norm_eps = 0"]),
    (option(resnet_time_scale_shift="scale_shift"), ["= 'scale_shift'", '"default"']),
    (option(class_embed_type="timestep"), ["class_embed_type = 'timestep'"]),
    (option(num_class_embeds=10), ["num_class_embeds = 10", "only null"]),
    (option(quantization_config={"bits": 4}), ["quantization_config"]),
    # the noise schedule
    (other_scheduler, [f"{SCHEDULER} is of class 'PNDMScheduler'", *SCHEDULERS_ONLY]),
    (noise(_class_name=...), [f"{SCHEDULER} is of class None", *SCHEDULERS_ONLY]),
    (noise(_class_name=["DDPMScheduler"]), ["class ['DDPMScheduler']"]),
    (noise(num_train_timesteps=0), [f"{SCHEDULER} says num_train_timesteps = 0"]),
    (noise(num_train_timesteps=10_001), ["num_train_timesteps = 10001", "10,000"]),
    (noise(beta_schedule="sigmoid"), ["beta_schedule = 'sigmoid'", "scaled_linear"]),
    (noise(beta_start=0), ["beta_start = 0"]),
    (noise(beta_start=0.1), ["beta_start = 0.1", "beta_end, 0.02"]),
    (noise(beta_end=1), ["beta_end = 1"]),
    (noise(trained_betas=[0.1]), ["trained_betas = [0.1]", "null"]),
    (noise(prediction_type="flow"), ["prediction_type = 'flow'", "v_prediction are"]),
    (noise(predict_epsilon=False), ["predict_epsilon = False", "prediction_type ="]),
    (noise(clip_sample=None), ["clip_sample = None"]),
    (noise(clip_sample_range=0), ["clip_sample_range = 0"]),
    (noise(variance_type="learned_range"), ["variance_type = 'learned_range'"]),
    (noise(thresholding=True), ["thresholding = True", "only false"]),
    (noise(timestep_spacing="log"), ["timestep_spacing = 'log'", "linspace are"]),
    (noise(steps_offset=-1), ["steps_offset = -1"]),
    (noise(steps_offset=1000), ["steps_offset = 1000", "0 to 999"]),
    (noise(rescale_betas_zero_snr=True), ["rescale_betas_zero_snr = True"]),
    # weights
    (
        tensor(MID, with_value(math.nan, 7, 5, 2, 1)),
        [f"{MID} holds nan", "[7, 5, 2, 1]"],
    ),
    (tensor(MID, with_value(math.inf, 0, 0, 0, 1)), [f"{MID} holds inf"]),
    (tensor(MID, lambda _: None), [f"{MID} is missing"]),
    (tensor(MID, lambda t: t.permute(0, 2, 3, 1)), [MID, "shape [8, 3, 3, 8]"]),
    (tensor(MID, lambda t: t.double()), [MID, "F64"]),
    (tensor(QUERY, lambda _: torch.zeros(8, 8)), [QUERY, "same weight twice"]),
    (tensor("time_proj.weight", lambda _: torch.zeros(8)), ["'time_proj.weight'"]),
    (option(layers_per_block=2), ["down_blocks.0.resnets.1.norm1.weight is missing"]),
    (option(layers_per_block=2_000_000_000), ["resnets.1.norm1.weight is missing"]),
    (option(add_attention=False), ["'mid_block.attentions.0.", "does not have"]),
]


@pytest.mark.parametrize(
    ("spoil", "culprits"), ERRORS, ids=[spoil.__name__ for spoil, _ in ERRORS]
)
def test_errors(
    connection: Any,
    name: str,
    load: Callable[..., Any],
    folder: Path,
    spoil: Spoil,
    culprits: list[str],
) -> None:
    """A bad checkpoint is refused by name and leaves nothing behind."""
    result = load(spoil(folder) or folder)
    assert result.code == 1
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    for culprit in culprits:
        assert culprit in result.err
    left = "select nspname from pg_namespace where nspname ~ %s"
    assert query(connection, left, f"^({name}|dbt_nn_loading_)") == []


def test_ddim_errors(folder: Path) -> None:
    """What only a DDIMScheduler has is checked for it alone."""
    edit(folder / "model_index.json", scheduler=["diffusers", "DDIMScheduler"])
    path = folder / "scheduler" / SCHEDULER
    edit(path, _class_name="DDIMScheduler", variance_type="learned")
    open_checkpoint(folder).close()
    edit(path, set_alpha_to_one=0)
    with pytest.raises(CheckpointError, match="set_alpha_to_one = 0"):
        open_checkpoint(folder)


def test_advice_for_another_scheduler(folder: Path) -> None:
    """What the error recommends works."""
    other_scheduler(folder)
    with pytest.raises(CheckpointError, match="PNDMScheduler"):
        open_checkpoint(folder)
    pipeline = DDPMPipeline.from_pretrained(folder)
    DDPMPipeline(
        unet=pipeline.unet,
        scheduler=DDIMScheduler.from_config(pipeline.scheduler.config),
    ).save_pretrained(folder / "new")
    with open_checkpoint(folder / "new") as opened:
        assert opened.scheduler["_class_name"] == "DDIMScheduler"


def test_advice_for_two_schedulers(folder: Path) -> None:
    """A pipeline that is saved again says its scheduler's class once."""
    pipeline(scheduler=["diffusers", "DDIMScheduler"])(folder)
    DDPMPipeline.from_pretrained(folder).save_pretrained(folder / "new")
    with open_checkpoint(folder / "new") as opened:
        assert opened.scheduler["_class_name"] == "DDIMScheduler"


def test_refused_option_keeps_the_earlier(
    connection: Any, name: str, load: Callable[..., Any], folder: Path
) -> None:
    """The checkpoint loaded before stays as it was."""
    assert load(folder).code == 0
    before = snapshot(connection, name)
    noise(thresholding=True)(folder)
    assert load(folder).code == 1
    assert snapshot(connection, name) == before


# --- The Hub ------------------------------------------------------------------

HUB_FILES = [
    "model_index.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet_ema/diffusion_pytorch_model.safetensors",
    "checkpoint-500/model.safetensors",
    "checkpoint-500/unet/diffusion_pytorch_model.safetensors",
    "samples/0.png",
]


@pytest.mark.parametrize("latent", [False, True])
def test_hub(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path, latent: bool
) -> None:
    """A pipeline's folders are fetched, after its model_index.json was checked."""
    import huggingface_hub

    if latent:
        edit(folder / "model_index.json", vae=["diffusers", "AutoencoderKL"])
    fetched: list[list[str]] = []

    def download(repo: str, **options: Any) -> str:
        kept = huggingface_hub.utils.filter_repo_objects(
            HUB_FILES,
            allow_patterns=options["allow_patterns"],
            ignore_patterns=options["ignore_patterns"],
        )
        fetched.append(list(kept))
        for file in {*fetched[-1]} & {*HUB_FILES[:4]}:
            target = tmp_path / "hub" / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / file, target)
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    if latent:
        with pytest.raises(CheckpointError, match="needs a VAE"):
            hub.fetch("org/name")
        assert fetched == [HUB_FILES[:1]]
        return
    with open_checkpoint(hub.fetch("org/name")) as opened:
        assert opened.family.kind == "UNet2DModel"
    assert fetched == [HUB_FILES[:1], HUB_FILES[:4]]


# --- Any configuration --------------------------------------------------------

FUZZ = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def architectures(draw: Any) -> dict[str, Any]:
    """A configuration that is supported."""
    levels, groups = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    head = draw(st.sampled_from([None, 1, 2]))
    width = st.integers(1, 4).map(lambda n: n * groups * (head or 1))
    channels = draw(st.integers(1, 16))
    size = st.integers(1, 3).map(lambda n: n << (levels - 1))

    def level(kind: str) -> st.SearchStrategy[list[str]]:
        kinds = st.sampled_from([kind, f"Attn{kind}"])
        return st.lists(kinds, min_size=levels, max_size=levels)

    return {
        "sample_size": draw(size | st.tuples(size, size).map(list)),
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": draw(st.lists(width, min_size=levels, max_size=levels)),
        "down_block_types": draw(level("DownBlock2D")),
        "up_block_types": draw(level("UpBlock2D")),
        "layers_per_block": draw(st.integers(1, 3)),
        "time_embedding_dim": draw(st.none() | st.integers(1, 9)),
        "attention_head_dim": head,
        "norm_num_groups": groups,
        "add_attention": draw(st.booleans()),
        "freq_shift": 0.5,
    }


@FUZZ
@given(options=architectures())
def test_any_layout(options: dict[str, Any]) -> None:
    """The tensors of any supported configuration are those of diffusers."""
    with torch.device("meta"):
        expected = UNet2DModel(**copy.deepcopy(options)).state_dict()
    found = UNet2D("net", UNet2DConfig.read(options)).modules
    shapes = dict(pair for module in found for pair in module.tensors())
    assert shapes == {tensor: tuple(t.shape) for tensor, t in expected.items()}
    assert len({module.relation for module in found}) == len(found)


@FUZZ
@given(
    changes=st.dictionaries(
        st.sampled_from([*UNet2DConfig.defaults(), "_use_default_values"]),
        json_values | st.lists(st.sampled_from(["UpBlock2D", 8]) | json_values),
        min_size=1,
        max_size=3,
    )
)
def test_fuzzed_config(folder: Path, changes: dict[str, Any]) -> None:
    """A config.json of any values is opened or refused, nothing else."""
    path = folder / "unet/config.json"
    good = path.read_text()
    try:
        edit(path, **changes)
        with contextlib.suppress(CheckpointError), open_checkpoint(folder) as opened:
            assert json.dumps(opened.config)
    finally:
        path.write_text(good)


@FUZZ
@given(
    changes=st.dictionaries(
        st.sampled_from([*schedulers.DDPM.defaults(), "_class_name"]),
        json_values | st.floats(0, 1) | st.integers(0, 2000),
        min_size=1,
        max_size=2,
    )
)
def test_fuzzed_scheduler(folder: Path, changes: dict[str, Any]) -> None:
    """A scheduler_config.json is refused, or diffusers reads the same from it."""
    path = folder / "scheduler" / SCHEDULER
    good = path.read_text()
    try:
        edit(path, **changes)
        try:
            opened = open_checkpoint(folder)
        except CheckpointError:
            return
        with opened:
            reference = DDPMScheduler.from_pretrained(path.parent)
            assert plain(opened.scheduler) == plain(reference.config)
            assert torch.isfinite(reference.alphas_cumprod).all()
    finally:
        path.write_text(good)


@FUZZ
@given(content=st.dictionaries(st.sampled_from(["_class_name", "unet"]), json_values))
def test_fuzzed_pipeline(folder: Path, content: dict[str, Any]) -> None:
    """A model_index.json of any values is opened or refused, nothing else."""
    path = folder / "model_index.json"
    good = path.read_text()
    try:
        edit(path, **content)
        with contextlib.suppress(CheckpointError), open_checkpoint(folder):
            pass
    finally:
        path.write_text(good)
