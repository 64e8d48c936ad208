"""Look inside a network: what each layer would have said, as a table and as a page."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from dbt_nn.command_line import run_command

if __name__ == "__main__":
    run_command("dbt_nn.look")
