# What compiles Rust to WebAssembly: source this, then call `wasm_cargo build ...`. It takes the Rust that is there if it has the target
# wasm32-unknown-unknown, or gets it from rustup. Else, on Debian 12, it takes Debian's own Rust for the web (rustc-web, cargo-web), which
# has the standard library as source only, and so compiles that as well. It installs what is missing, once, and sets
#   WASM_TARGET_DIR  where builds go          WASM_BINDGEN  wasm-bindgen of the version in Cargo.lock
# With WASM_DEBIAN=1 it takes Debian's Rust in any case.

wasm_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$wasm_root/tools/install.sh"
WASM_TARGET_DIR=${WASM_TARGET_DIR:-$wasm_root/target/web}
wasm_flags="-C target-feature=+simd128"

wasm_sysroot=$(rustc --print sysroot 2>/dev/null || true)
wasm_has_target() { [ -n "$wasm_sysroot" ] && [ -d "$wasm_sysroot/lib/rustlib/wasm32-unknown-unknown" ]; }
wasm_has_target || ! command -v rustup >/dev/null || timeout 300 rustup target add wasm32-unknown-unknown || true
if [ -z "${WASM_DEBIAN:-}" ] && wasm_has_target; then
    wasm_cargo() {
        CARGO_TARGET_DIR=$WASM_TARGET_DIR RUSTFLAGS="$wasm_flags" cargo "$@" --target wasm32-unknown-unknown
    }
else
    [ -d /usr/lib/rustlib/src/rust/library ] && [ -x /usr/bin/cargo ] && [ -n "$(command -v wasm-ld-19)" ] \
        || install rustc-web cargo-web rust-web-src lld-19 gcc libc6-dev
    # Building the standard library is an unstable feature of cargo. Debian's compiler does not choose a linker for the target.
    wasm_cargo() {
        CARGO_TARGET_DIR=$WASM_TARGET_DIR RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc RUSTC_BOOTSTRAP=1 \
            RUSTFLAGS="-C linker=wasm-ld-19 -C linker-flavor=wasm-ld $wasm_flags" \
            /usr/bin/cargo "$@" -Zbuild-std=std,panic_abort --target wasm32-unknown-unknown
    }
fi

wasm_version=$(sed -n '/^name = "wasm-bindgen"$/{n;s/version = "\(.*\)"/\1/p;}' "$wasm_root/Cargo.lock")
WASM_BINDGEN=$wasm_root/target/wasm-tools/bin/wasm-bindgen
if [ "$("$WASM_BINDGEN" --version 2>/dev/null)" != "wasm-bindgen $wasm_version" ]; then
    echo "installing wasm-bindgen-cli $wasm_version into target/wasm-tools"
    command -v cargo >/dev/null && wasm_host_cargo=cargo || wasm_host_cargo=/usr/bin/cargo
    "$wasm_host_cargo" install --quiet --root "$wasm_root/target/wasm-tools" --target-dir "$wasm_root/target/wasm-tools/build" \
        wasm-bindgen-cli --version "$wasm_version"
    rm -rf "$wasm_root/target/wasm-tools/build"
fi
