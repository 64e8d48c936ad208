"""Draw images: the short way to `dbt run --select ddpm`, with picture files.

    python scripts/draw.py seed=3 num_inference_steps=50 batch_size=4

runs dbt with these options, writes PNG files and a GIF of the way from noise
(see pictures.py), and shows what was drawn. The options are those of
ddpm_requests, with their names in diffusers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

import pictures
from database import run_command
from runner import dbt, parse_options


def run_network(network: str, variables: dict) -> int:
    """`dbt run --select <network>`, quiet but for the loop's pace and for errors."""
    options = ["--vars", json.dumps(variables)]
    return dbt("run", "--select", network, *options, thinned=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "options",
        nargs="*",
        metavar="name=value",
        help="image options, such as seed=7 num_inference_steps=50 batch_size=4 "
        "scheduler=ddim eta=0 (default: the environment's OPTIONS)",
    )
    parser.add_argument(
        "--checkpoint",
        default=os.environ.get("CHECKPOINT") or None,
        help="schema of a loaded checkpoint (default: the project's var)",
    )
    pictures.add_arguments(parser)
    arguments = parser.parse_args()
    network = arguments.network
    variables = {f"{network}_options": parse_options(arguments.options)}
    if arguments.checkpoint:
        variables[f"{network}_checkpoint"] = arguments.checkpoint
    code = run_network(network, variables)
    if code == 0:
        written = pictures.write_as_asked(arguments)
        print()
        pictures.show(*written, sys.stdout)
    return code


if __name__ == "__main__":
    run_command(main)
