#!/usr/bin/env bash
# Runs the tests of the CPU's kernels and the goldens as a 64-bit ARM program, where the kernels use NEON. On another processor qemu
# translates the instructions, a few times slower. The gpu device is left out: it would need a Vulkan driver for ARM. On a Debian or
# Ubuntu machine the script installs what is missing.
#
# The arguments go to cargo, such as `--release`.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/install.sh
source tools/rust-target.sh
target=aarch64-unknown-linux-gnu

if [ "$(uname -m)" != aarch64 ]; then
    if ! command -v aarch64-linux-gnu-gcc >/dev/null || ! command -v qemu-aarch64-static >/dev/null; then
        install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static
    fi
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -L /usr/aarch64-linux-gnu"
fi
rust_target "$target"

# The dependencies are compiled with fewer optimisations than usual: that takes half the time, and our own code is what counts.
run() { cargo test --locked --quiet --target "$target" --config 'profile.dev.package."*".opt-level=1' "${@:2}" -- $1; }
given=("$@")
run device::cpu --lib "${given[@]}"
run cpu:: --test kernels "${given[@]}"
run "--skip ::gpu" --test golden "${given[@]}"
