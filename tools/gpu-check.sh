#!/usr/bin/env bash
# Runs everything that needs a real GPU on a machine that has its driver and nothing else: no cargo, no network.
#   gpu-check.sh pack [FILE]        here: builds the program and the tests of the gpu device, and packs them without symbols
#                                   into FILE (target/gpu-check.tar.gz)
#   gpu-check.sh run FILE FOLDER    there, in the root of this repository: unpacks FILE and runs devices, verify, bench and the
#                                   tests; their outputs go to FOLDER, and a summary to FOLDER/summary.txt and stdout. It fails
#                                   if one of them does, after all have run
# The environment variable PROFILE is cargo's profile (dev), TESTS the tests to pack and to run, SECONDS_EACH what one may take.
set -euo pipefail
cd "$(dirname "$0")/.."
tests=${TESTS:-recording kernels golden generate bounds tuning invariants}
profile=${PROFILE:-dev}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

pack() {
    local file=${1:-target/gpu-check.tar.gz} folder=$scratch
    cargo build --locked --quiet --profile "$profile"
    local built=target/$profile
    [ "$profile" != dev ] || built=target/debug
    cp "$built/actscope" "$folder/actscope"
    local test path
    for test in $tests; do
        path=$(cargo test --locked --profile "$profile" --no-run --message-format=json --test "$test" 2>/dev/null |
            grep -o '"executable":"[^"]*"' | cut -d'"' -f4 | grep "/$test-" | tail -n 1)
        cp "$path" "$folder/$test"
    done
    cargo build --locked --quiet --profile "$profile" --example gpu_tiles
    cp "$built/examples/gpu_tiles" "$folder/gpu_tiles"
    strip "$folder"/*
    # Tests have the folder inside them in which they were built, and the path of the program.
    printf '%s\n%s\n' "$PWD" "$built/actscope" >"$folder/built-in"
    git rev-parse HEAD >"$folder/commit"
    tar czf "$file" -C "$folder" .
    ls -l "$file"
}

run() {
    local file=$1 out=$2 bin=$scratch
    mkdir -p "$out"
    out=$(cd "$out" && pwd)
    tar xf "$file" -C "$bin"
    local built_in program
    built_in=$(sed -n 1p "$bin/built-in")
    program=$(sed -n 2p "$bin/built-in")
    if [ ! -e "$built_in" ]; then
        mkdir -p "$(dirname "$built_in")"
        ln -s "$PWD" "$built_in"
    fi
    mkdir -p "$(dirname "$program")"
    cp "$bin/actscope" "$program"
    # Tests find the program where cargo would have said that it is.
    export XDG_CACHE_HOME=$bin/cache RUST_BACKTRACE=0 CARGO_BIN_EXE_actscope=$PWD/$program
    : >"$out/summary.txt"
    local begin=$SECONDS failed=()
    # one NAME COMMAND...: stdout goes to NAME.txt, stderr to NAME.err
    one() {
        local name=$1 status=0 from=$SECONDS
        shift
        timeout "${SECONDS_EACH:-150}" "$@" >"$out/$name.txt" 2>"$out/$name.err" || status=$?
        [ "$status" -eq 0 ] || failed+=("$name")
        printf '%-12s exit code %3d, %3d s\n' "$name" "$status" $((SECONDS - from)) | tee -a "$out/summary.txt"
    }
    { cat "$bin/commit"; date -u; uname -a; nvidia-smi 2>/dev/null || true; vulkaninfo --summary 2>/dev/null || true; } >"$out/machine.txt"
    one devices "$bin/actscope" devices --json
    one bench "$bin/actscope" bench --device gpu --json --quiet
    one tiles "$bin/gpu_tiles"
    one verify "$bin/actscope" verify --device gpu
    local test
    for test in $tests; do
        [ ! -e "$bin/$test" ] || one "$test" "$bin/$test"
    done
    cp -r "$bin/cache" "$out/cache" 2>/dev/null || true
    printf 'all in %d s, %s\n' $((SECONDS - begin)) "${failed[*]:+failed: }${failed[*]:-none failed}" | tee -a "$out/summary.txt"
    [ ${#failed[@]} -eq 0 ]
}

case ${1:-} in
pack) shift; pack "$@" ;;
run) run "$2" "$3" ;;
*) sed -n '2,8s/^# //p' "$0" >&2; exit 2 ;;
esac
