# Source this, then call `rust_target TARGET`: the standard library of a target, from rustup where it is missing. What rustup says is
# printed if it fails, and the script ends.
rust_target() {
    local said
    [ ! -d "$(rustc --print sysroot)/lib/rustlib/$1/lib" ] || return 0
    said=$(rustup target add "$1" 2>&1) || {
        printf '%s\n' "$said" >&2
        echo "rustup could not add the target $1 (see above), so nothing can be built for it; add it by hand, then run this again" >&2
        exit 1
    }
}
