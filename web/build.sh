#!/usr/bin/env bash
# Builds the explorer to a folder of static files, web/dist (or the folder that is named): any static server can serve it. On Debian and
# Ubuntu it installs what is missing. It prints what the files take, compressed as a server would send them.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-web/dist}

source tools/wasm-toolchain.sh
wasm_cargo build --locked --quiet --profile web -p actscope-web
built=$WASM_TARGET_DIR/wasm32-unknown-unknown/web/actscope_web.wasm

rm -rf "$out"
mkdir -p "$out/demo"
"$WASM_BINDGEN" --target web --no-typescript --remove-name-section --remove-producers-section --out-dir "$out" "$built"
cp src/explore/page/* "$out"
# The report has it as a part of one script, this page as a module.
cat src/report/page/draw.js src/explore/draw_exports.js > "$out/draw.js"
cp models/demo/{config.json,model.safetensors,tokenizer.json} "$out/demo"

page=$(find "$out" -maxdepth 1 -type f -exec gzip -9 -c {} \; | wc -c)
demo=$(find "$out/demo" -type f -exec gzip -9 -c {} \; | wc -c)
echo "$out: $page bytes gzip, and $demo for the demo model"
[ "$page" -le 2500000 ] || { echo "the page is larger than 2.5 MB" >&2; exit 1; }
[ $((page + demo)) -le 6000000 ] || { echo "the page with the demo model is larger than 6 MB" >&2; exit 1; }
