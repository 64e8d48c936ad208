"""Draw images: the short way to `dbt run --select ddpm`, with picture files.

    dbt-nn draw seed=3 num_inference_steps=50 batch_size=4

runs dbt with these options, writes PNG files and a GIF of the way from noise
(see pictures.py), and shows what was drawn. All is in schemas of its own,
dbt_nn_command_line and dbt_nn_command_line_ddpm if the profile's is dbt_nn: the
images of your own relation stay as they are. The options are those of
ddpm_requests, with their names in diffusers. Without arguments the environment's
OPTIONS are taken.
"""

from __future__ import annotations

import sys

import click

from dbt_nn import pictures
from dbt_nn.cli import checkpoint_option, command
from dbt_nn.runner import (
    check_network,
    dbt,
    parse_options,
    use_own_schema,
    write_options,
)


@command(__doc__)
@click.argument("options", nargs=-1, metavar="[NAME=VALUE]...")
@checkpoint_option
@pictures.picture_options
def main(
    options: tuple[str, ...],
    checkpoint: str | None,
    network: str,
    files: pictures.Files,
) -> int:
    """Carry out the command line."""
    chosen = parse_options(options)
    check_network(network, "image")
    schema, variables = use_own_schema(network, checkpoint)
    write_options(schema, network, chosen)
    if dbt("run", "--select", network, variables=variables):
        return 1
    pictures.show(*pictures.write_as_asked(network, files, schema), sys.stdout)
    return 0
