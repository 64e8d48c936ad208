"""Runs of a diffusion network in dbt, and what `diffusers` makes of the same.

The oracle reads the same checkpoint folder as the loader; the noise is fed to
it, since the database's is a function of seed and place and not torch's.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import Any

import numpy as np
import psycopg2
import pytest
import torch
import yaml
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.schedulers import scheduling_ddpm
from psycopg2 import sql
from psycopg2.extras import RealDictCursor

import database
from conftest import Dbt

PROJECT = database.PROJECT
UNET_TWIN = PROJECT / "checkpoints" / "ddpm-twin"

# Of a layer's largest absolute value: what sums in float32, in another order and
# over a hundred layers, may differ by.
LAYER_TOLERANCE = 1e-4

COLUMN_TYPES = {
    "image_id": "integer",
    "scheduler": "text",
    "num_inference_steps": "integer",
    "eta": "float8",
    "seed": "bigint",
}

# Beside a database and dbt, more threads wait for each other.
torch.set_num_threads(1)

Row = dict[str, Any]


def copy_bare_project(folder: Path) -> Path:
    """The project without a network, for one of the test's: dbt parses it fast."""
    for name in ("macros", "seeds", "tests/generic"):
        shutil.copytree(PROJECT / name, folder / name)
    path = PROJECT / "dbt_project.yml"
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    del settings["models"]["dbt_nn"]["unit_tests"]
    text = yaml.safe_dump(settings)
    (folder / path.name).write_text(text, encoding="utf-8")
    return folder


# --- The side of dbt ----------------------------------------------------------


@dataclass
class Ddpm:
    """`dbt run --select <network>` with requests from a table, in its own schema.

    The vars stay the same from run to run where they can: dbt then need not
    parse the project again.
    """

    dbt: Dbt
    connection: psycopg2.extensions.connection
    schema: str
    target: Path
    network: str = "ddpm"
    project: Path = PROJECT
    variables: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.drop()
        self.execute(f"create schema {self.schema}")

    def drop(self) -> None:
        for schema in (self.schema, self.layer_schema):
            self.execute(f"drop schema if exists {schema} cascade")

    @property
    def layer_schema(self) -> str:
        return f"{self.schema}_{self.network}"

    @property
    def environment(self) -> dict[str, str]:
        return {"DBT_NN_SCHEMA": self.schema, "DBT_TARGET_PATH": str(self.target)}

    def execute(self, statement: str, values: Any = None) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(statement, values)

    def query(self, statement: str, values: Any = None) -> list[Row]:
        with self.connection.cursor(cursor_factory=RealDictCursor) as cursor:
            cursor.execute(statement, values)
            return [dict(row) for row in cursor]

    def write_requests(self, rows: Iterable[Row]) -> None:
        """Make the table <schema>.test_requests, with every option a column."""
        name = sql.Identifier(self.schema, "test_requests")
        columns = sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(column), sql.SQL(kind))
            for column, kind in COLUMN_TYPES.items()
        )
        insert = sql.SQL("insert into {} values ({})").format(
            name, sql.SQL(", ").join([sql.Placeholder()] * len(COLUMN_TYPES))
        )
        with self.connection.cursor() as cursor:
            cursor.execute(sql.SQL("drop table if exists {}").format(name))
            cursor.execute(sql.SQL("create table {} ({})").format(name, columns))
            for row in rows:
                cursor.execute(insert, [row.get(column) for column in COLUMN_TYPES])

    def arguments(self, select: tuple[str, ...], **variables: Any) -> list[str]:
        given = {
            f"{self.network}_requests": f"{self.schema}.test_requests",
            **self.variables,
            **variables,
        }
        return [
            *("run", "--select", *(select or (self.network,))),
            *("--project-dir", str(self.project), "--vars", json.dumps(given)),
        ]

    def run(
        self,
        *select: str,
        check: bool = True,
        flags: tuple[str, ...] = (),
        **variables: Any,
    ) -> CompletedProcess[str]:
        """Run the network, or what is selected, on the requests that are written."""
        return self.dbt(
            *self.arguments(select, **variables),
            *flags,
            env=self.environment,
            check=check,
        )

    def start(self, log: Path) -> Popen[bytes]:
        """Begin the same run and do not wait for it."""
        with log.open("wb") as output:
            return Popen(
                [sys.executable, "-m", "dbt.cli.main", *self.arguments(())],
                cwd=PROJECT,
                stdout=output,
                stderr=output,
                env={**os.environ, **self.environment},
            )

    def draw(self, rows: Iterable[Row], **options: Any) -> CompletedProcess[str]:
        self.write_requests(rows)
        return self.run(**options)

    def layer_models(self) -> set[str]:
        """Names of the models in the network's folder of layers."""
        folder = self.project / "models" / self.network / "layers"
        return {file.stem for file in folder.glob("*.sql")}

    def layer_tables(self) -> set[str]:
        rows = self.query(
            "select table_name from information_schema.tables where table_schema = %s",
            [self.layer_schema],
        )
        return {row["table_name"] for row in rows}

    def layers(self) -> dict[str, torch.Tensor]:
        """Each layer by its model's name: [images, h, w, n] or [images, n]."""
        models = self.layer_models()
        assert models == self.layer_tables()
        return {
            name: self.tensor(f"{self.layer_schema}.{name}", "activation")
            for name in models
        }

    def tensor(self, relation: str, column: str, where: str = "true") -> torch.Tensor:
        """A column of vectors by image, row and column."""
        with self.connection.cursor() as cursor:
            cursor.execute(f"select * from {relation} limit 0")
            names = [part.name for part in cursor.description]
            place = [name for name in ("image_id", "y", "x") if name in names]
            # a vector's binary form: two numbers of 2 bytes, then 4 bytes a value
            cursor.execute(
                f"select {', '.join(f'count(distinct {name})' for name in place)}, "
                f"count(*), string_agg(substring(vector_send({column}) from 5), '' "
                f"order by {', '.join(place)}) from {relation} where {where}"
            )
            *sizes, count, values = cursor.fetchone()
        assert count == math.prod(sizes) > 0, (relation, sizes, count)
        array = np.frombuffer(values, ">f4").astype("f4")
        return torch.from_numpy(array).reshape(*sizes, -1)

    def samples(self, image_id: int, step: int) -> torch.Tensor:
        """[channels, h, w], as torch has images."""
        return self.tensor(
            f"{self.schema}.{self.network}_images",
            "channels",
            f"image_id = {image_id} and step = {step}",
        )[0].permute(2, 0, 1)

    def pixels(self, image_id: int, step: int) -> np.ndarray:
        """[h, w, channels] in 0..255."""
        rows = self.query(
            f"select y, x, pixel from {self.schema}.{self.network}_pixels "
            "where image_id = %s and step = %s order by y, x",
            [image_id, step],
        )
        height, width = rows[-1]["y"] + 1, rows[-1]["x"] + 1
        return np.array([row["pixel"] for row in rows]).reshape(height, width, -1)

    def rows(self) -> list[Row]:
        """Everything that was drawn, but for the digest of the request."""
        return self.query(
            f"select image_id, step, y, x, activation::text as activation "
            f"from {self.schema}.{self.network}_samples order by 1, 2, 3, 4"
        )


# --- The side of diffusers ----------------------------------------------------


def gaussian_noise(seed: int, step: int, y: int, x: int, channels: int) -> list[float]:
    """The noise of a place, as macros/functions/create_functions.sql defines it."""
    noise = []
    for channel in range(channels):
        text = f"{seed}/{step}/{y}/{x}/{channel}"
        digest = hashlib.md5(text.encode()).hexdigest()
        u, v = int(digest[:13], 16), int(digest[-13:], 16)
        radius = math.sqrt(-2 * math.log((u + 0.5) / 2**52))
        noise.append(radius * math.cos(2 * math.pi * v / 2**52))
    return noise


def noise_image(seed: int, step: int, shape: tuple[int, int, int]) -> torch.Tensor:
    """[channels, h, w]."""
    channels, height, width = shape
    places = [
        [gaussian_noise(seed, step, y, x, channels) for x in range(width)]
        for y in range(height)
    ]
    return torch.tensor(places, dtype=torch.float32).permute(2, 0, 1)


@contextmanager
def ddpm_noise(noise: torch.Tensor) -> Iterator[None]:
    """Let DDPMScheduler.step() draw this; it takes no noise as an argument."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: noise)
        yield


def scheduler_step(
    scheduler: DDPMScheduler | DDIMScheduler,
    output: torch.Tensor,
    timestep: int,
    sample: torch.Tensor,
    eta: float,
    noise: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The next sample and the picture that is predicted."""
    if isinstance(scheduler, DDIMScheduler):
        found = scheduler.step(output, timestep, sample, eta=eta, variance_noise=noise)
    else:
        with ddpm_noise(noise):
            found = scheduler.step(output, timestep, sample)
    return found.prev_sample, found.pred_original_sample


SCHEDULERS = {"ddpm": DDPMScheduler, "ddim": DDIMScheduler}


class Reference:
    """A checkpoint folder in `diffusers`: float32 on the CPU."""

    def __init__(self, folder: Path):
        """Read the network and the scheduler's configuration."""
        self.unet = UNet2DModel.from_pretrained(folder, subfolder="unet").eval()
        self.folder = folder
        size = self.unet.config.sample_size
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        self.shape = (self.unet.config.in_channels, height, width)

    def scheduler(self, row: Row) -> DDPMScheduler | DDIMScheduler:
        scheduler = SCHEDULERS[row["scheduler"]].from_pretrained(
            self.folder, subfolder="scheduler"
        )
        scheduler.set_timesteps(row["num_inference_steps"])
        return scheduler

    def start(self, row: Row) -> torch.Tensor:
        return noise_image(row["seed"], 0, self.shape)

    @torch.no_grad()
    def draw(self, row: Row) -> list[torch.Tensor]:
        """The sample after every step, and the noise before."""
        scheduler = self.scheduler(row)
        sample = self.start(row)[None]
        samples = [sample[0]]
        for step, timestep in enumerate(scheduler.timesteps):
            sample, _ = scheduler_step(
                scheduler,
                self.unet(sample, timestep).sample,
                timestep,
                sample,
                row.get("eta", 0),
                noise_image(row["seed"], step + 1, self.shape)[None],
            )
            samples.append(sample[0])
        return samples

    @torch.no_grad()
    def layers(
        self, samples: list[torch.Tensor], timesteps: list[int]
    ) -> dict[str, torch.Tensor]:
        """What each layer of ours holds, by its path in the state_dict.

        As modules give or take it: SiLU, sums and torch.cat have no module.
        """
        inputs: dict[str, torch.Tensor] = {}
        outputs: dict[str, torch.Tensor] = {}

        def hook(path: str) -> Any:
            def record(_: Any, given: tuple[Any, ...], output: Any) -> None:
                inputs[path] = given[0] if given else None
                outputs[path] = output

            return record

        hooks = [
            module.register_forward_hook(hook(path))
            for path, module in self.unet.named_modules()
        ]
        self.unet(torch.stack(samples), torch.tensor(timesteps))
        for each in hooks:
            each.remove()
        found = {}
        for path in outputs:
            found.update(layers_of_module(path, inputs[path], outputs[path]))
        return found


# A module's path, whether ours is its input or its output, and ours' path.
INPUT, OUTPUT = 0, 1
LAYERS = [
    (r"time_proj|time_embedding\.linear_2|conv_in|conv_out", OUTPUT, r"\g<0>"),
    (r"(time_embedding)\.act", OUTPUT, r"\1.linear_1"),
    (r".+\.time_emb_proj", INPUT, r"time_embedding.silu"),
    (r".+\.time_emb_proj", OUTPUT, r"\g<0>"),
    (r"(.+\.resnets\.\d+)\.conv1", INPUT, r"\1.norm1"),
    (r"(.+\.resnets\.\d+)\.norm2", INPUT, r"\1.conv1"),
    (r"(.+\.resnets\.\d+)\.conv2", INPUT, r"\1.norm2"),
    (r"(.+\.resnets\.\d+)", OUTPUT, r"\1.conv2"),
    (r"(up_blocks\.\d+\.resnets\.\d+)", INPUT, r"\1.cat"),
    (r".+\.(conv_shortcut|group_norm|to_q|to_k|to_v)", OUTPUT, r"\g<0>"),
    (r"(.+\.attentions\.\d+)\.to_out\.0", INPUT, r"\1"),
    (r"(.+\.attentions\.\d+)", OUTPUT, r"\1.to_out.0"),
    (r"(.+\.upsamplers\.0)\.conv", INPUT, r"\1.interpolate"),
    (r".+\.(up|down)samplers\.0\.conv", OUTPUT, r"\g<0>"),
    (r"conv_out", INPUT, "conv_norm_out"),
]


def layers_of_module(
    path: str, given: torch.Tensor, output: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The layers of ours that a module's input and output are."""
    found = {}
    for pattern, side, template in LAYERS:
        match = re.fullmatch(pattern, path)
        if match:
            ours = match.expand(template)
            found[ours] = places_last(ours, output if side == OUTPUT else given)
    return found


def places_last(path: str, tensor: torch.Tensor) -> torch.Tensor:
    """[images, places, n] or [images, n], whatever the module has."""
    if tensor.dim() == 4 or path.endswith(".group_norm"):
        return tensor.flatten(2).transpose(1, 2)
    return tensor


# --- Comparison ---------------------------------------------------------------


def check_close(ours: torch.Tensor, reference: torch.Tensor, what: str) -> float:
    """The largest difference by the largest value; fails with its surroundings.

    Both are [images, places, n] or [images, n].
    """
    assert ours.shape == reference.shape, f"{what}: {ours.shape} not {reference.shape}"
    largest = float(reference.abs().max())
    difference = (ours - reference).abs()
    relative = float(difference.max()) / largest
    if not relative <= LAYER_TOLERANCE:
        # where it is not a number, that is the largest
        worst = np.unravel_index(int(difference.argmax()), difference.shape)
        *place, n = (int(index) for index in worst)
        around = (*place, slice(max(n - 2, 0), n + 3))
        pytest.fail(
            f"{what}: largest difference {float(difference.max()):.3g}, that is "
            f"{relative:.3g} of the largest value {largest:.3g}, at {(*place, n)} of "
            f"{tuple(ours.shape)}; tolerance {LAYER_TOLERANCE}\n"
            f"  ours      {ours[around].tolist()}\n"
            f"  reference {reference[around].tolist()}",
            pytrace=False,
        )
    return relative


def check_layers(
    network: str, ours: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]
) -> float:
    """Each of our layers, none left out; prints and gives the worst difference."""
    models = {f"{network}_{path.replace('.', '_')}": path for path in reference}
    assert set(models) == set(ours)
    worst = (0.0, "")
    # in the order of computation, so that the first to fail is the one at fault
    for model, path in models.items():
        found, expected = ours[model], reference[path]
        if found.dim() == 4:
            found = found.flatten(1, 2)
        worst = max(worst, (check_close(found, expected, path), path))
    print(f"{network}: {len(models)} layers, worst {worst[0]:.2g} in {worst[1]}")
    return worst[0]


# --- Checkpoints --------------------------------------------------------------


def random_unet(seed: int, **config: Any) -> UNet2DModel:
    """A network with random weights, norms and biases too.

    Matrices are scaled by their inputs; queries and keys are larger, so that
    attention is far from even.
    """
    unet = UNet2DModel(**config)
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in unet.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() == 1:
            is_scale = "norm" in name and name.endswith("weight")
            state[name] = noise * 0.2 + (1 if is_scale else 0)
        else:
            gain = 2 if ".to_q." in name or ".to_k." in name else 1
            state[name] = noise * gain / tensor[0].numel() ** 0.5
    unet.load_state_dict(state)
    return unet.eval()


def save_pipeline(
    folder: Path, unet: UNet2DModel, scheduler: DDPMScheduler | DDIMScheduler
) -> Path:
    """Save them as the Hub lays them out."""
    DDPMPipeline(unet, scheduler).save_pretrained(folder)
    return folder
