# Source this, then call `install PACKAGE...`: installs packages on a Debian or Ubuntu machine; elsewhere it says what is missing, and the
# script ends.
install() {
    local root=()
    echo "installing $*"
    command -v apt-get >/dev/null || { echo "please install $* by hand, then run this again" >&2; exit 1; }
    [ "$(id -u)" -eq 0 ] || root=(sudo)
    "${root[@]}" apt-get -o DPkg::Lock::Timeout=600 update -qq
    DEBIAN_FRONTEND=noninteractive "${root[@]}" apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends "$@" >/dev/null
}
