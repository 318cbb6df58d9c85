"""Files and folders that options name: refused, before they are hashed or written, if they are something else."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from deberta.core import files, records
from deberta.core.errors import ConfigError, DataError, some
from deberta.core.paths import record_of
from deberta.host.plan.plan import Case
from deberta.host.run.session import Session

# What a folder of outputs may hold: outputs, one run's folder in their place, and what stands beside that.
_OUTPUT_FILE = re.compile(r"input_[0-9]{1,9}_output_0\.bin", re.ASCII)
_OUTPUT = re.compile(r"input_[0-9]{1,9}_output_0\.bin|\d{6,8}(_\d{1,6}){1,4}(\.record\.json)?|\..*", re.ASCII)


def runs_in(folder: Path) -> list[Path]:
    """The folders in a folder that hold outputs, by name: a run writes into one named after its time."""
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in inside if not path.name.startswith(".") and _holds_outputs(path)]


def _holds_outputs(folder: Path) -> bool:
    with contextlib.suppress(OSError):  # another user's
        return folder.is_dir() and any(_OUTPUT_FILE.fullmatch(path.name) for path in folder.iterdir())
    return False


def find_outputs(session: Session, option: str, text: str, case: Case) -> PurePosixPath:
    """The folder of a run's outputs that an option names, or the only one in it; says so if it is not the one named.

    `text` is relative to the caller's folder, or else to the workspace. Raises ConfigError for several runs, or none;
    a folder that is absent is let pass.
    """
    workspace = session.workspace
    for place in dict.fromkeys((Path(os.path.abspath(os.path.expanduser(text))), workspace / text)):
        named = Path(os.path.abspath(place))
        folder, runs = _runs_below(named, case)
        if len(runs) > 1:
            names = some([run.name for run in runs])
            raise ConfigError(
                f"{option} {text}: {folder} holds {len(runs)} runs ({names}). Name one: {option} {runs[0]}"
            )
        if runs:
            path = _in_workspace(workspace, runs[0])
            if runs[0] != named or named != Path(os.path.abspath(workspace / text)):
                session.say(f"{option} {text}: {path} is taken")
            return path
    check_outputs(workspace, option, text)
    if (workspace / text).exists():
        raise ConfigError(f"{option} {text} is no folder of input_<i>_output_0.bin, nor of a run that holds them")
    return PurePosixPath(text)


def of_caller(workspace: Path, text: str) -> str:
    """The path that an option names: relative to the caller's folder, or to the workspace where nothing is there."""
    place = Path(os.path.abspath(os.path.expanduser(text)))
    if not text or os.path.isabs(text) or not place.exists():
        return text
    return str(_in_workspace(workspace, Path(os.path.abspath(place))))


def in_workspace(workspace: Path, text: str) -> str:
    """An absolute path as records have it, or nothing."""
    return str(_in_workspace(workspace, Path(text))) if text else ""


def _in_workspace(workspace: Path, path: Path) -> PurePosixPath:
    """As records have it: relative to the workspace where it is in that."""
    root = Path(os.path.abspath(workspace))
    return PurePosixPath(path.relative_to(root) if root in (path, *path.parents) else path)


def _runs_below(folder: Path, case: Case) -> tuple[Path, list[Path]]:
    """The folder itself if it holds outputs, else the runs in it, or in the guide's folders for the case below it."""
    below = ("result", case.outputs.parent.name, case.version)
    for name in ("", *below):
        folder = folder / name if name and (folder / name).is_dir() else folder
        if runs := [folder] if _holds_outputs(folder) else runs_in(folder):
            return folder, runs
    return folder, []


def check_outputs(workspace: Path, option: str, text: str) -> None:
    """A folder of a run's outputs, absolute or in the workspace. Raises ConfigError; one that is absent is let pass."""
    folder = workspace / text
    if not os.path.isabs(text) and not files.inside(workspace, text, follow=False):
        raise ConfigError(f"{option} {text} leads out of the workspace. Name the folder by its absolute path")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{option} {text} is no folder of input_<i>_output_0.bin")
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir() and not _OUTPUT.fullmatch(entry.name):
                raise ConfigError(
                    f"{option} {text} is no folder of input_<i>_output_0.bin: it holds the folder {entry.name}"
                )


def check_file(workspace: Path, option: str, text: str, folder_with: str = "") -> str:
    """A regular file, or a folder that holds `folder_with`; returns its path as `of_caller` does.

    Raises ConfigError; what is absent is let pass.
    """
    path = workspace / of_caller(workspace, text)
    if not path.exists() or path.is_file() or (folder_with and (path / folder_with).is_file()):
        return of_caller(workspace, text)
    kind = f"file, nor a folder with {folder_with}" if folder_with else "regular file"
    raise ConfigError(f"{option} {text} is no {kind}")


def is_replaceable(option: str, path: Path, heads: Sequence[str], maker: str) -> bool:
    """Whether a file of ours is there, which begins with one of `heads`, ASCII; False if none is.

    Raises DataError for a file of the user's, and ConfigError if its folder is not there.
    """
    if not os.path.lexists(path):
        if not path.parent.is_dir():
            raise ConfigError(f"{option} {path}: its folder is not there. Make it, or name another")
        return False
    with contextlib.suppress(OSError), files.open_regular(path) as file:
        if file.read(max(map(len, heads))).startswith(tuple(map(str.encode, heads))):
            return True
    raise DataError(f"{option} {path} is there, and no {maker} wrote it. Name another file")


def check_report(workspace: Path, option: str, text: str, step: str) -> None:
    """A file that `step` may write: not a folder, nor what another step makes. Raises ConfigError and DataError."""
    path = workspace / text
    if path.is_dir() or path.is_symlink():
        raise ConfigError(f"{option} {text} is a folder or a link. Name a new file")
    record = records.read(workspace / record_of(PurePosixPath(text)))
    maker = record.parameters.get("step") if record else step
    if maker != step:
        raise DataError(f"{option} {text} is what the step {maker} makes, and is not replaced. Name another file")
