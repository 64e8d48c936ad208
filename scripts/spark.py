"""Run a network on a Spark cluster, for more rows than one machine computes."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from dbt_nn.command_line import run_command

if __name__ == "__main__":
    run_command("dbt_nn.spark_command")
