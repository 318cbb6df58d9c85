#!/bin/sh
# Make the five hash-locked files at the top of the repository again: requirements/lock.sh [--upgrade]
# Needs uv (tried: 0.13.9). Without --upgrade, versions that still fit are kept.
# torch's +cpu wheel is looked for in PIP_FIND_LINKS if that is set, else on PyTorch's CPU index.
# docker/pins.toml holds the hashes of the locks that images are built from. Afterwards run: invoke images --lock
set -eu

cd "$(dirname "$0")/.."
command -v uv >/dev/null || { echo "requirements/lock.sh: uv is missing. Run: pip install uv==0.13.9" >&2; exit 3; }

lock() {  # lock NAME PYTHON [OPTION...]: requirements/NAME.in -> requirements-NAME.lock
    name=$1 python=$2
    shift 2
    uv pip compile --quiet --no-config --universal --generate-hashes --python-version "$python" \
        --custom-compile-command requirements/lock.sh "$@" -o "requirements-$name.lock" "requirements/$name.in"
    # A requirement without a hash would be refused by pip, with --require-hashes, for the whole file.
    awk -v file="requirements-$name.lock" '
        /^[a-zA-Z0-9]/ { if (name && !hashes) missing = missing " " name; name = $1; hashes = 0 }
        /--hash=/ { hashes++ }
        END { if (name && !hashes) missing = missing " " name
              if (missing) { print file ": no hash for" missing > "/dev/stderr"; exit 5 } }' "requirements-$name.lock"
}

torch=${PIP_FIND_LINKS:-https://download.pytorch.org/whl/cpu/torch/}
lock host 3.9 "$@"
lock stages 3.11 --find-links "$torch" "$@"
lock compile 3.9 --no-universal --python-platform linux "$@"  # one Python; the hashes are of every machine's files
lock dev 3.11 --find-links "$torch" "$@"
lock bench 3.11 --find-links "$torch" "$@"  # peers of `invoke bench`, in an environment of their own
