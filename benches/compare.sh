#!/usr/bin/env bash
# Ours and others' in turn on this machine: compare.sh [cpu] [gpu] [generate] [matmul] [scaling], all five by default. Linux, on a machine
# that does nothing else; an hour where the GPU is a software adapter. Started again, it continues where it stopped (on the same day).
#
#   cpu      13 hidden states: ONNX Runtime, transformers; everything: TransformerLens; taps against none; beside the limits of the
#            device. CPU_TOKENS="8 64 256 1024" for other lengths
#   generate 16 tokens of a prompt and 64 new ones on cpu: transformers, CTranslate2, llama.cpp. On all threads and on one, or as
#            GENERATE_THREADS="all 1" says
#   gpu      13 hidden states: ONNX Runtime WebGPU; taps against none. GPU_TOKENS="8 64 256 1024" for other lengths
#   matmul   one product of the model: burn's wgpu backend, which tries out kernels for a minute or two first
#   scaling  time and memory from 1 to 1,024 tokens and from 1 to 32 texts, and a plot
#
# The ratios are printed and written to benches/results/, with versions, driver and date; MACHINE=name names the machine there.
# Makes two Python environments with the peers (about 7 GB) and a random checkpoint of gpt2-small's shape in PEERS_DIR, target/peers by
# default. ONNX Runtime WebGPU does not take the software Vulkan of Mesa 22.3 but that of 25.0; VK_DRIVER_FILES
# names another driver, to both sides.
set -euo pipefail
cd "$(dirname "$0")/.."
export PEERS_DIR=${PEERS_DIR:-target/peers}
export PEERS_PYTHON=${PEERS_PYTHON:-$PEERS_DIR/venv/bin/python}
export PEERS_PYTHON_WEBGPU=${PEERS_PYTHON_WEBGPU:-$PEERS_DIR/venv-webgpu/bin/python}
[ -n "${XDG_RUNTIME_DIR:-}" ] || export NODEVICE_SELECT=1

parts=${*:-cpu gpu generate matmul scaling}
for part in $parts; do
    case $part in
        cpu | gpu | generate | matmul | scaling) ;;
        *) echo "compare.sh: $part is none of cpu, gpu, generate, matmul, scaling" >&2; exit 2 ;;
    esac
done
[ -r /proc/stat ] || { echo "compare.sh: it tells what else the machine does from /proc, which only Linux has" >&2; exit 1; }

# A venv whose interpreter is $1, with the packages of $2, unless it can import $3 already.
venv() {
    "$1" -c "import $3" 2>/dev/null && return
    echo "making $(dirname "$(dirname "$1")")" >&2
    python3 -m venv "$(dirname "$(dirname "$1")")"
    "$1" -m pip install --quiet --disable-pip-version-check -r "$2"
}
mkdir -p "$PEERS_DIR"
venv "$PEERS_PYTHON" benches/peers/requirements.txt "torch, transformers, transformer_lens, onnx, onnxruntime, matplotlib"
case " $parts " in *" generate "*)
    venv "$PEERS_PYTHON" benches/peers/requirements-generate.txt "ctranslate2, gguf"
    # It is compiled, for several minutes. Without it the other rows are measured all the same.
    "$PEERS_PYTHON" -c "import llama_cpp" 2>/dev/null ||
        "$PEERS_PYTHON" -m pip install --quiet --disable-pip-version-check llama-cpp-python || true ;;
esac
case " $parts " in *" gpu "* | *" scaling "*) venv "$PEERS_PYTHON_WEBGPU" benches/peers/requirements-webgpu.txt "onnxruntime, numpy" ;; esac
"$PEERS_PYTHON" benches/peers/make_model.py "$PEERS_DIR"

cargo build --quiet --release --example compare_worker
# Examples are built with what tests need, and tests leave this off.
export ACTSCOPE_TUNING=${ACTSCOPE_TUNING:-on}
export OUR_WORKER=target/release/examples/compare_worker
case " $parts " in *" matmul "*)
    cargo build --quiet --release --manifest-path benches/burn/Cargo.toml --target-dir target/burn
    export BURN_WORKER=target/burn/release/actscope-bench-burn ;;
esac
# shellcheck disable=SC2086
exec "$PEERS_PYTHON" benches/peers/compare.py $parts
