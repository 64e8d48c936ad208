"""One commit's side of a comparison: makes its cases ready, and their steps.

    python -m bench.side SCHEMA FOLDER SIZES

in the commit's folder. bench.compare, which may be of another commit, asks by a line
of JSON on standard input, and gets one as its answer on standard output:

    ["open", [part, …]]  -> {case's key: [pairs to warm up, [[key, what, unit], …]]},
                            with a triple for each row
    ["begin", key]       -> null: the case is ready
    ["step"]             -> its figures, one for each quantity
    ["end"]              -> null

Each is {"answer": …}, or {"error": …} where something went wrong. What is printed
meanwhile goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psycopg2

from bench.cases import Case, Step
from bench.parts import PARTS
from bench.project import Project, quiet
from bench.sizes import SIZES
from bench.timing import figures
from dbt_nn.database import DatabaseError


class Worker:
    """Answers requests; each is a method's name and its arguments."""

    def __init__(self, schema: str, folder: Path, sizes: str):
        self.schema, self.folder, self.sizes = schema, folder, SIZES[sizes]
        self.cases: dict[str, Case] = {}
        self.project: Project | None = None
        self.step_made: Step | None = None

    def open(self, parts: Iterable[str]) -> dict[str, Any]:
        for part in parts:
            self.cases |= {case.key: case for case in PARTS[part](self.sizes)}
        return {case.key: (case.pace.warm, case.rows()) for case in self.cases.values()}

    def begin(self, key: str) -> None:
        self.project = Project(self.schema, self.folder, self.sizes)
        self.step_made = self.cases[key].ours(self.project)

    def step(self) -> list[float]:
        return figures(self.step_made)

    def end(self) -> None:
        """End the case's session, and the memory that it holds."""
        if self.project is not None:
            self.project.__exit__()
        self.project = self.step_made = None


def main() -> None:
    """Answer until standard input ends."""
    schema, folder, sizes = sys.argv[1:]
    quiet()
    # dbt and what it starts print; answers have a way of their own
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker(schema, Path(folder), sizes)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            answer = {"answer": getattr(worker, name)(*arguments)}
        except (DatabaseError, psycopg2.Error) as error:
            answer = {"error": str(error)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": repr(error)}
        print(json.dumps(answer), file=answers, flush=True)
    worker.end()


if __name__ == "__main__":
    main()
