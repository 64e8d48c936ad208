"""Neural networks as dbt models in PostgreSQL: the command `dbt-nn`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from dbt_nn.__main__ import main

if __name__ == "__main__":
    main()
