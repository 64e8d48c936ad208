"""The main job, shown: GPT-2 writes text inside PostgreSQL.

    make demo

runs `dbt seed` (the default prompts) and `dbt run --select gpt2` on the bundled
checkpoint, prints what was written and what to try next.
"""

from __future__ import annotations

import textwrap

from complete import dbt, read_completions, run_gpt2
from database import run_command

OPTIONS = {"temperature": 0.7, "top_k": 40, "seed": 1, "max_new_tokens": 60}

NEXT = """
Every layer of the network is now a table. Some things to try
(source .venv/bin/activate first, or put .venv/bin/ before dbt):

    make gpt2 PROMPT="Elizabeth was" OPTIONS="temperature=0.8 seed=3"
    dbt run --select gpt2 --vars '{gpt2_options: {max_new_tokens: 100}}'
    dbt show --inline "select * from {{ ref('gpt2_completions') }}"
    dbt show --inline "select * from {{ ref('gpt2_h_0_attn') }}"
    make docs        # the lineage graph of the network
    make stop        # stop the server; the data stays
"""


def main() -> int:
    code = dbt("seed", "--select", "prompts")
    if code == 0:
        print("dbt run --select gpt2: 12 blocks, one dbt model a layer\n", flush=True)
        code = run_gpt2({"gpt2_options": OPTIONS})
    if code == 0:
        for prompt, completion, _ in read_completions():
            print()
            print(textwrap.fill(f"{prompt}{completion}", 79))
        print(NEXT)
    return code


if __name__ == "__main__":
    run_command(main)
