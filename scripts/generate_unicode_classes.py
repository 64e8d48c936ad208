r"""Write macros/tokenizer/_unicode_class.sql: \p{L}, \p{N} and \s as ranges."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from dbt_nn.command_line import run_command

if __name__ == "__main__":
    run_command("tools.generate_unicode_classes")
