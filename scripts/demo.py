"""The main job, shown: networks write and draw inside PostgreSQL.

    make demo

runs `dbt run --select gpt2` on the bundled checkpoint and the default prompts, and
`dbt run --select ddpm` for an image; prints what was written, shows what was drawn,
and says what to try next.
"""

from __future__ import annotations

import sys
import textwrap

import pictures
from complete import read_completions, run_gpt2
from database import run_command
from draw import run_network

# In both runs the same, for dbt parses the project again where they differ.
VARIABLES = {
    "gpt2_options": {"temperature": 0.6, "top_p": 0.9, "seed": 2, "max_new_tokens": 64},
    "ddpm_options": {"scheduler": "ddim", "num_inference_steps": 25, "seed": 3},
}

NEXT = """
Every layer of both networks is now a table. Some things to try
(source .venv/bin/activate first, or put .venv/bin/ before dbt):

    make gpt2 PROMPT="Elizabeth was" OPTIONS="temperature=0.6 seed=3"
    make ddpm OPTIONS="seed=7 batch_size=4"
    dbt run --select gpt2 --vars '{gpt2_options: {max_new_tokens: 100}}'
    dbt show --inline "select * from {{ ref('gpt2_completions') }}"
    dbt show --inline "select * from {{ ref('gpt2_h_0_attn') }}"
    dbt show --inline "select * from {{ ref('ddpm_pixels') }}"
    make docs        # the lineage graph of the networks
    make stop        # stop the server; the data stays
"""


def write() -> int:
    print("dbt run --select gpt2: 12 blocks, one dbt model a layer\n", flush=True)
    code = run_gpt2(VARIABLES)
    if code == 0:
        for prompt, completion, _, error in read_completions():
            print()
            for paragraph in f"{prompt}{completion or error}".split("\n\n"):
                print(textwrap.fill(paragraph, 79))
    return code


def draw() -> int:
    print("\n\ndbt run --select ddpm: a UNet, from noise to an image\n", flush=True)
    code = run_network("ddpm", VARIABLES)
    if code == 0:
        drawings = pictures.read_drawings("ddpm")
        paths = pictures.write_pictures("ddpm", drawings)
        print()
        pictures.show(paths, drawings, sys.stdout)
    return code


def main() -> int:
    code = write() or draw()
    if code == 0:
        print(NEXT)
    return code


if __name__ == "__main__":
    run_command(main)
