"""The main job, shown: networks write and draw inside PostgreSQL.

    make demo

runs `dbt run --select gpt2` on the bundled checkpoint and the default prompts, and
`dbt run --select ddpm` for an image; prints what was written, shows what was drawn,
and says what to try next.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap

from dbt_nn import pictures
from dbt_nn.cli import command
from dbt_nn.command_line import PROJECT
from dbt_nn.complete import BORDER, read_completions
from dbt_nn.runner import dbt

# In both runs the same, for dbt parses the project again where they differ.
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


def write() -> int:
    print("dbt run --select gpt2: 12 blocks, one dbt model a layer", flush=True)
    code = dbt("run", "--select", "gpt2", variables=VARIABLES)
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


def draw() -> int:
    print("\n\ndbt run --select ddpm: a UNet, from noise to an image", flush=True)
    code = dbt("run", "--select", "ddpm", variables=VARIABLES)
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
    # with these vars dbt parses apart: what it parsed without them stays as it is
    os.environ.setdefault("DBT_TARGET_PATH", str(PROJECT / "target" / "demo"))
    code = write() or draw()
    if code == 0:
        print(NEXT)
    return code
