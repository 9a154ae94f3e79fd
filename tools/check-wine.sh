#!/usr/bin/env bash
# Builds the Windows program with mingw-w64 and runs it under wine: its files must be those of the Linux program, byte for byte, and it
# must behave as a Windows user expects (paths, UTF-16 texts, Ctrl-C). On a Debian or Ubuntu machine the script installs what is
# missing. The gpu device is left out: wine's DirectX 12 is a translation of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/install.sh
source tools/rust-target.sh
target=x86_64-pc-windows-gnu

if ! command -v x86_64-w64-mingw32-gcc >/dev/null || ! command -v wine >/dev/null || ! command -v pgrep >/dev/null; then
    install gcc-mingw-w64-x86-64 procps wine wine64
fi
rust_target "$target"

# The dependencies are compiled with fewer optimisations than usual, which takes half the time.
fast=(--config 'profile.dev.package."*".opt-level=1')
cargo build --locked --quiet
cargo build --locked --quiet --target "$target" "${fast[@]}"
target_dir=${CARGO_TARGET_DIR:-target}
linux=$(realpath "$target_dir/debug/actscope")
classic=$PWD/tests/fixtures/classic

work=$(mktemp -d)
export WINEPREFIX=$work/prefix WINEDEBUG=-all WINEDLLOVERRIDES="mscoree,mshtml=" ACTSCOPE_TUNING=off
trap 'wineserver -k 2>/dev/null || true; rm -rf "$work"' EXIT
mkdir "$work/bin" "$work/linux" "$work/windows"
cp "$target_dir/$target/debug/actscope.exe" "$work/bin"
# Rust's standard library takes random numbers from a DLL that wine has had since version 9.
cat > "$work/prng.c" <<'END'
#include <windows.h>
#include <ntsecapi.h>
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T n) { return RtlGenRandom(data, n); }
END
x86_64-w64-mingw32-gcc -O2 -shared -o "$work/bin/bcryptprimitives.dll" "$work/prng.c" -ladvapi32
wine wineboot --init >/dev/null 2>&1

n=0
passed() { n=$((n + 1)); echo "passed: $*"; }
failed() { echo "FAILED: $*" >&2; exit 1; }
windows() { (cd "$work/windows" && wine "$work/bin/actscope.exe" "$@"); }
on_linux() { (cd "$work/linux" && "$linux" "$@"); }

# The same command on both, whose file must be the same: same FILE ARGUMENTS...
same() {
    local file=$1
    shift
    on_linux "$@" -q -o "$file" </dev/null
    windows "$@" -q -o "$file" </dev/null
    cmp "$work/linux/$file" "$work/windows/$file" || failed "$* -o $file differs from the Linux program's"
    passed "$* -o $file: the same $(wc -c <"$work/linux/$file") bytes"
}
# Nothing but finished files in the folder.
nothing_left() {
    local left
    left=$(find "$work/windows" -name '.actscope-*')
    [ -z "$left" ] || failed "$1 left $left"
}

text="The cat sat on the mat."
for device in cpu reference; do
    for ending in npz safetensors json csv jsonl; do
        same "$device.$ending" extract "$text" "A shorter one" --device "$device" -k '*'
        nothing_left "extract -o $device.$ending"
    done
    same "$device-patch.json" patch --clean "$text" --corrupt "The dog sat on the mat." --answer " mat" --device "$device"
done
same heatmap.png heatmap "$text" --device cpu
same heatmap.svg heatmap "$text" --device cpu
same lens.svg lens "$text" --device cpu
same attention.png attention "$text" --device cpu
same report.html report "$text" --device cpu
same generated.json generate "The cat" -n 8 --device cpu

windows verify --device cpu -q >"$work/verify" </dev/null || { cat "$work/verify"; failed "verify --device cpu"; }
passed "verify --device cpu"
windows verify -m "Z:${classic//\//\\}" --device cpu -q >"$work/verify" </dev/null || failed "verify of a fixture"
passed "verify -m Z:\\...\\classic, a path with backslashes"

# Names: Unicode, and a path of more than 260 characters.
long=größe/日本語
for _ in 1 2 3; do long=$long/$(printf 'x%.0s' {1..90}); done
mkdir -p "$work/linux/$long" "$work/windows/$long"
same "$long/naïve.npz" extract "Größe 日本 😀" --device cpu -l 1
same "$long/naïve.csv" extract "Größe 日本 😀" --device cpu -l 1
nothing_left "a long path"
printf 'The cat sat\nGröße 😀\n' >"$work/linux/text.txt"
{ printf '\xff\xfe'; sed 's/$/\r/' "$work/linux/text.txt" | iconv -f UTF-8 -t UTF-16LE; } >"$work/windows/text.txt"
same from-utf16.json extract --file text.txt --device cpu -l 1

# Paths in messages have the backslashes that were typed.
for args in "tokens -m C:\\no\\such hi" "tokens --document C:\\no\\file" "extract hi -o C:\\no\\x.npz" \
    "extract hi --edit z.2:add=C:\\no\\v.npy"; do
    read -ra words <<<"$args"
    if windows "${words[@]}" -q >"$work/said" 2>&1 </dev/null; then failed "$args succeeded"; fi
    grep -qF '\\' "$work/said" && failed "$args: $(cat "$work/said")"
    grep -qF 'C:\' "$work/said" || failed "$args does not name the path: $(cat "$work/said")"
    passed "$args: $(head -c 150 "$work/said" | head -n 1)"
done

# Ctrl-C, which wine takes from SIGINT: the old file stays, and nothing else.
ids=$(seq -s ' ' 7 7 840)
mkdir "$work/windows/interrupted"
for ending in safetensors csv; do
    echo old >"$work/windows/interrupted/x.$ending"
    many=()
    for _ in {1..60}; do many+=(--ids "$ids"); done
    # Job control, since a shell starts its background processes with SIGINT ignored otherwise.
    set -m
    (cd "$work/windows/interrupted" && exec wine "$work/bin/actscope.exe" extract --device reference -k '*' "${many[@]}" \
        -o "x.$ending" >"$work/said" 2>&1 </dev/null) &
    shell=$!
    for _ in {1..300}; do
        [ -z "$(find "$work/windows/interrupted" -name part -o -name values)" ] || break
        sleep 0.1
    done
    [ -n "$(find "$work/windows/interrupted" -name part -o -name values)" ] || failed "the long run never began: $(cat "$work/said")"
    kill -INT "$(pgrep -f "$(basename "$work")[^ ]*actscope.exe extract" | head -n 1)"
    code=0
    wait "$shell" || code=$?
    # STATUS_CONTROL_C_EXIT is 0xC000013A, and wine passes on its last byte. Wine 8 ends an interrupted process with 0.
    [ "$code" -eq $((0x3a)) ] || { [ "$code" -eq 0 ] && [[ $(wine --version) == wine-8.* ]]; } || failed "Ctrl-C ends with $code: $(cat "$work/said")"
    nothing_left "Ctrl-C during -o x.$ending"
    [ "$(cat "$work/windows/interrupted/x.$ending")" = old ] || failed "Ctrl-C changed x.$ending"
    passed "Ctrl-C during -o x.$ending"
done
echo "$n passed, 0 failed, under $(wine --version)"
