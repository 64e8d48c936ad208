#!/bin/sh
# Makes .venv and installs the locked packages: `sh scripts/setup.sh [test]`.
# Does nothing when they are there. PYTHON names the interpreter to use.
set -eu
cd "$(dirname "$0")/.."
kind=${1:-runtime}
case $kind in
    runtime) lock=requirements.lock ;;
    test) lock=requirements-test.lock ;;
    *) echo "usage: setup.sh [runtime|test]" >&2; exit 2 ;;
esac
folder=$(pwd -P)

# Before everything else, so that dbt finds a profile; never over a user's own.
[ -e profiles.yml ] || cp profiles.example.yml profiles.yml

# The command dbt-nn of .venv is this clone's; `import dbt_nn` works there, too.
link_command() {
    site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    printf '%s\n' "$folder" >"$site/dbt_nn.pth"
    cat >.venv/bin/dbt-nn <<'END'
#!/bin/sh
here=$(dirname "$0")
exec "$here/python" "$here/../../scripts/cli.py" "$@"
END
    chmod +x .venv/bin/dbt-nn
}

# A virtual environment that was moved or copied has scripts that call another's.
usable() {
    grep -qF "$folder/.venv" .venv/bin/activate 2>/dev/null &&
        .venv/bin/python -c 'import pip' 2>/dev/null
}
if [ "$(cat ".venv/.installed-$kind" 2>/dev/null)" = "$(cksum <$lock)" ] && usable; then
    [ -x .venv/bin/dbt-nn ] || link_command
    exit 0
fi

suits() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
        2>/dev/null
}
if ! usable; then
    python=
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
        if suits "$candidate"; then
            python=$candidate
            break
        elif [ "$candidate" = "${PYTHON:-}" ]; then
            break
        fi
    done
    if [ -z "$python" ]; then
        echo "error: Python 3.11, 3.12 or 3.13 is needed; found $(
            "${PYTHON:-python3}" --version 2>&1 | head -n 1
        )" >&2
        echo "Install one, or name one: make PYTHON=/path/to/python3.11 …" >&2
        exit 1
    fi
    echo "making .venv with $("$python" --version)"
    if ! "$python" -m venv --clear .venv; then
        echo "error: no virtual environment could be made; on Debian or Ubuntu:" >&2
        echo "  apt-get install python3-venv" >&2
        exit 1
    fi
fi

echo "installing $(grep -c '==' $lock) packages from $lock (a minute or more)"
# The lock is complete, so that pip need not look at what each package requires. It
# would compile them on one core.
if ! .venv/bin/python -m pip install -qq --no-input --no-deps --no-compile \
    --disable-pip-version-check --requirement "$lock"; then
    echo "error: the packages could not be installed (pip says why above)" >&2
    exit 1
fi
.venv/bin/python -m compileall -qq -j 0 .venv/lib || true
link_command
if [ "$kind" = test ]; then
    # it holds everything that the other lock does
    cksum <requirements.lock >.venv/.installed-runtime
fi
cksum <$lock >".venv/.installed-$kind"
