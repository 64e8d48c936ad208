#!/bin/sh
# Resolves pyproject.toml into requirements.lock and requirements-test.lock, for
# every platform and Python that it allows: `make lock` (UPGRADE=1 for news).
set -eu
cd "$(dirname "$0")/.."

resolve() {
    .venv/bin/python -m uv pip compile pyproject.toml --universal --quiet \
        --python-version 3.11 --no-annotate --custom-compile-command 'make lock' \
        ${UPGRADE:+--upgrade} "$@"
}
resolve --output-file requirements.lock
resolve --output-file requirements-test.lock --extra test \
    --constraint requirements.lock
