"""Stand-in Pythons: scripts that answer version probes with a real Python, and make environments without one."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

_REAL = sys.executable
_STAND_IN = """#!/bin/sh
folder={folder}
echo "${{0##*/}} $*" >> "$folder/log"
case "$1 $2" in
"-c "*) exec {real} -c '{pretend}; exec(sys.argv[1])' "$2" ;;
"-m venv") rm -rf "$4" && mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
"-m pip")
    case "$*" in
    *--dry-run*) [ ! -e "$folder/no-torch" ] || {{ echo "ERROR: No matching distribution found for torch"; exit 1; }} ;;
    *--extra-index-url*)
        [ ! -e "$folder/no-torch-anywhere" ] || {{
            cat "$folder/no-torch-anywhere"; echo "ERROR: No matching distribution found for torch"; exit 1
        }} ;;
    *)
        while [ -e "$folder/hold" ]; do touch "$folder/held"; sleep 0.05; done
        echo "Collecting something"
        [ ! -e "$folder/broken" ] || {{ echo "ERROR: the network is down"; exit 1; }}
        touch "${{0%/*}}/invoke" ;;
    esac ;;
"-m deberta."*) exec {real} "$@" ;;
*) echo "invoke: $*" ;;
esac
"""


def stand_in(folder: Path, name: str = "python3", pretend: str = "import sys") -> Path:
    """A Python that logs its calls to `<folder>/log`; `pretend` is Python code run before each version probe.

    Files in `folder` steer it: `no-torch` (pip knows no torch), `no-torch-anywhere` (nor does
    PyTorch's index; pip prints it), `broken` (pip fails), `hold` (pip touches `held` and
    waits until `hold` is gone).
    """
    text = _STAND_IN.format(folder=shlex.quote(str(folder)), real=shlex.quote(_REAL), pretend=pretend)
    return script(folder / name, text)


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def calls(folder: Path, containing: str) -> list[str]:
    """The logged calls that contain a text, oldest first."""
    log = folder / "log"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return [line for line in lines if containing in line]
