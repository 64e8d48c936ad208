"""The main job, shown: GPT-2 writes text inside PostgreSQL.

    make demo

runs `dbt run --select gpt2` on the bundled checkpoint and the default prompts,
prints what was written and what to try next.
"""

from __future__ import annotations

import textwrap

from complete import read_completions, run_gpt2
from database import run_command

OPTIONS = {"temperature": 0.6, "top_p": 0.9, "seed": 2, "max_new_tokens": 64}

NEXT = """
Every layer of the network is now a table. Some things to try
(source .venv/bin/activate first, or put .venv/bin/ before dbt):

    make gpt2 PROMPT="Elizabeth was" OPTIONS="temperature=0.6 seed=3"
    dbt run --select gpt2 --vars '{gpt2_options: {max_new_tokens: 100}}'
    dbt show --inline "select * from {{ ref('gpt2_completions') }}"
    dbt show --inline "select * from {{ ref('gpt2_h_0_attn') }}"
    make gpt2 PROMPT="My dear Miss" OPTIONS="repetition_penalty=1.2"
    make docs        # the lineage graph of the network
    make stop        # stop the server; the data stays
"""


def main() -> int:
    print("dbt run --select gpt2: 12 blocks, one dbt model a layer\n", flush=True)
    code = run_gpt2({"gpt2_options": OPTIONS})
    if code == 0:
        for prompt, completion, _ in read_completions():
            print()
            for paragraph in f"{prompt}{completion}".split("\n\n"):
                print(textwrap.fill(paragraph, 79))
        print(NEXT)
    return code


if __name__ == "__main__":
    run_command(main)
