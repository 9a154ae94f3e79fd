#!/usr/bin/env bash
# Type-checks library, binary, tests and examples for systems that this machine is not: macOS, Windows and Linux on 64-bit ARM,
# without warnings. For wasm32 it checks the library without default features and the explorer. Nothing is linked or run;
# check-wine.sh and check-aarch64.sh run what is built here.
#
#   tools/check-targets.sh [TARGET]...
#
# The standard library comes from rustup. C compilers (for `ring`) come from Debian, and for macOS from PyPI (`ziglang`). On a
# Debian or Ubuntu machine the script installs what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/install.sh
source tools/rust-target.sh

targets=(aarch64-apple-darwin x86_64-pc-windows-gnu aarch64-unknown-linux-gnu wasm32-unknown-unknown)
[ $# -eq 0 ] || targets=("$@")

# zig has the headers of macOS. It takes clang's options, but not clang's names of targets.
zig() {
    [ -x target/zig/bin/python ] || python3 -m venv target/zig 2>/dev/null || {
        install python3-venv
        rm -rf target/zig
        python3 -m venv target/zig
    }
    target/zig/bin/python -c 'import ziglang' 2>/dev/null ||
        target/zig/bin/pip install --quiet --disable-pip-version-check ziglang==0.17.1
    cat > target/zig/cc <<END
#!/usr/bin/env bash
for arg; do
    shift
    case \$arg in --target=*|-mmacosx-version-min=*|-arch|arm64) ;; *) set -- "\$@" "\$arg" ;; esac
done
exec "$PWD/target/zig/bin/python" -m ziglang cc -target aarch64-macos "\$@"
END
    chmod +x target/zig/cc
}

for target in "${targets[@]}"; do
    echo "checking $target"
    rust_target "$target"
    what=(--all-targets)
    case $target in
        aarch64-apple-darwin)
            zig
            # The SDK is named because its path would be asked of `xcrun`; zig does not need it.
            export SDKROOT=/ CC_aarch64_apple_darwin=$PWD/target/zig/cc AR_aarch64_apple_darwin=ar
            ;;
        x86_64-pc-windows-gnu) command -v x86_64-w64-mingw32-gcc >/dev/null || install gcc-mingw-w64-x86-64 ;;
        aarch64-unknown-linux-gnu)
            command -v aarch64-linux-gnu-gcc >/dev/null || install gcc-aarch64-linux-gnu libc6-dev-arm64-cross
            ;;
        wasm32-unknown-unknown) what=(--lib --no-default-features) ;;
    esac
    # In a browser no thread shares a GPU or a source of bytes, so an Arc of one is not what this lint takes it for.
    lints=(-D warnings)
    [ "$target" != wasm32-unknown-unknown ] || lints+=(-A clippy::arc_with_non_send_sync)
    cargo clippy --locked --quiet --target "$target" "${what[@]}" -- "${lints[@]}"
    # The explorer is a package of its own, which is empty on other targets. The library is linted with it, as it has it: with a GPU.
    [ "$target" != wasm32-unknown-unknown ] ||
        cargo clippy --locked --quiet --target "$target" -p actscope-web -- "${lints[@]}"
done
echo "no warnings for ${targets[*]}"
