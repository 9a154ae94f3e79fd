#!/usr/bin/env bash
# What is published, which must not be too large for crates.io.
#   check-package.sh        packs the crate and checks its size: seconds
#   check-package.sh tests  also runs the tests of the packed crate in an empty folder, without the rest of the repository. This
#                           compiles the crate and its tests once more
set -euo pipefail
cd "$(dirname "$0")/.."

part=${1:-}
case $part in
    "" | tests) ;;
    *) echo "check-package.sh: $part is not \`tests\`" >&2; exit 2 ;;
esac

# Without a session directory Mesa complains about Wayland whenever a test lists adapters; src/main.rs says more.
[ -n "${XDG_RUNTIME_DIR:-}" ] || export NODEVICE_SELECT=1

cargo package --locked --quiet --no-verify --allow-dirty
version=$(cargo pkgid | sed 's/.*[#@]//')
size=$(wc -c < "target/package/actscope-$version.crate")
[ "$size" -le 10485760 ] || { echo "the packed crate has $size bytes, and crates.io takes 10 MiB" >&2; exit 1; }
if [ "$part" = tests ]; then
    packed=$(mktemp -d)
    trap 'rm -rf "$packed"' EXIT
    tar xzf "target/package/actscope-$version.crate" -C "$packed"
    CARGO_TARGET_DIR=$PWD/target cargo test --locked --quiet --manifest-path "$packed/actscope-$version/Cargo.toml"
fi
echo "the packed crate passes, $size bytes"
