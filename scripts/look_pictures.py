"""Draw the pictures of docs/insight.md: pages of dbt-nn look, as they come out."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from dbt_nn.command_line import run_command

if __name__ == "__main__":
    run_command("tools.look_pictures")
