"""What a forger does to a copy of a tree with an acceptance, and what verify is to say of it."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deberta.core import files
from deberta.core.paths import ACCEPTANCES, Artifacts
from deberta.stages.data import check_data
from tests import shard_helpers
from tests.verify_helpers import (
    ARTIFACTS,
    CHECKPOINT,
    JOB,
    REPORT,
    RESULTS,
    ROWS,
    TSV,
    outputs,
    read,
    remake,
    vouch,
    write,
)  # fmt: skip

# What an unsigned tree cannot show (docs/verify.md) -> how verify's list of what was not checked says it.
UNSHOWN = {
    "who made it": r"who vouches for the report",
    "what really ran": r"that times, machine, tools and settings were what report, logs and records say, and that",
    "what was left out": r"and that nothing was left out",
    "the inputs": r"that .*\b(dev_matched|model_config)\b.* are the files that they should be",
    "the graph": r"that models/small/dynamic.onnx is the checkpoint's graph",
    "the compiled models": r"that the compiled models were made of models/small/dynamic.onnx",
    "the images": r"image made-up: only its id is in the records",
    "the code": r"whether the code of \w+ was this checkout's: its record names other sources",
    "rows that were not drawn": r"that models/small/dynamic.onnx gives the logits of the \d+ rows that were not drawn",
    "figures of older models": r"how \S+ was made \(bs 8, match: outdated: another model\)",
    "a bill of another version": r"bom.cdx.json against its sources: this checkout has another deberta-ascend",
    "files elsewhere": r"/nowhere/model.bin: only files of the tree are opened",
    "another profile": r"\w+ of the profile are not this checkout's: the tree's own are taken",
}
ALL_ROWS = 2 * ROWS
ALONE, DIGESTS, ALL = "alone", "with all digests", "with all that follows"
ONNX = str(ARTIFACTS.onnx)
DATA_CHECK = str(ARTIFACTS.data_check("match"))
OUTPUTS_RECORD = f"{RESULTS}/outputs_bs8_om/match.record.json"
Change = Callable[[Any], object]


@dataclass(frozen=True)
class Forgery:
    """`alter` a tree, and make `fit` what follows. `says`: what is found in an unsigned tree, or the name in UNSHOWN.

    `kept`: done to the kept acceptance, which is then verified. `rows` are replayed, of this `profile`.
    """

    alter: Callable[[Path], object]
    fit: str
    says: str
    kept: bool = False
    rows: int = 1
    profile: str = "small"

    def do(self, root: Path) -> None:
        before = digests(root)
        self.alter(root)
        assert digests(root) != before
        if self.fit == DIGESTS:
            vouch(root)
        elif self.fit == ALL:
            remake(root)


def digests(root: Path) -> dict[str, str]:
    """Of all files in a folder; none if it was renamed."""
    return {name: files.sha256_of(root / name) for name in files.files_in(root)} if root.is_dir() else {}


def json_of(name: str, change: Change) -> Callable[[Path], None]:
    """A change of a JSON file."""

    def alter(root: Path) -> None:
        content = read(root / name)
        change(content)
        write(root / name, content)

    return alter


def put(name: str, place: str, value: Any) -> Callable[[Path], None]:
    """Another value at a place (a.0.b) of a JSON file."""
    *parents, last = [int(part) if part.isdigit() else part for part in place.split(".")]

    def change(content: Any) -> None:
        for part in parents:
            content = content[part]
        assert content[last] != value
        content[last] = value

    return json_of(name, change)


def each_record(change: Callable[[Any], object], below: str = "") -> Callable[[Path], None]:
    """The same change to all records; it returns None where it changes nothing."""

    def alter(root: Path) -> None:
        paths = [path for path in sorted((root / below).rglob("*.record.json")) if ACCEPTANCES not in path.parts]
        changed = 0
        for path in paths:
            record = read(path)
            changed += change(record) is not None
            write(path, record)
        assert changed

    return alter


def definition(record: Any) -> Any:
    return record["predicate"]["buildDefinition"]


def both(*alterations: Callable[[Path], object]) -> Callable[[Path], None]:
    def alter(root: Path) -> None:
        for alteration in alterations:
            alteration(root)

    return alter


def values(path: str, kind: str, change: Callable[[Any], object]) -> Callable[[Path], None]:
    """A change of an array of numbers."""

    def alter(root: Path) -> None:
        file = root / path if path else outputs(root) / "input_2_output_0.bin"
        array = np.fromfile(file, kind)
        change(array)
        array.tofile(file)

    return alter


def nudge(array: Any) -> None:
    array[3] += 0.01


def swap_rows(array: Any) -> None:
    array[0:6] = np.concatenate([array[3:6], array[0:3]])


def swap_tokens(array: Any) -> None:
    array[1:3] = array[2:0:-1].copy()


def outputs_of_the_other_version(root: Path) -> None:
    [others] = (root / RESULTS / "outputs_bs8_om/mismatch").iterdir()
    for path in others.iterdir():
        shutil.copyfile(path, outputs(root) / path.name)


def look_at_the_data(root: Path, versions: Sequence[str] = ("match",)) -> None:
    """The check of the data made again."""
    job, models = read(root / JOB), "models/small"
    models_files = ["--tokenizer", f"{models}/spm.model", "--config", f"{models}/model_config.json"]
    with contextlib.chdir(root), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for version in versions:
            rows = ["--version", version, "--rows", str(job["profile"]["rows"][version])]
            output = ["--output", job["sentinels"][version]]
            check_data.main(["--data", job["data"][version], *models_files, *rows, *output])


def change_sentence(root: Path) -> None:
    lines = (root / TSV).read_text(encoding="utf-8").split("\n")
    cells = lines[5].split("\t")
    cells[8] = " ".join(reversed(cells[8].split(" ")))
    lines[5] = "\t".join(cells)
    (root / TSV).write_text("\n".join(lines), encoding="utf-8")


def cut_to_40_rows(root: Path) -> None:
    """The first 40 rows of each version, passed off as all there are."""
    for version in ("match", "mismatch"):
        data = root / read(root / JOB)["data"][version]
        data.write_bytes(b"".join(data.read_bytes().splitlines(keepends=True)[:41]))
        reference = root / ARTIFACTS.reference(version)
        np.save(reference, np.load(reference)[:40])
        [folder] = (root / RESULTS / "outputs_bs8_om" / version).iterdir()
        folders = [folder, *(root / ARTIFACTS.bins(8, version) / name for name in ("input_ids", "input_mask"))]
        for file in [file for folder in folders for file in folder.iterdir()]:
            if int(file.name.removesuffix(".bin").split("_")[1]) >= 5:
                file.unlink()
    put(JOB, "profile.rows", {"match": 40, "mismatch": 40})(root)
    look_at_the_data(root, ("match", "mismatch"))


def leave_out_mismatch(job: Any) -> None:
    job["versions"] = ["match"]
    for name in ("data", "sentinels", "references"):
        job[name].pop("mismatch")
    for name in ("cells", "performances"):
        job[name] = [figure for figure in job[name] if figure["version"] == "match"]
    job["inputs"] = {path: digest for path, digest in job["inputs"].items() if "mismatched" not in path}
    for group in (job["artifacts"], job["measured"]["artifacts"]):
        for path in [path for path in group if "mismatch" in path]:
            del group[path]
    job["gates"].pop("inputs", None)


def leave_out_an_evaluation(job: Any) -> None:
    cell = job["cells"].pop()
    del job["measured"]["places"][f"bs8_{cell['version']}"]


def forget_steps_without_records(root: Path) -> None:
    """The steps that the job then has: those of the match version's chain."""
    json_of(JOB, leave_out_mismatch)(root)
    fit_job(root)


def fit_job(root: Path) -> None:
    """What the host says in the job of its records, said again as acceptance does."""
    import msgspec

    from deberta.core.job import Job
    from deberta.host.report import evidence, reasons
    from tests.mnli_helpers import REPOSITORY

    tree = evidence.walk(root, ARTIFACTS)
    assert tree.job is not None
    job = reasons.conclude(tree.job, tree.measuring, *reasons.demands(REPOSITORY, tree.job))
    write(root / JOB, msgspec.to_builtins(msgspec.convert(msgspec.to_builtins(job), Job)))


def strike_out_reasons(root: Path) -> None:
    """And gates that fit what was measured; no page can be made of it."""

    def change(job: Any) -> None:
        job["not_accepted"] = []
        del job["gates"]["agreement"]
        job["gates"]["correct_rows"] = {
            version: {"expected": 63, "allowed": 0, "of": ROWS} for version in job["versions"]
        }

    json_of(JOB, change)(root)
    remake(root, pages=False)
    assert read(root / REPORT)["verdict"]["verdict"] == "accepted"


def times_of_2019(root: Path) -> None:
    year = read(root / JOB)["measured"]["made"][:4]
    for path in [root / JOB, *root.rglob("*.record.json")]:
        path.write_text(path.read_text(encoding="utf-8").replace(f'"{year}-', '"2019-'), encoding="utf-8")


def faster(root: Path) -> None:
    """Timing logs of a quicker machine."""
    for version in ("match", "mismatch"):
        log = root / RESULTS / f"msame_bs8_{version}.txt"
        text = log.read_text(encoding="utf-8")
        log.write_text(re.sub(r"\d+\.\d+(?= ?ms)", "0.5", text), encoding="utf-8")


def rename_the_checkpoint(root: Path) -> None:
    for path in root.rglob("*.record.json"):
        path.write_text(path.read_text(encoding="utf-8").replace(f'"{CHECKPOINT}"', '"/nowhere/model.bin"'))
    json_of(JOB, lambda job: job["inputs"].pop(CHECKPOINT))(root)
    (root / CHECKPOINT).unlink()


def the_graph_as_an_input(root: Path) -> None:
    json_of(JOB, lambda job: job["inputs"].update({ONNX: job["artifacts"][ONNX]}))(root)
    (root / f"{ONNX}.record.json").unlink()


def drop_dependency(name: str, needed: str) -> Callable[[Path], None]:
    def change(record: Any) -> None:
        entries = definition(record)["resolvedDependencies"]
        rest = [entry for entry in entries if entry["name"] != needed]
        assert len(rest) < len(entries)
        definition(record)["resolvedDependencies"] = rest

    return json_of(name, change)


def another_record(root: Path) -> None:
    shutil.copyfile(root / OUTPUTS_RECORD.replace("/match", "/mismatch"), root / OUTPUTS_RECORD)


def in_a_made_up_image(record: Any) -> object:
    if definition(record)["externalParameters"].get("stage") is None:
        return None
    definition(record)["externalParameters"]["executor"] = "docker"
    definition(record)["internalParameters"] = {"pins": "pinned"}
    image = {"name": "image made-up", "digest": {"sha256": "1" * 64}}
    return definition(record)["resolvedDependencies"].append(image) or True


def docker_in_the_job(root: Path) -> None:
    each_record(in_a_made_up_image)(root)
    put(JOB, "measured.executor", "docker")(root)
    fit_job(root)


def on_two_devices(change: Change) -> Callable[[Path], None]:
    """The run of one version as if two devices had shared it, true of its files until `change`; and the job of it."""

    def alter(root: Path) -> None:
        record = read(root / OUTPUTS_RECORD)
        times = record["predicate"]["runDetails"]["metadata"]
        sharding = shard_helpers.sharding(outputs(root), times["startedOn"], times["finishedOn"])
        change(sharding)
        definition(record)["internalParameters"]["sharding"] = sharding
        write(root / OUTPUTS_RECORD, record)
        fit_job(root)

    return alter


def without_prepared(record: Any) -> object:
    return definition(record)["internalParameters"].pop("environment", None)


def other_code(record: Any) -> object:
    parameters = definition(record)["externalParameters"]
    return parameters.update({"code": "0" * 64}) or True if "code" in parameters else None


def pass_off_as_demo(root: Path) -> None:
    """Another profile's name in everything."""
    shutil.rmtree(root / RESULTS / ACCEPTANCES)
    for kind in ("models", "data", "results"):
        os.rename(root / kind / "small", root / kind / "demo")
    for path in [*root.rglob("*.json"), *root.rglob("*.txt")]:
        text = path.read_text(encoding="utf-8").replace("/small/", "/demo/").replace('"small"', '"demo"')
        path.write_text(text, encoding="utf-8")
    remake(root, artifacts=Artifacts("demo", "cpu"))


def publish_figures(job: Any) -> None:
    job["profile"]["published"] = True


def kept(root: Path) -> Path:
    """The acceptance of both versions."""
    folders = sorted((root / RESULTS / ACCEPTANCES).iterdir())
    [folder] = [path for path in folders if len(read(path / "report_job.json")["versions"]) == 2]
    return folder


def other_kept(root: Path) -> Path:
    [folder] = [path for path in (root / RESULTS / ACCEPTANCES).iterdir() if path != kept(root)]
    return folder


def page_beside(root: Path) -> None:
    page = root / "report.html"
    text = page.read_text(encoding="utf-8").replace("checked", "accepted")
    page.unlink()
    page.write_text(text, encoding="utf-8")


def link_beside(root: Path) -> None:
    (root / "report.md").unlink()
    (root / "report.md").symlink_to("models/small/model_config.json")


def exchange(root: Path) -> None:
    """The report's pages of another acceptance, records and all."""
    other = other_kept(root.parents[4])
    for name in ("report.json", "report.md", "report.html", "bom.cdx.json"):
        for suffix in ("", ".record.json"):
            if (other / RESULTS / f"{name}{suffix}").exists():
                (root / RESULTS / f"{name}{suffix}").unlink(missing_ok=True)
                shutil.copyfile(other / RESULTS / f"{name}{suffix}", root / RESULTS / f"{name}{suffix}")


def rename_kept(root: Path) -> None:
    os.rename(root, root.with_name(f"20200101T000000Z_{root.name[-8:]}"))


def edit_bytes(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content and len(old) == len(new)
    path.write_bytes(content.replace(old, new, 1))


def move_bias(path: Path, amount: float) -> None:
    """A model whose first label is more likely."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    bias = next(item for item in model.graph.initializer if list(item.dims) == [3])
    array = numpy_helper.to_array(bias)
    bias.CopyFrom(numpy_helper.from_array(array + np.array([amount, 0, 0], np.float32), bias.name))
    onnx.save(model, path)
