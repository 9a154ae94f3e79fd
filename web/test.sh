#!/usr/bin/env bash
# Runs the tests of the explorer in a real browser, on WebGPU and without; builds the page first where it is not built. On Debian and
# Ubuntu it installs Chromium, and it makes the venv of Python that reads the page's files. Pictures of the page are left in
# target/explorer/.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/install.sh
command -v chromium >/dev/null || command -v google-chrome >/dev/null || [ -n "${ACTSCOPE_CHROMIUM:-}" ] || install chromium
source tools/test-venv.sh
test_venv
[ -f web/dist/actscope_web_bg.wasm ] || web/build.sh
# One browser at a time: each computes on all cores.
cargo test --locked --quiet --features web-tests --test explorer -- --test-threads=1 "$@"
