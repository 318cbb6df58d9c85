"""A CANN-like installation made of the stand-ins (tests/fakes), for the local executor's tests and for images.

    ROOT/ascend-toolkit/set_env.sh                      what a user sources
    ROOT/ascend-toolkit/latest -> 5.1.RC2               bin/atc, lib64, opp, compiler/version.info, ...
    ROOT/ascend-toolkit/latest/lib64/libascendcl.so     no library, like the next: they are only looked for
    ROOT/ascend-toolkit/latest/<arch>-linux/            ascend_toolkit_install.info, devlib/libascend_hal.so
    ROOT/driver/version.info                            the guide's 22.0.2
    ROOT/bin/npu-smi                                    /usr/local/bin/npu-smi on a real host
    ROOT/msame                                          what the user brings along
    ROOT/forced.sh                                      written by force(): failures to bring about

Layout of 5.1 as documented; the files that no tool of ours reads are left out, and component version numbers are
made up. The tree refers to nothing outside itself but an interpreter, so that it can be copied into an image.
`make_run` packs its toolkit as the self-extracting file that is downloaded.
"""

from __future__ import annotations

import platform
import shlex
import shutil
import tarfile
import tempfile
from pathlib import Path

FAKES = Path(__file__).resolve().parent / "fakes"
VERSION = "5.1.RC2"
DRIVER = "22.0.2"
SET_ENV = Path("ascend-toolkit/set_env.sh")
ATC = Path("ascend-toolkit/latest/bin/atc")
NPU_SMI = Path("bin/npu-smi")
MSAME = Path("msame")
FORCED = Path("forced.sh")
RUN = "Ascend-cann-toolkit_{version}_linux-{arch}.run"
_PLACE = "@INSTALL_PATH@"


def install(folder: Path, *, at: str = "", python: str = "", hal: bool = True, forced: str = "") -> Path:
    """Lay the tree out in `folder` and return its root, which is `folder`.

    `at`: where the tree will lie when it is used, if elsewhere (`/usr/local/Ascend` in an image). `python`: the
    interpreter that runs the stand-ins, with onnxruntime for msame's; without it python3 of PATH does, and msame needs
    FAKE_MSAME_PYTHON if that one has no onnxruntime. `hal`: whether the toolkit brings the driver's stub library.
    `forced`: the file that is read in place of ROOT/forced.sh, which nobody can write once the tree is in an image.
    """
    root = at or str(folder.resolve())
    arch = f"{platform.machine()}-linux"
    package = folder / "ascend-toolkit" / VERSION
    for name in ("lib64", "opp", "toolkit", "compiler", "python/site-packages", f"{arch}/devlib"):
        (package / name).mkdir(parents=True)
    (folder / "ascend-toolkit/latest").symlink_to(VERSION)
    shutil.copytree(FAKES, package / "stand-ins/fakes", ignore=shutil.ignore_patterns("__pycache__"))
    (package / arch / "ascend_toolkit_install.info").write_text(
        f"package_name=Ascend-cann-toolkit\nversion={VERSION}\narch={platform.machine()}\nos=linux\n"
        f"path={root}/ascend-toolkit/{VERSION}/{arch}\n",
        encoding="utf-8",
    )
    (package / "compiler/version.info").write_text(f"Version=1.82.0.0.0\nversion_dir={VERSION}\n", encoding="utf-8")
    (package / "lib64/libascendcl.so").write_bytes(b"stand-in\n")
    if hal:
        (package / arch / "devlib/libascend_hal.so").write_bytes(b"stand-in\n")
    (folder / "driver").mkdir()
    (folder / "driver/version.info").write_text(f"Version={DRIVER}\n", encoding="utf-8")
    home = f"{root}/ascend-toolkit/latest"
    (folder / SET_ENV).write_text(_set_env(home, f"{root}/driver"), encoding="utf-8")
    # The real atc is a shell script too, which sets these two and starts atc.bin.
    paths = (
        f'export LD_LIBRARY_PATH="{home}/lib64:$LD_LIBRARY_PATH"\n'
        f'export PYTHONPATH="{home}/python/site-packages:$PYTHONPATH"\n'
    )
    for path, lines in ((ATC, paths), (NPU_SMI, ""), (MSAME, "")):
        _script(folder / path, root, python, forced or f"{root}/{FORCED}", lines)
    return folder


def make_run(folder: Path, *, version: str = VERSION, arch: str = "", hal: bool = True, before: str = "") -> Path:
    """Make the toolkit's package in `folder` under its own name, and return its path.

    It takes the flags of a silent installation and no others, and refuses another machine than `arch` (default: this
    one). `before`: lines of shell that it runs first.
    """
    arch = arch or platform.machine()
    path = folder / RUN.format(version=version, arch=arch)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made, open(path, "wb") as file:
        tree = install(Path(made) / "tree", at=_PLACE, hal=hal)
        file.write(_INSTALLER.format(before=before, arch=arch, place=_PLACE).encode())
        with tarfile.open(fileobj=file, mode="w|gz") as archive:
            archive.add(tree / "ascend-toolkit", "ascend-toolkit")
    path.chmod(0o755)
    return path


def force(root: Path, *, atc: str = "", msame: str = "", npu_smi: str = "", ais_bench: str = "") -> None:
    """Set FAKE_ATC, FAKE_MSAME... for all runs to come, which the caller's variables may not reach."""
    values = {"FAKE_ATC": atc, "FAKE_MSAME": msame, "FAKE_NPU_SMI": npu_smi, "FAKE_AIS_BENCH": ais_bench}
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in values.items() if value]
    (root / FORCED).write_text("".join(lines), encoding="utf-8")


def _set_env(home: str, driver: str) -> str:
    """The variables that the real set_env.sh exports; like it, for bash and sh, and harmless when sourced twice."""
    return f"""\
export ASCEND_TOOLKIT_HOME="{home}"
export ASCEND_HOME_PATH="{home}"
export ASCEND_AICPU_PATH="{home}"
export ASCEND_OPP_PATH="{home}/opp"
export TOOLCHAIN_HOME="{home}/toolkit"
export LD_LIBRARY_PATH="{driver}/lib64:{home}/lib64:${{LD_LIBRARY_PATH}}"
export PYTHONPATH="{home}/python/site-packages:${{PYTHONPATH}}"
export PATH="{home}/bin:${{PATH}}"
"""


def _script(path: Path, root: str, python: str, forced: str, lines: str) -> None:
    """A program of the tree: what was forced, then the stand-in."""
    interpreter = f'"{python}" ' if python else ""
    stand_in = f"{root}/ascend-toolkit/{VERSION}/stand-ins/fakes/{path.name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'#!/bin/sh\n[ -f "{forced}" ] && . "{forced}"\n{lines}exec {interpreter}"{stand_in}" "$@"\n',
        encoding="utf-8",
    )
    path.chmod(0o755)


def add_ais_bench(root: Path, python: str = "") -> None:
    """Install ais_bench and aclruntime where set_env.sh's PYTHONPATH finds them, for `python3 -m ais_bench`.

    `python`: the interpreter with onnxruntime that runs the stand-in; without it the one that was started.
    """
    packages = root / "ascend-toolkit" / VERSION / "python/site-packages"
    (packages / "ais_bench").mkdir()
    (packages / "ais_bench/__init__.py").write_text("", encoding="utf-8")
    (packages / "aclruntime.py").write_text('raise ImportError("a stand-in, to be found only")\n', encoding="utf-8")
    lines = (
        "import os, sys",
        "home = os.path.realpath(__file__).rsplit(os.sep, 4)[0]",
        f"forced = os.path.join(home, '../../{FORCED}')",
        f"run = [{python!r} or sys.executable, os.path.join(home, 'stand-ins/fakes/ais_bench'), *sys.argv[1:]]",
        """os.execv("/bin/sh", ["sh", "-c", '[ -f "$0" ] && . "$0"; exec "$@"', forced, *run])""",
    )
    (packages / "ais_bench/__main__.py").write_text("\n".join(lines) + "\n", encoding="utf-8")


# The real one is a makeself archive: a script, then the files. What it does to a whole system is left out.
_INSTALLER = """\
#!/bin/sh
{before}
quiet= install= path=
for flag in "$@"; do
    case $flag in
        --quiet) quiet=yes ;;
        --install) install=yes ;;
        --install-path=/*) path=${{flag#*=}} ;;
        --install-for-all) ;;
        *) echo "[Toolkit] [ERROR]: Unsupported parameters: $flag"; exit 1 ;;
    esac
done
[ "$quiet$install" = yesyes ] || {{ echo "[Toolkit] [ERROR]: it would ask about the licence now"; exit 1; }}
[ -n "$path" ] || {{ echo "[Toolkit] [ERROR]: no --install-path"; exit 1; }}
[ "$(uname -m)" = {arch} ] || {{ echo "[Toolkit] [ERROR]: this package is for {arch}"; exit 1; }}
sed '1,/^# --- files ---$/d' "$0" | tar -xzf - -C "$path" --no-same-owner || exit 1
grep -rl '{place}' "$path/ascend-toolkit" | while read -r file; do sed -i "s|{place}|$path|g" "$file"; done
echo "[Toolkit] [INFO]: Ascend-cann-toolkit install success"
exit 0
# --- files ---
"""
