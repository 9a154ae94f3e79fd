#!/usr/bin/env bash
# Builds the Windows program with mingw-w64 and runs its gpu device on DirectX 12, without Windows: Debian 13's wine, whose vkd3d makes
# Vulkan of it, on Mesa's software driver. It must open, `verify` must pass, and a hook must be the CPU's within rounding. Wine 8 (Debian
# 12) does not do: its vkd3d computes wrong numbers. The shaders are compiled by Microsoft's own compiler, FXC, which is in a package of
# PyPI, since wine's cannot compile them. Needs root on a Debian or Ubuntu machine, and 1.5 GB in target/dx12.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/install.sh
source tools/rust-target.sh
target=x86_64-pc-windows-gnu
[ "$(id -u)" -eq 0 ] || { echo "this needs root, for a chroot" >&2; exit 1; }
if ! command -v x86_64-w64-mingw32-gcc >/dev/null || ! command -v debootstrap >/dev/null || ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
    install gcc-mingw-w64-x86-64 debootstrap python3-venv
fi
rust_target "$target"

# The dependencies are compiled as check-wine.sh does.
cargo build --locked --quiet --target "$target" --config 'profile.dev.package."*".opt-level=1'

here=$PWD/target/dx12
root=$here/trixie
packages=wine64,wine,mesa-vulkan-drivers,libgl1-mesa-dri,libgl1,libegl1,xvfb,libx11-6,libxext6,libxi6,libxrandr2,libxcursor1,libxinerama1,libxcomposite1,libxfixes3,libxrender1
if [ ! -e "$here/made" ]; then
    rm -rf "$here"
    mkdir -p "$here"
    debootstrap --variant=minbase --include="$packages" trixie "$root" http://deb.debian.org/debian >"$here/log" || { tail "$here/log" >&2; exit 1; }
    python3 -m venv "$here/venv"
    "$here/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --platform win_amd64 \
        --python-version 3.11 --dest "$here" kivy_deps.angle==0.5.0
    python3 - "$here" <<'END'
import pathlib, sys, zipfile
here = pathlib.Path(sys.argv[1])
with zipfile.ZipFile(next(here.glob("kivy_deps*angle*.whl"))) as wheel:
    name = next(name for name in wheel.namelist() if name.endswith("/d3dcompiler_47.dll"))
    (here / "d3dcompiler_47.dll").write_bytes(wheel.read(name))
END
    touch "$here/made"
fi
mkdir -p "$root/actscope"
cp "$here/d3dcompiler_47.dll" "${CARGO_TARGET_DIR:-target}/$target/debug/actscope.exe" "$root/actscope"

trap 'umount "$root/proc" "$root/dev"' EXIT
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
cat > "$root/actscope/run.sh" <<'END'
set -euo pipefail
cd /actscope
export HOME=/root WINEPREFIX=/actscope/prefix WINEDEBUG=-all WINEDLLOVERRIDES="mscoree,mshtml=;d3dcompiler_47=n" DISPLAY=:7
export WGPU_BACKEND=dx12 ACTSCOPE_TUNING=off VK_DRIVER_FILES=/usr/share/vulkan/icd.d/lvp_icd.json
Xvfb :7 -screen 0 640x480x24 >/dev/null 2>&1 &
trap 'wineserver -k || true; kill %1' EXIT
sleep 2
[ -d prefix ] || wineboot --init >/dev/null 2>&1
wine actscope.exe devices | tee devices
grep -q Dx12 devices || { echo "no adapter of DirectX 12 answers" >&2; exit 1; }
wine actscope.exe extract "The cat sat on the mat." --device gpu --hook '*resid_post' --check
wine actscope.exe verify --device gpu
END
chroot "$root" env -i PATH=/usr/bin:/bin bash /actscope/run.sh
echo "DirectX 12 passed under $(chroot "$root" env -i PATH=/usr/bin:/bin wine --version 2>/dev/null)"
