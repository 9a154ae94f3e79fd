#!/usr/bin/env bash
# Everything that must hold of the Python module: formatting and lints of its native part, types, tests, and the example notebook,
# executed on the demo model. Makes its venv in target/. The native part is built as the Rust tests are (cargo's profile dev), so that
# its dependencies are compiled once.
set -euo pipefail
cd "$(dirname "$0")/.."

# Without a session directory Mesa complains about Wayland whenever adapters are listed; src/main.rs says more.
[ -n "${XDG_RUNTIME_DIR:-}" ] || export NODEVICE_SELECT=1
# Tile configurations and pipelines of a test stay out of the user's cache.
export ACTSCOPE_TUNING=off

venv=$PWD/target/venv-python
wanted=$(cat python/requirements-dev.txt python/pyproject.toml | cksum)
if [ "$(cat "$venv/wanted" 2>/dev/null)" != "$wanted" ]; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check numpy -r python/requirements-dev.txt
    echo "$wanted" >"$venv/wanted"
fi

cargo fmt -p actscope-python --check
cargo clippy --quiet -p actscope-python --all-targets --no-deps -- -D warnings
# Tests hold the module against the program.
cargo build --locked --quiet
# The environment names the venv and not the shell's own.
env -u CONDA_PREFIX VIRTUAL_ENV="$venv" "$venv/bin/maturin" develop --quiet --profile dev --manifest-path python/Cargo.toml
cd python
"$venv/bin/mypy"
"$venv/bin/pytest" --quiet
"$venv/bin/python" tests/notebook.py
echo "all checks of the Python module passed"
