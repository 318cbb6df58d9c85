"""A folder in which somebody worked by the guide: what in it is of a profile, by the guide's names, sizes and counts.

Nothing is written here. Each file and folder is either supplied, with the place that it belongs in, or left out, with
the reason.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Optional

from deberta.ascend import msame, runs, timing
from deberta.core import contract, files, mnli, schema
from deberta.core.contract import DEV_FILES, INPUTS, TRAIN_FILE
from deberta.core.errors import DataError, DebertaError, many, some
from deberta.host.plan.plan import Case, Plan
from deberta.host.user_files import named_paths, placing
from deberta.host.user_files.placing import Placement

HEAD = 512  # bytes by which a file of another form is told
DEEPEST = 4  # folders in each other that are looked into
GUIDE_CHECKPOINT, GUIDE_CONFIG, GUIDE_TOKENIZER = "pytorch.model-073631.bin", "model_config.json", "spm.model"
OUTPUTS_NAME = "user_supplied"  # of a run's folder, where outputs lie in none
_RESULT = re.compile(r"(msame|eval)_bs([0-9]{1,4})_(match|mismatch)\.txt", re.ASCII)
_MODEL = re.compile(r"deberta_bs([0-9]{1,4})\.om", re.ASCII)
_FOLDER = re.compile(r"(pre_mnli)_bs([0-9]{1,4})|(outputs)_bs([0-9]{1,4})_om", re.ASCII)
_PERFORMANCE = re.compile(r"perf_bs[0-9]{1,4}_om", re.ASCII)
_OTHER_RUN = re.compile(r"(deberta|pre_mnli|outputs|perf|msame|eval)_bs[0-9]+_.*", re.ASCII)
_IN_LOG = re.compile(r"deberta_bs([0-9]{1,4})\.om|pre_mnli_bs([0-9]{1,4})/(match|mismatch)/", re.ASCII)
_CHECKPOINTS = (b"PK\x03\x04", b"\x80")  # torch's archive, and its older pickle


class LeftOut(DataError):
    """Why a file or folder is not of the profile."""


@dataclass(frozen=True)
class Supplied:
    """A file or folder of the user's, its place, and the files or folders that are put in place for it.

    `case` is that of outputs, whose place is the folder that a run's own is in.
    """

    source: Path
    target: PurePosixPath
    placements: tuple[Placement, ...]
    case: Optional[Case] = None
    note: str = ""


@dataclass
class FolderContents:
    """What a folder holds. `left_out`: paths and reasons.

    `texts`: accuracy texts by batch size and version, which are compared with what the outputs come to.
    """

    supplied: list[Supplied] = field(default_factory=list)
    texts: dict[tuple[int, str], Path] = field(default_factory=dict)
    left_out: list[tuple[Path, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Look:
    """How a folder is looked through. `digests`: path in the workspace -> the SHA-256 that the profile's file has."""

    plan: Plan
    workspace: Path
    digests: Mapping[str, str]
    survey: FolderContents = field(default_factory=FolderContents)

    def through(self, folder: Path) -> FolderContents:
        """Everything in a folder. Raises OSError if it cannot be read."""
        data = {**self._inputs(), **{name: self.plan.profile.dataset_path / name for name in self._data_names()}}
        entries = list(_entries(folder))
        for path, known in sorted(entries, key=lambda entry: entry[0].name not in data):  # the data first: it has rows
            if not known:
                self.survey.left_out.append((path, f"{many(_files_below(path), 'file')}, none by the guide's names"))
                continue
            try:
                self._entry(path, data)
            except LeftOut as error:
                self.survey.left_out.append((path, str(error)))
            except DebertaError as error:
                self.survey.left_out.append((path, f"it does not fit: {str(error).partition('. Run: ')[0]}"))
            except OSError as error:
                self.survey.left_out.append((path, f"it cannot be read: {error.strerror}"))
        return self.survey

    def _inputs(self) -> dict[str, PurePosixPath]:
        """File name -> place, by the guide's names and by the profile's own."""
        profile = self.plan.profile
        guide = {GUIDE_CHECKPOINT: profile.checkpoint_path, GUIDE_CONFIG: profile.config_path}
        guide[GUIDE_TOKENIZER] = profile.tokenizer_path
        return {**guide, **{path.name: path for path in guide.values()}}

    def _data_names(self) -> list[str]:
        return [*(DEV_FILES[version] for version in self.plan.profile.rows), TRAIN_FILE]

    def _entry(self, path: Path, data: Mapping[str, PurePosixPath]) -> None:
        name = path.name
        if match := _FOLDER.fullmatch(name):
            for version in contract.VERSIONS:
                if (path / version).is_dir():
                    self._folder(path / version, bool(match[1]), match[2] or match[4], version)
            others = [entry.name for entry in path.iterdir() if entry.name not in contract.VERSIONS]
            if others:
                raise LeftOut(
                    f"of it {some(sorted(others), 3)}: only {' and '.join(contract.VERSIONS)} are looked into"
                )
        elif _PERFORMANCE.fullmatch(name):
            raise LeftOut("the outputs of performance runs: no figure rests on them")
        elif match := _RESULT.fullmatch(name):
            _head(path)
            case = self._case(match[2], match[3])
            if match[1] == "msame":
                self._add(path, case.timing_log, note=_check_log(path, case))
            else:
                self._text(path, case)
        elif match := _MODEL.fullmatch(name):
            if self.plan.backend != "ascend":
                raise LeftOut(f"an .om is for the ascend backend, and this is {self.plan.backend}")
            _head(path)
            self._add(path, self._case(match[1]).compiled)
        elif name == "dynamic.onnx":
            _head(path)
            self._add(path, self.plan.artifacts.onnx)
        elif name in data:
            self._input(path, data[name])
        elif _OTHER_RUN.fullmatch(name):
            raise LeftOut("only runs over all rows at length 256 are taken")
        else:
            raise LeftOut("no name of the guide's")

    def _case(self, size: str, version: str = "") -> Case:
        if version and version not in self.plan.profile.rows:
            raise LeftOut(f"profile {self.plan.profile.name} has no version {version}")
        try:
            return Case(self.plan, contract.whole(size, 1, 1024), version).padded
        except ValueError as error:
            raise LeftOut(f"its batch size {error}") from None

    def _add(
        self,
        path: Path,
        target: PurePosixPath,
        placements: Sequence[Placement] = (),
        case: Optional[Case] = None,
        note: str = "",
    ) -> None:
        """Something that fits. Two of one place are compared: the same once, different ones not at all."""
        supplied = Supplied(path, target, tuple(placements) or (Placement(path, target),), case, note)
        for before in self.survey.supplied:
            if before.target == target:
                pairs = zip(before.placements, supplied.placements)
                if all(placing.is_same(first.source, second.source) for first, second in pairs):
                    raise LeftOut(f"it is the same as {before.source}")
                self.survey.supplied.remove(before)
                self.survey.left_out.append((before.source, f"{path} is another one for the same place, {target}"))
                raise LeftOut(f"{before.source} is another one for the same place, {target}")
        self.survey.supplied.append(supplied)

    def _input(self, path: Path, target: PurePosixPath) -> None:
        """A checkpoint, config, tokenizer or tsv, of the profile's digest where that is known."""
        profile, expected = self.plan.profile, self.digests.get(str(target))
        if target == profile.checkpoint_path:
            head = _head(path, any_form=True)
            if not head.startswith(_CHECKPOINTS) and head[8:9] != b"{":
                raise LeftOut(f"it {files.form_of(head, path.stat().st_size) or 'is no checkpoint'}")
        else:
            _head(path)
        if target == profile.config_path and schema.read(path, dict[str, Any], "").get("model_type") != "deberta-v2":
            raise LeftOut("its model_type is not deberta-v2")
        for version in profile.rows:
            if target == profile.data_path(version):
                count = sum(1 for _ in mnli.rows(path))
                mnli.expect_rows(path, count, profile.rows[version] or count)
        if expected and (sha256 := files.sha256_of(path)) != expected:
            raise LeftOut(f"it is not the profile's: expected sha256 {expected}, found {sha256}")
        self._add(path, target)

    def _rows(self, version: str) -> int:
        """How many rows a version has, by the profile or by the tsv, 0 if neither is here."""
        profile = self.plan.profile
        if profile.rows[version]:
            return profile.rows[version] or 0
        target = profile.data_path(version)
        tsv = next((entry.source for entry in self.survey.supplied if entry.target == target), self.workspace / target)
        return sum(1 for _ in mnli.rows(tsv)) if tsv.is_file() else 0

    def _folder(self, folder: Path, are_bins: bool, size: str, version: str) -> None:
        try:
            case = self._case(size, version)
            add = self._bins if are_bins else self._outputs
            add(folder, case)
        except LeftOut as error:
            self.survey.left_out.append((folder, str(error)))
        except DebertaError as error:
            self.survey.left_out.append((folder, f"it does not fit: {str(error).partition('. Run: ')[0]}"))

    def _bins(self, folder: Path, case: Case) -> None:
        count, rows = 0, self._rows(case.version)
        if others := [path.name for path in _visible(folder) if path.name not in INPUTS]:
            raise LeftOut(f"it holds more than {' and '.join(INPUTS)}: {some(others)}")
        for name in INPUTS:
            if not (folder / name).is_dir():
                raise LeftOut(f"it has no folder {name}")
            paths = _visible(folder / name)
            count = contract.batch_count(rows, case.batch_size) if rows else count or len(paths)
            expected = {contract.input_file(index): contract.input_bytes(case.batch_size) for index in range(count)}
            runs.check_files(paths, expected, "inputs", folder / name)
        self._add(folder, case.bins, note="" if rows else "their number is not checked: there is no tsv")

    def _outputs(self, folder: Path, case: Case) -> None:
        inside = named_paths.runs_in(folder)
        if len(inside) > 1:
            names = some([path.name for path in inside])
            raise LeftOut(
                f"it holds {len(inside)} runs ({names}). Leave one, or count one: "
                f"{case.command('postprocess')} --outputs {inside[0]}"
            )
        [run] = inside or [folder]
        rows, paths = self._rows(case.version), _visible(run)
        count = contract.batch_count(rows, case.batch_size) if rows else len(paths)
        expected = {contract.output_file(index): contract.output_bytes(case.batch_size) for index in range(count)}
        runs.check_files(paths, expected, "outputs", run)
        _check_finite(run, rows, case.batch_size)
        target = case.outputs / (run.name if inside else OUTPUTS_NAME)
        self._add(folder, case.outputs, [Placement(run, target)], case)

    def _text(self, path: Path, case: Case) -> None:
        """An accuracy text: of all rows, and the only one of its case."""
        values = accuracy_values(files.read_text(path))
        rows = self._rows(case.version)
        if not {"accuracy", "eval_samples"} <= values.keys():
            raise LeftOut("it has no lines accuracy = ... and eval_samples = ...")
        if rows and values["eval_samples"] != str(rows):
            raise LeftOut(f"it is of {values['eval_samples']} rows, and {case.version} has {rows}")
        place = (case.batch_size, case.version)
        if place in self.survey.texts:
            raise LeftOut(f"{self.survey.texts[place]} is one of the same run")
        self.survey.texts[place] = path


def accuracy_values(text: str) -> dict[str, str]:
    """The `key = value` lines of an accuracy text."""
    pairs = (line.partition(" = ") for line in text.splitlines())
    return {key: value for key, separator, value in pairs if separator}


def _entries(folder: Path, depth: int = 0) -> Iterator[tuple[Path, bool]]:
    """The files and folders to look at; with False, folders that hold nothing by the guide's names."""
    for path in sorted(folder.iterdir()):
        if not path.is_dir() or _FOLDER.fullmatch(path.name) or _PERFORMANCE.fullmatch(path.name):
            yield path, True
        elif path.name.startswith(".") or depth >= DEEPEST:
            yield path, False
        else:
            inside = list(_entries(path, depth + 1))
            known = [entry for entry, is_known in inside if is_known and _is_name(entry.name)]
            yield from inside if known else [(path, False)]


def _is_name(name: str) -> bool:
    """Whether the guide, or a run of it, has files and folders of that name."""
    fixed = (GUIDE_CHECKPOINT, GUIDE_CONFIG, GUIDE_TOKENIZER, "dynamic.onnx", *DEV_FILES.values())
    patterns = (_RESULT, _MODEL, _FOLDER, _PERFORMANCE)
    return name in fixed or any(pattern.fullmatch(name) for pattern in patterns)


def _files_below(path: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(path))


def _visible(folder: Path) -> list[Path]:
    """What msame would see in a folder."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _head(path: Path, any_form: bool = False) -> bytes:
    """How a file begins. Raises LeftOut for an empty one, or one of a form that is told by it; OSError."""
    with files.open_regular(path) as file:
        head = file.read(HEAD)
    if not head:
        raise LeftOut("it is empty")
    if not any_form and (form := files.form_of(head, path.stat().st_size)):
        raise LeftOut(f"it {form}")
    return head


def _check_log(path: Path, case: Case) -> str:
    """Look at a log of a performance run; returns what is to be said of it. Raises LeftOut and DataError."""
    text = files.read_text(path)
    run = msame.parse(text)
    if run.errors:
        raise LeftOut(f"the run failed: {run.errors[0]}")
    if not run.success:
        raise LeftOut("it has no line that says success")
    timing.check_average(timing.parse(text, msame.PROGRAM, case.batch_size))
    for match in _IN_LOG.finditer(text):
        size, version = match[1] or match[2], match[3] or case.version
        if (size, version) != (str(case.batch_size), case.version):
            raise LeftOut(f"it is of another run: {match[0]}")
    loops = len(run.times_ms)
    return "" if loops == contract.PERFORMANCE_LOOPS else f"{loops} loops, the guide's run has 100"


def _check_finite(run: Path, rows: int, batch_size: int) -> None:
    """Raise LeftOut for NaN or infinity in the outputs of real rows; those of rows that fill a batch do not count."""
    width = len(contract.LABELS)
    for index in range(contract.batch_count(rows, batch_size)):
        content = files.read_bytes(run / contract.output_file(index), contract.output_bytes(batch_size))
        values = struct.unpack(f"<{batch_size * width}f", content)[: (rows - index * batch_size) * width]
        if not all(map(math.isfinite, values)):
            raise LeftOut(f"{contract.output_file(index)} holds NaN or infinity")
