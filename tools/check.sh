#!/usr/bin/env bash
# Everything that must hold before a change lands: formatting, lints, all tests on all devices, docs. On a Debian or Ubuntu
# machine it installs what is missing: a C compiler, a software Vulkan driver where no GPU adapter answers, Chromium, which
# opens the report, and, in a venv, the Python packages with which tests read back what we write. About half an hour from
# nothing on two cores, most of it compiling.
#   check.sh        what needs Rust and a browser
#   check.sh all    that, the tests of the packed crate, the Python module, and the explorer, which need as long again
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/install.sh

parts=${1:-}
case $parts in
    "" | all) ;;
    *) echo "check.sh: $parts is not \`all\`" >&2; exit 2 ;;
esac

# Without a session directory Mesa complains about Wayland whenever a test lists adapters; src/main.rs says more.
[ -n "${XDG_RUNTIME_DIR:-}" ] || export NODEVICE_SELECT=1

command -v cc >/dev/null || install gcc libc6-dev
cargo test --locked --quiet --features external-tests --no-run
if ! target/debug/actscope devices --json | grep -q '"device":"gpu"'; then
    [ "$(uname)" = Linux ] && install mesa-vulkan-drivers libvulkan1
    target/debug/actscope devices --json | grep -q '"device":"gpu"' || {
        echo "no GPU adapter answers, not even a software one: the tests of the gpu device would fail" >&2
        exit 1
    }
fi
target/debug/actscope devices

command -v chromium >/dev/null || command -v google-chrome >/dev/null || [ -n "${ACTSCOPE_CHROMIUM:-}" ] || install chromium

source tools/test-venv.sh
test_venv

cargo fmt --check
for features in "" "--no-default-features --features cli" "--all-features"; do
    cargo clippy --locked --quiet --all-targets $features -- -D warnings
done
# The library in parts: nothing may need what its features do not bring.
for features in "" gpu tokenizer download output plot report; do
    cargo clippy --locked --quiet --lib --no-default-features --features "$features" -- -D warnings
done
cargo test --locked --quiet --lib --no-default-features --config profile.dev.opt-level=0
cargo test --locked --quiet --features external-tests
if [ "$parts" = all ]; then
    tools/check-package.sh tests
    tools/check-python.sh
    # The explorer, in WebAssembly and in a browser.
    web/build.sh
    web/test.sh
fi
RUSTDOCFLAGS="-D warnings" cargo doc --locked --quiet --no-deps

tools/check-package.sh

if command -v cargo-deny >/dev/null; then
    cargo deny --locked check licenses bans sources
else
    echo "not checked: licences of dependencies (cargo install cargo-deny --locked)"
fi
echo "all checks passed"
