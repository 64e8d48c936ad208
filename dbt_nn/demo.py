"""The main job, shown: networks write and draw inside PostgreSQL.

    make demo

loads the networks, runs `dbt run --select gpt2` on the bundled checkpoint and the
default prompts, and `dbt run --select ddpm` for an image; prints what was written,
shows what was drawn, and says what to try next.

dbt parses the project once, while the networks are loaded. What it parsed is without
vars, so that the next `dbt run` of the user's needs not parse either.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from dbt_nn import pictures
from dbt_nn.cli import command
from dbt_nn.command_line import SCRIPTS
from dbt_nn.complete import BORDER, read_completions
from dbt_nn.database import connect
from dbt_nn.load import BUNDLED, ENCODER
from dbt_nn.runner import dbt, parse

if TYPE_CHECKING:
    from dbt.contracts.graph.manifest import Manifest

VARIABLES = {
    "gpt2_options": {"temperature": 0.6, "top_p": 0.9, "seed": 2, "max_new_tokens": 64},
    "ddpm_options": {"scheduler": "ddim", "num_inference_steps": 25, "seed": 3},
}

NEXT = """
Every layer of these networks is now a table. Some things to try
(source .venv/bin/activate first, or put .venv/bin/ before dbt):

  make gpt2 PROMPT="Elizabeth was" OPTIONS="temperature=0.6 seed=3"
  make next PROMPT="I wish you a happy New"
  make ddpm OPTIONS="seed=7 batch_size=4"
  make search QUERY="a proposal is refused"
  dbt run --select gpt2 --vars '{gpt2_options: {max_new_tokens: 100}}'
  dbt show --output json --inline "select * from {{ ref('gpt2_completions') }}"
  dbt show --inline "select * from {{ ref('gpt2_h_0_attn') }}"
  dbt show --inline "select * from {{ ref('ddpm_pixels') }}"
  make docs        # the lineage graph of the networks
  make stop        # stop the server; the data stays
"""


def load(source: str, name: str) -> str:
    """Load a checkpoint in a process of its own, if it is not loaded yet.

    Returns:
        Why it could not be; nothing where it is.

    """
    script = str(SCRIPTS / "load_checkpoint.py")
    done = subprocess.run(
        [sys.executable, script, source, "--name", name, "--if-changed"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        return done.stdout
    print(done.stdout, end="", file=sys.stderr)
    return ""


def write(manifest: Manifest) -> int:
    print("dbt run --select gpt2: 12 blocks, one dbt model a layer", flush=True)
    code = dbt("run", "--select", "gpt2", variables=VARIABLES, manifest=manifest)
    if code == 0:
        width = min(shutil.get_terminal_size().columns, 88) - 1
        for found in read_completions():
            label = f"{found.prompt_id}  "
            text = found.error or f"{found.prompt}{BORDER}{found.completion}"
            print()
            for paragraph in text.split("\n\n"):
                print(
                    textwrap.fill(
                        paragraph,
                        width,
                        initial_indent=label,
                        subsequent_indent=" " * len(label),
                    )
                )
                label = " " * len(label)
        print(f"\n({BORDER} is where the prompt ends and the network goes on)")
    return code


def draw(manifest: Manifest) -> int:
    print("\n\ndbt run --select ddpm: a UNet, from noise to an image", flush=True)
    code = dbt("run", "--select", "ddpm", variables=VARIABLES, manifest=manifest)
    if code == 0:
        drawings = pictures.read_drawings("ddpm")
        paths = pictures.write_pictures("ddpm", drawings, zoom=pictures.ZOOM)
        pictures.remove_earlier("ddpm", pictures.FOLDER, paths)
        print()
        pictures.show(paths, drawings, sys.stdout)
    return code


@command(__doc__)
def main() -> int:
    """Carry out the command line."""
    connect().close()
    loader = ThreadPoolExecutor(1)  # one after another
    try:
        bundled = [loader.submit(load, path, name) for name, path in BUNDLED.items()]
        name, source = ENCODER
        encoder = loader.submit(load, source, name)
        manifest = parse()
        problems = "".join(loaded.result() for loaded in bundled)
        if problems:
            print(problems, end="", file=sys.stderr)
            return 1
        code = dbt("seed", manifest=manifest) or write(manifest) or draw(manifest)
        if not encoder.done():
            print(f"{source} is still being fetched (91 MB, once)", file=sys.stderr)
        if problem := encoder.result():
            print(
                f"{name} is not loaded, and its models can't run: {problem}",
                end="",
                file=sys.stderr,
            )
    finally:
        loader.shutdown(cancel_futures=True)
    if code == 0:
        print(NEXT)
    return code
