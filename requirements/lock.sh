#!/bin/sh
# Make the hash-locked files at the top of the repository again, and show what changed for each machine:
# requirements/lock.sh [--upgrade]. See lock.py. It runs in .venv-stages with the test tools, as `invoke lint` makes it.
set -eu

cd "$(dirname "$0")/.."
python=.venv-stages/bin/python
[ -x "$python" ] || { echo "requirements/lock.sh: $python is missing. Run: ./inv lint" >&2; exit 3; }
exec "$python" -m requirements.lock "$@"
