#!/usr/bin/env bash
# What real GPU compilers make of our kernels, without a GPU: Mesa's drivers for AMD (RDNA3), Apple (G13) and NVIDIA (Turing) over
# its no-op kernel interfaces compile for the chip, and nothing runs.
#   gpu-isa.sh          prints a table: chip, kernel, registers, spills, instructions, and of its hottest loop instructions,
#                       multiply-adds, waits and the share of multiply-adds in percent; read.py says what each column means
#   gpu-isa.sh workgroups   prints how many workgroups each product of gpt2-small has; needs no driver
#   gpu-isa.sh check    compares it with thresholds.csv; exit code 1 where a kernel spills or has become worse
# The drivers are unpacked from Debian sid into target/gpu-isa (430 MB, once), and run through their own loader: the system stays
# as it is. Where that cannot be had (no Debian, no network), the exit code is 77 and a message says why.
# Apple's driver runs without robust buffer access, which Metal does not have either.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$PWD/target/gpu-isa
lib=$folder/root/usr/lib/$(uname -m)-linux-gnu

skip() {
    echo "gpu-isa: skipped: $*" >&2
    exit 77
}

setup() {
    [ "$(uname)" = Linux ] && command -v apt-get >/dev/null && command -v dpkg >/dev/null || skip "this is no Debian system"
    local mirror apt=$folder/apt
    mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null |
        grep -oE 'https?://[^ ]+/debian/?( |$)' | grep -v -e snapshot -e security | head -n 1 | tr -d ' ') || true
    [ -n "$mirror" ] || skip "apt knows no mirror of Debian"
    mkdir -p "$folder/root" "$folder/icd" "$apt/lists/partial" "$apt/cache/archives/partial"
    touch "$apt/status"
    # The system's keys need not know sid's; what is unpacked here runs as a compiler and nothing else.
    echo "deb [trusted=yes] $mirror sid main" >"$apt/sources.list"
    local options=(-o Dir::Etc::SourceList="$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::State="$apt"
        -o Dir::State::status="$apt/status" -o Dir::Cache="$apt/cache" -o APT::Architecture="$(dpkg --print-architecture)"
        -o Debug::NoLocking=1)
    apt-get "${options[@]}" update -qq >&2 || skip "Debian sid's list of packages could not be read"
    apt-get "${options[@]}" install -y -qq --no-install-recommends --download-only \
        mesa-vulkan-drivers mesa-drm-shim libvulkan1 >/dev/null || skip "Debian sid's packages could not be downloaded"
    local package
    for package in "$apt"/cache/archives/*.deb; do dpkg -x "$package" "$folder/root"; done
    rm -rf "$apt"
    local pair
    for pair in amd:radeon apple:asahi nvidia:nouveau; do
        printf '{"file_format_version":"1.0.1","ICD":{"api_version":"1.4.0","library_path":"%s"}}\n' \
            "$lib/libvulkan_${pair#*:}.so" >"$folder/icd/${pair%:*}.json"
    done
    touch "$folder/complete"
}

# Compiles every kernel with the driver of one chip: compile CHIP SHIM
compile() {
    local loader=
    for loader in "$folder"/root/usr/lib64/ld-linux-*.so.2 "$folder"/root/usr/lib/ld-linux-*.so.*; do
        [ ! -e "$loader" ] || break
    done
    VK_DRIVER_FILES=$folder/icd/$1.json MESA_SHADER_CACHE_DISABLE=true NODEVICE_SELECT=1 \
        AMDGPU_GPU_ID=navi31 RADV_DEBUG=shaders,shaderstats \
        HK_PERFTEST=norobust AGX_MESA_DEBUG=shaders,shaderdb \
        NOUVEAU_CHIPSET=194 NAK_DEBUG=print \
        timeout 120 "$loader" --library-path "$lib" --preload "$lib/lib$2_noop_drm_shim.so" \
        target/debug/examples/gpu_isa_compile >"$folder/$1.out" 2>"$folder/$1.err" || {
        tail -n 3 "$folder/$1.err" >&2
        echo "gpu-isa: the driver for $1 failed; all it said is in $folder/$1.err" >&2
        exit 1
    }
}

if [ "${1:-}" = workgroups ]; then exec cargo run --quiet --example gpu_isa_compile workgroups; fi
command -v python3 >/dev/null || skip "python3 is not installed"
[ -e "$folder/complete" ] || setup
cargo build --quiet --example gpu_isa_compile
compile amd amdgpu
compile apple asahi
compile nvidia nouveau
case ${1:-print} in
print) python3 tools/gpu-isa/read.py "$folder" ;;
check) python3 tools/gpu-isa/read.py "$folder" tools/gpu-isa/thresholds.csv ;;
*) echo "usage: gpu-isa.sh [check]" >&2; exit 2 ;;
esac
