"""A CANN-like installation made of the stand-ins (tests/fakes), for the local executor's tests and for images.

    ROOT/ascend-toolkit/set_env.sh                      what a user sources
    ROOT/ascend-toolkit/latest -> 5.1.RC2               bin/atc, lib64, opp, compiler/version.info, ...
    ROOT/ascend-toolkit/latest/<arch>-linux/            ascend_toolkit_install.info, devlib/libascend_hal.so
    ROOT/driver/version.info                            the guide's 22.0.2
    ROOT/bin/npu-smi                                    /usr/local/bin/npu-smi on a real host
    ROOT/msame                                          what the user brings along
    ROOT/forced.sh                                      written by force(): failures to bring about

Layout of 5.1 as documented; the files that no tool of ours reads are left out, and component version numbers are
made up. The tree refers to nothing outside itself but an interpreter, so that it can be copied into an image.
"""

from __future__ import annotations

import platform
import shlex
import shutil
from pathlib import Path

FAKES = Path(__file__).resolve().parent / "fakes"
VERSION = "5.1.RC2"
DRIVER = "22.0.2"
SET_ENV = Path("ascend-toolkit/set_env.sh")
ATC = Path("ascend-toolkit/latest/bin/atc")
NPU_SMI = Path("bin/npu-smi")
MSAME = Path("msame")
FORCED = Path("forced.sh")


def install(folder: Path, *, at: str = "", python: str = "", hal: bool = True) -> Path:
    """Lay the tree out in `folder` and return its root, which is `folder`.

    `at`: where the tree will lie when it is used, if elsewhere (`/usr/local/Ascend` in an image). `python`: the
    interpreter that runs the stand-ins, with onnxruntime for msame's; without it python3 of PATH does, and msame needs
    FAKE_MSAME_PYTHON if that one has no onnxruntime. `hal`: whether the toolkit brings the driver's stub library.
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
        _script(folder / path, root, python, lines)
    return folder


def force(root: Path, *, atc: str = "", msame: str = "", npu_smi: str = "") -> None:
    """Set FAKE_ATC, FAKE_MSAME and FAKE_NPU_SMI for all runs to come, which the caller's variables may not reach."""
    values = {"FAKE_ATC": atc, "FAKE_MSAME": msame, "FAKE_NPU_SMI": npu_smi}
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


def _script(path: Path, root: str, python: str, lines: str) -> None:
    """A program of the tree: what was forced, then the stand-in."""
    interpreter = f'"{python}" ' if python else ""
    stand_in = f"{root}/ascend-toolkit/{VERSION}/stand-ins/fakes/{path.name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'#!/bin/sh\n[ -f "{root}/{FORCED}" ] && . "{root}/{FORCED}"\n{lines}exec {interpreter}"{stand_in}" "$@"\n',
        encoding="utf-8",
    )
    path.chmod(0o755)
