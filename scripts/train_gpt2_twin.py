"""Train the bundled GPT-2 twin on Jane Austen's six novels, on a CPU."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from dbt_nn.command_line import run_command

if __name__ == "__main__":
    run_command("training.train_gpt2_twin")
