"""The command `dbt-nn`."""

from dbt_nn.command_line import run_command


def main() -> None:
    """Run the command line."""
    run_command("dbt_nn.cli", "dbt-nn")


if __name__ == "__main__":
    main()
