#!/usr/bin/env bash
# Runs the tests of the explorer in a real browser, on WebGPU and without; builds the page first where it is not built. On Debian and
# Ubuntu it installs Chromium. Pictures of the page are left in target/explorer/.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v chromium >/dev/null && ! command -v google-chrome >/dev/null && [ -z "${ACTSCOPE_CHROMIUM:-}" ]; then
    root=()
    [ "$(id -u)" -eq 0 ] || root=(sudo)
    "${root[@]}" apt-get -o DPkg::Lock::Timeout=600 update -qq
    DEBIAN_FRONTEND=noninteractive "${root[@]}" apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends chromium >/dev/null
fi
[ -f web/dist/actscope_web_bg.wasm ] || web/build.sh
# One browser at a time: each computes on all cores.
cargo test --locked --quiet --features web-tests --test explorer -- --test-threads=1 "$@"
