#!/bin/sh
# Creates or updates .venv with everything that DreamGen needs. `make demo` and `make test` call it; you can too.
set -eu
cd "$(dirname "$0")"

# A name on the PATH proves nothing (it may be a shim for a version that is not selected), so each candidate is run.
usable() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 12) <= sys.version_info[:2] < (3, 15))' >/dev/null 2>&1
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then # named by the user: this one or none
        usable "$PYTHON" && "$PYTHON" -c 'import sys; print(sys.executable)'
        return
    fi
    for version in 3.12 3.13 3.14; do
        for candidate in \
            "python$version" python3 python \
            "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/"$version"*/bin/python \
            "${HOME:-}"/.local/share/uv/python/*"$version"*/bin/python3 \
            /usr/bin/"python$version" /usr/local/bin/"python$version" /opt/homebrew/bin/"python$version" \
            /opt/python*/bin/"python$version"; do
            [ -n "$candidate" ] && usable "$candidate" || continue
            case $("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])') in
                "$version") "$candidate" -c 'import sys; print(sys.executable)'; return 0 ;;
            esac
        done
    done
    return 1
}

if [ -x .venv/bin/python ] && ! usable .venv/bin/python; then
    echo "error: .venv was not made with Python 3.12 to 3.14; move it away and try again" >&2
    exit 1
fi
if [ ! -x .venv/bin/python ]; then
    python=$(find_python) || {
        echo "error: no Python from 3.12 to 3.14 with venv was found${PYTHON:+ at PYTHON=$PYTHON}. Install one (for" \
             "example Debian's python3.12 and python3.12-venv, or 'uv python install 3.12')," \
             "or name it: PYTHON=/path/to/python3.12 make demo" >&2
        exit 1
    }
    echo "creating .venv with $python ($("$python" --version))" >&2
    "$python" -m venv .venv
fi

# An interrupted setup leaves an environment without pip.
.venv/bin/python -c 'import pip' 2>/dev/null || .venv/bin/python -m ensurepip >/dev/null

# uv installs the same packages as pip in a tenth of the time; pip is used if uv cannot be installed. As pip does, it
# compiles them: where PYTHONDONTWRITEBYTECODE is set, as in many containers, each command would do so for 15 s.
.venv/bin/python -m pip install --quiet --disable-pip-version-check uv >&2 || true
if [ -x .venv/bin/uv ]; then
    .venv/bin/uv pip install --quiet --compile-bytecode --python .venv/bin/python --constraint constraints.txt \
        --editable '.[dev]' >&2
else
    .venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]' >&2
fi
touch .venv/.ready
