"""A diffusers pipeline: where its parts are, and its noise schedule."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dbt_nn.checkpoint.config import (
    MAX_CONFIG_BYTES,
    check_value,
    completed,
    unsupported,
)
from dbt_nn.checkpoint.files import CheckpointError, quoted, read_json
from dbt_nn.networks.config import Config, whole

MAX_TIMESTEPS = 10_000
PIPELINE_INDEX = "model_index.json"
PIPELINES = ("DDPMPipeline", "DDIMPipeline")


class Scheduler(Config):
    """A scheduler's arguments and their defaults, which the file may leave out."""

    num_train_timesteps: int = whole(1000, most=MAX_TIMESTEPS)
    beta_start: float = Field(0.0001, gt=0, description="a number above 0 is")
    beta_end: float = Field(0.02, gt=0, lt=1, description="a number between 0 and 1 is")
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    trained_betas: None = Field(None, description="only null is")
    clip_sample: bool = True
    clip_sample_range: float = Field(1.0, gt=0, description="a number above 0 is")
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    thresholding: Literal[False] = False
    dynamic_thresholding_ratio: Any = 0.995
    sample_max_value: Any = 1.0
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"
    steps_offset: int = whole(0, least=0)
    rescale_betas_zero_snr: Literal[False] = False
    # diffusers ignores it by now and would take the output for noise
    predict_epsilon: Literal[True] = Field(
        True, exclude=True, description='prediction_type = "sample" says the same'
    )

    def check(self, where: str) -> None:
        """Check what depends on another key."""
        if self.beta_start > self.beta_end:
            supported = f"a number up to beta_end, {self.beta_end}, is"
            raise unsupported("beta_start", self.beta_start, supported, where)
        last = self.num_train_timesteps - 1
        if self.steps_offset > last:
            supported = f"0 to {last}, less than num_train_timesteps, are"
            raise unsupported("steps_offset", self.steps_offset, supported, where)


class DDPM(Scheduler):
    """Ho et al. 2020: the sampler that draws new noise at each step."""

    variance_type: Literal["fixed_small", "fixed_large"] = "fixed_small"


class DDIM(Scheduler):
    """Song et al. 2020: the sampler that may leave steps out."""

    set_alpha_to_one: bool = True


SCHEDULERS: dict[str, type[Scheduler]] = {"DDPMScheduler": DDPM, "DDIMScheduler": DDIM}


@dataclass(frozen=True)
class Parts:
    """Where a checkpoint's parts are.

    Attributes:
        network: the folder of config.json and the weights.
        root: the folder that the scheduler belongs to, a pipeline's if any.
        scheduler: the class of the scheduler that the pipeline asks for.

    """

    network: Path
    root: Path
    scheduler: str | None


def find_parts(folder: Path) -> Parts:
    """Find the parts of a checkpoint: a pipeline's folder, or one folder of all.

    As in diffusers, a pipeline's part is in a folder of its name, or beside
    model_index.json if there is none. A pipeline's own `unet` folder stands for
    the pipeline.

    Raises:
        CheckpointError: a pipeline of another kind.

    """
    if (folder / PIPELINE_INDEX).is_file():
        network = folder / "unet"
        return Parts(
            network if network.is_dir() else folder, folder, check_pipeline(folder)
        )
    place = folder.resolve()
    above = place.parent
    if place.name == "unet" and (
        (above / PIPELINE_INDEX).is_file() or (above / "scheduler").is_dir()
    ):
        return Parts(folder, above, check_pipeline(above))
    return Parts(folder, folder, None)


def check_pipeline(folder: Path) -> str | None:
    """Check model_index.json, if there is one.

    Returns:
        The class of the scheduler that the pipeline samples with.

    Raises:
        CheckpointError: a pipeline of another kind.

    """
    path = folder / PIPELINE_INDEX
    if not path.is_file():
        return None
    content = read_json(path, MAX_CONFIG_BYTES)
    kind = content.get("_class_name")
    supported = f"Choose one of: {', '.join(PIPELINES)}."
    # [null, null] is an optional part that is absent; what is no list is an option
    parts = {
        name: value
        for name, value in content.items()
        if not name.startswith("_") and isinstance(value, list) and any(value)
    }
    others = [name for name in parts if name not in ("unet", "scheduler")]
    if others:
        raise CheckpointError(
            f"{path} says that the pipeline {quoted(kind)} has the part(s) "
            f"{', '.join(map(quoted, others[:5]))}{' ...' if others[5:] else ''}, "
            "which are not supported: only a UNet2DModel that computes pixels and its "
            f"scheduler are (latent diffusion needs a VAE). {supported}"
        )
    for name in ("unet", "scheduler"):
        value = parts.get(name)
        if value is None or len(value) != 2 or value[0] != "diffusers":
            raise CheckpointError(
                f"{path} says {quoted(value)} for {name}, where a class of diffusers "
                f"is needed. {supported}"
            )
    if parts["unet"][1] != "UNet2DModel":
        raise CheckpointError(
            f"{path} says that the unet is of class {quoted(parts['unet'][1])}, which "
            f"is not supported (UNet2DModel is). {supported}"
        )
    if kind not in PIPELINES:
        raise CheckpointError(
            f"{path} says that the pipeline is of class {quoted(kind)}, which is not "
            f"supported. {supported}"
        )
    # DDIMPipeline makes a DDIMScheduler of whatever it is given
    return "DDIMScheduler" if kind == "DDIMPipeline" else parts["scheduler"][1]


def read_scheduler(parts: Parts) -> dict[str, Any]:
    """Read scheduler_config.json, complete it with the defaults and check it.

    Raises:
        CheckpointError: missing, or a noise schedule that is not supported.

    """
    name = "scheduler_config.json"
    for folder in (parts.root / "scheduler", parts.root, parts.network):
        path = folder / name
        if path.is_file():
            break
    else:
        raise CheckpointError(
            f"{parts.root} has no {name}. The noise schedule is part of the "
            f"checkpoint: put the file that it was trained with in {parts.root} as "
            f"scheduler/{name} or {name}."
        )
    config = read_json(path, MAX_CONFIG_BYTES)
    check_value(config, path)
    kind = config.get("_class_name")
    if not isinstance(kind, str) or kind not in SCHEDULERS:
        raise CheckpointError(
            f"{path} is of class {quoted(kind)}, which is not supported "
            f"({' and '.join(SCHEDULERS)} are). If the pipeline's schedule is one of "
            "betas, save it with one of them: DDPMPipeline(unet=pipeline.unet, "
            "scheduler=DDIMScheduler.from_config(pipeline.scheduler.config))"
            ".save_pretrained(FOLDER), then load FOLDER."
        )
    if parts.scheduler not in (None, kind):
        raise CheckpointError(
            f"{parts.root / PIPELINE_INDEX} asks for a scheduler of class "
            f"{quoted(parts.scheduler)}, but {path} is of class {quoted(kind)}. Save "
            "the pipeline again, with diffusers: "
            "DiffusionPipeline.from_pretrained(SOURCE).save_pretrained(FOLDER), then "
            "load FOLDER."
        )
    config = completed(config, SCHEDULERS[kind].defaults())
    SCHEDULERS[kind].read(config, str(path)).check(str(path))
    return config
