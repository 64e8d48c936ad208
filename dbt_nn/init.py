"""Make a dbt project that runs a network.

    dbt-nn init letters
    cd letters
    dbt-nn server start
    dbt-nn load
    dbt deps
    dbt seed
    dbt run --select gpt2

FOLDER is the current one if none is given. The command writes dbt_project.yml,
packages.yml, profiles.yml and .gitignore. A file that is there stays as it is, but for
the line of packages.yml that says that this command keeps it up to date: it names the
folder where the dbt package is, and that one moves with the Python environment.
"""

from __future__ import annotations

import re
from pathlib import Path

import click
import yaml

from dbt_nn.cli import command
from dbt_nn.command_line import PROJECT, ExpectedError
from dbt_nn.database import example_profile

PROJECT_FILE = """\
name: {name}
version: "1.0.0"
config-version: 2
profile: {name}

model-paths: [models]
seed-paths: [seeds]

vars:
  dbt_nn:
    # a model or seed of this project, or schema.table, in place of the default prompts
    # gpt2_prompts: my_prompts
    gpt2_options: {{max_new_tokens: 32}}
"""

PACKAGES_FILE = """\
packages:
  - local: {path}  # kept up to date by dbt-nn init
"""
KEPT_PATH = re.compile(
    r"^(\s*-\s+local:).*?(\s+# kept up to date by dbt-nn init)$", re.M
)

IGNORED = """\
/target/
/logs/
/dbt_packages/
/package-lock.yml
/.user.yml
/.postgres/
/profiles.yml
"""

NEXT = """
Next, in {folder}:

  dbt-nn server start
  dbt-nn load
  dbt deps
  dbt seed
  dbt run --select gpt2
  dbt show --output json --inline "select * from {{{{ ref('gpt2_completions') }}}}"
"""


def project_name(folder: Path) -> str:
    """A name for the dbt project, from its folder's: letters, digits and `_`."""
    name = re.sub(r"[^a-z0-9]+", "_", folder.resolve().name.lower()).strip("_")
    if not re.match(r"[a-z]", name) or name in ("dbt", "dbt_nn"):
        name = f"project_{name}".rstrip("_")
    return name


def write_missing(path: Path, text: str) -> bool:
    """Write a file that is not there yet; say which; true if it was written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        print(f"stays as it is: {path}")
        return False
    except OSError as error:
        raise ExpectedError(f"cannot write {path}: {error.strerror}") from None
    print(f"wrote {path}")
    return True


def write_packages(path: Path) -> None:
    """Make packages.yml name this package, or say which line it lacks."""
    place = f'"{PROJECT}"'
    if not path.exists():
        write_missing(path, PACKAGES_FILE.format(path=place))
        return
    before = _read(path)
    after = KEPT_PATH.sub(lambda match: f"{match[1]} {place}{match[2]}", before)
    if after != before:
        path.write_text(after, encoding="utf-8")
        print(f"wrote {path}: dbt_nn is in {PROJECT}")
    elif str(PROJECT) not in before:
        print(f"stays as it is: {path}; add to its packages:\n  - local: {place}")
    else:
        print(f"stays as it is: {path}")


def profile_of(path: Path) -> str | None:
    """The profile that a dbt_project.yml names, if it names one."""
    try:
        content = yaml.safe_load(_read(path))
    except yaml.YAMLError as error:
        raise ExpectedError(f"{path} is not YAML: {error}") from None
    return content.get("profile") if isinstance(content, dict) else None


def _read(path: Path) -> str:
    """The text of a file of the user's."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ExpectedError(f"cannot read {path}: {error}") from None


def initialise(folder: Path) -> None:
    """Write what a project in `folder` lacks.

    Raises:
        ExpectedError: the folder is dbt_nn's own, or can't be written.

    """
    if folder.resolve() == PROJECT:
        raise ExpectedError(
            f"{folder.resolve()} is dbt_nn itself, which runs as it is (`make demo`): "
            "give another folder"
        )
    if folder.exists() and not folder.is_dir():
        raise ExpectedError(f"{folder} is a file: give a folder")
    name = project_name(folder)
    project = folder / "dbt_project.yml"
    write_missing(project, PROJECT_FILE.format(name=name))
    write_packages(folder / "packages.yml")
    write_missing(folder / "profiles.yml", example_profile(profile_of(project) or name))
    write_missing(folder / ".gitignore", IGNORED)
    print(NEXT.format(folder=folder.resolve()), end="")


@command(__doc__)
@click.argument("folder", type=click.Path(path_type=Path), default=".")
def main(folder: Path) -> None:
    """Carry out the command line."""
    initialise(folder)
