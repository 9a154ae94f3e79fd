# Source this from a script that has `install PACKAGE...` for Debian's packages, then call `test_venv`: it makes target/venv, the Python
# with which tests read back what we write (tests/requirements.txt), where it is not there.
test_venv() {
    ! target/venv/bin/python -c 'import numpy, huggingface_hub, safetensors' 2>/dev/null || return 0
    rm -rf target/venv
    python3 -m venv target/venv 2>/dev/null || { install python3-venv; rm -rf target/venv; python3 -m venv target/venv; }
    target/venv/bin/pip install --quiet --disable-pip-version-check -r tests/requirements.txt
}
