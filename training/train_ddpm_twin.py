"""Train the bundled diffusion twin on drawn butterflies, on a CPU.

The twin has the blocks of gnokit/ddpm-butterflies-64 (four levels, two ResNets
each, attention in the two deepest and the middle) and is narrower; its pictures
are 32x32 in colour. Training needs torch and diffusers, which nothing else in
this project needs:

    pip install torch==2.13.0 diffusers
    python scripts/train_ddpm_twin.py --minutes 90

The learning rate follows the clock, so a faster machine takes more steps in
the same time. On a machine with other work, OMP_WAIT_POLICY=passive keeps the
threads from spinning while they wait for one another.

The output folder is laid out as diffusers' DDIMPipeline and holds the moving
average of the weights (EMA). It is usable from the first minute on: it is
replaced file by file, each atomically, every few minutes. Beside it, in --state,
stands what --resume needs to go on after a kill.
"""

import datetime
import json
import math
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel

from dbt_nn.cli import command
from training.butterflies import SIZE, butterflies

ROOT = Path(__file__).resolve().parent.parent
PATH = click.Path(path_type=Path)
WARM_UP = 300  # steps


def training_set(count, seed, state):
    """The pictures [count, 3, SIZE, SIZE] as uint8; drawn once, then read."""
    path = state / f"butterflies-{seed}-{count}.npy"
    if not path.exists():
        part = 250
        with ProcessPoolExecutor() as workers:
            jobs = [
                workers.submit(butterflies, min(part, count - start), seed, start)
                for start in range(0, count, part)
            ]
            pictures = np.concatenate([job.result() for job in jobs])
        np.save(path.with_suffix(".part.npy"), pictures)
        path.with_suffix(".part.npy").replace(path)
    return torch.from_numpy(np.load(path)).permute(0, 3, 1, 2).contiguous()


def new_network():
    return UNet2DModel(
        sample_size=SIZE,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=(24, 32, 64, 96),
        down_block_types=(
            "DownBlock2D",
            "DownBlock2D",
            "AttnDownBlock2D",
            "AttnDownBlock2D",
        ),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
    )


def new_scheduler():
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        variance_type="fixed_small",
        clip_sample=True,
    )


def batches(pictures, size, generator):
    """Batches in random order, half of the pictures mirrored, in -1..1."""
    while True:
        order = torch.randperm(len(pictures), generator=generator)
        for index in order.split(size):
            x = pictures[index].float() / 127.5 - 1
            mirrored = torch.rand(len(x), generator=generator) < 0.5
            yield torch.where(mirrored[:, None, None, None], x.flip(3), x)


def write_pipeline(network, scheduler, ema, out):
    """Save the EMA weights beside the folder, then move each file into place."""
    part = out.parent / (out.name + ".part")
    ema.store(network.parameters())
    ema.copy_to(network.parameters())
    # DDIM draws well in 50 steps, DDPM needs 1,000; the training is the same
    drawer = DDIMScheduler.from_config(scheduler.config)
    DDIMPipeline(unet=network, scheduler=drawer).save_pretrained(part)
    ema.restore(network.parameters())
    for file in sorted(p for p in part.rglob("*") if p.is_file()):
        target = out / file.relative_to(part)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.chmod(0o644)
        file.replace(target)
    shutil.rmtree(part)


def write_state(path, content):
    part = path.with_suffix(".part")
    torch.save(content, part)
    part.replace(path)


def train(network, pictures, end, args):
    """Until the clock says `end`; a step's noise prediction by plain MSE."""
    scheduler = new_scheduler()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01
    )
    ema = EMAModel(network.parameters(), decay=0.9995, use_ema_warmup=True, power=0.75)
    generator = torch.Generator().manual_seed(args.seed)
    state_path = args.state / "training.pt"
    step, spent = 0, 0.0
    if args.resume:
        state = torch.load(state_path, weights_only=False)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        step, spent = state["step"], state["seconds"]
        generator.manual_seed(args.seed + step)
    first, began = step, time.time()
    total = spent + end - began  # the schedule's length, in seconds of training
    saved, save_after, recent = began, 60, []

    def save():
        write_pipeline(network, scheduler, ema, args.out)
        write_state(
            state_path,
            {
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "ema": ema.state_dict(),
                "step": step,
                "seconds": spent + time.time() - began,
            },
        )

    network.train()
    for x in batches(pictures, args.batch, generator):
        now = time.time()
        if now >= end:
            break
        done = (spent + now - began) / total
        rate = min(1, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = args.lr * rate
        noise = torch.randn(x.shape, generator=generator)
        timesteps = torch.randint(0, 1000, (len(x),), generator=generator)
        noisy = scheduler.add_noise(x, noise, timesteps)
        loss = F.mse_loss(network(noisy, timesteps).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(network.parameters())
        recent.append(loss.item())
        step += 1
        if step % 100 == 0:
            seconds = time.time() - began
            print(
                f"step {step}  {spent + seconds:.0f} s  rate {rate:.3f}  "
                f"epoch {step * args.batch / len(pictures):.2f}  "
                f"{(step - first) * args.batch / seconds:.0f} pictures/s  "
                f"loss {sum(recent) / len(recent):.4f}",
                flush=True,
            )
            recent = []
        if now - saved > save_after:
            save()
            saved, save_after = time.time(), args.save_minutes * 60
    save()
    return step, spent + time.time() - began


@torch.no_grad()
def evaluate(out, args):
    """Mean loss of the saved weights on pictures that were never trained on."""
    pipeline = DDIMPipeline.from_pretrained(out, local_files_only=True)
    pictures = butterflies(512, args.seed + 1)
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=generator)
    timesteps = torch.arange(512) * 1000 // 512
    noisy = pipeline.scheduler.add_noise(x, noise, timesteps)
    losses = [
        F.mse_loss(pipeline.unet(n, t).sample, e).item()
        for n, t, e in zip(
            noisy.split(64), timesteps.split(64), noise.split(64), strict=True
        )
    ]
    return sum(losses) / len(losses)


def end_time(args):
    if not args.until:
        return time.time() + args.minutes * 60
    hour, minute = map(int, args.until.split(":"))
    now = datetime.datetime.now()
    end = now.replace(hour=hour, minute=minute, second=0)
    if end <= now:
        end += datetime.timedelta(days=1)
    return end.timestamp()


@command(__doc__)
@click.option("--minutes", type=float, default=90)
@click.option("--until", metavar="HH:MM", help="Local time to stop at.")
@click.option("--out", type=PATH, default=ROOT / "checkpoints" / "ddpm-twin")
@click.option(
    "--state",
    type=PATH,
    default=ROOT / "target" / "train_ddpm_twin",
)
@click.option("--resume", is_flag=True, help="Go on from --state.")
@click.option("--pictures", type=int, default=20_000)
@click.option("--threads", type=int, default=os.cpu_count())
@click.option("--seed", type=int, default=0)
@click.option("--batch", type=int, default=32)
@click.option("--lr", type=float, default=8e-4)
@click.option("--save-minutes", type=float, default=5)
def main(**options: Any) -> None:
    """Carry out the command line."""
    args = SimpleNamespace(**options)
    start, end = time.time(), end_time(args)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.state.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    pictures = training_set(args.pictures, args.seed, args.state)
    print(f"{len(pictures)} pictures, {time.time() - start:.0f} s")
    steps, seconds = train(new_network(), pictures, end, args)
    report = {
        "steps": steps,
        "pictures_seen": steps * args.batch,
        "training_pictures": len(pictures),
        "seconds": round(seconds),
        "held_out_loss": round(evaluate(args.out, args), 5),
    }
    print(json.dumps(report, indent=2))
