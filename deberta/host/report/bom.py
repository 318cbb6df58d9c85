"""bom.cdx.json: what a measured deployment consists of, as a CycloneDX 1.6 bill of materials for machine learning.

Format: https://cyclonedx.org/docs/1.6/json/. Models, data, containers, packages and tools, by the hashes that the
report's job and the records have. It is made of those, requirements-stages.lock and docker/pins.toml alone: the same
bytes on any day. Its one time is the report's own.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Iterable, Iterator, Mapping, Sequence
from urllib.parse import quote

import msgspec

import deberta
from deberta.core import contract, files, records, schema
from deberta.core.buckets import Lengths
from deberta.core.errors import DataError
from deberta.core.job import Job
from deberta.core.paths import Artifacts, record_of
from deberta.core.report import EvaluationCell, PerformanceRun, Proportion, Report
from deberta.host.environments import locks
from deberta.host.environments import stages as stage_env
from deberta.host.plan import matrix
from deberta.host.plan.plan import Plan
from deberta.host.plan.profiles import hashed
from deberta.host.report import evidence
from deberta.host.report.evidence import Evidence
from deberta.host.run import freshness
from deberta.host.run.runner import BUILDER
from deberta.host.run.session import Session

STEP = "bom"
PINS = "docker/pins.toml"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:deberta-ascend:bom")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# NAME==VERSION: kind, licence, as the packages of requirements-stages.lock, for any machine, declare it in their
# wheels' metadata, which a test compares where they are installed; nothing here is our own judgement.
# An "expression" is of SPDX: License-Expression, or a License that is one.
# A "name" is what else the metadata says, word for word: its classifier, or else its License.
LICENCES = msgspec.json.decode(Path(__file__).with_name("licences.json").read_bytes())
_UNKNOWN = {"licence": "unknown"}
_OURS = "deberta-ascend:"  # what our property names start with

Json = Mapping[str, Any]
Component = dict[str, Any]


def write(session: Session, plan: Plan) -> PurePosixPath:
    """Write the bill beside the report, and its record; returns its path. Raises MissingError and DataError."""
    started, artifacts, path = records.now(), plan.artifacts, plan.artifacts.bom()
    bill = of_tree(session.project, session.workspace, artifacts, own=True)
    with freshness.intended(session, [path], None):
        files.write_text(session.workspace / path, schema.text(bill))
        report = artifacts.report("json")
        statement = records.statement(
            subjects=[session.digests.resource(path)],
            dependencies=[session.digests.resource(made_of) for made_of in (report, artifacts.job())],
            parameters={"step": STEP, **sources(session.project)},
            internal={},
            builder=f"{BUILDER}local",
            started=started,
            finished=records.now(),
            summary=None,
        )
        records.write(session.workspace / record_of(path), statement)
    return path


def sources(project: Path) -> dict[str, str]:
    """What of the project a bill is made of: the same three, and the same report, give the same bill."""
    digests = {name: files.sha256_of(project / name) for name in (stage_env.STAGES_LOCK, PINS)}
    return {"deberta-ascend": deberta.__version__, **digests}


def of_tree(project: Path, root: Path, artifacts: Artifacts, own: bool = False) -> Component:
    """The bill of a report in any tree; only JSON files are read in it. Raises MissingError and DataError."""
    tree = evidence.walk(root, artifacts, own)
    if tree.report is None or tree.job is None:
        raise DataError(
            f"no bill of materials can be made of {artifacts.report('json')} and {artifacts.job()}: "
            f"{'; '.join(tree.findings[:2])}. Run: invoke acceptance"
        )
    return _bill(project, tree, tree.report, tree.job)


def _bill(project: Path, tree: Evidence, report: Report, job: Job) -> Component:
    components = [*_models(tree, report, job), *_data(tree, job), *_containers(project, tree)]
    components += [*_tools(tree, report), *_packages(project)]
    name = f"DeBERTa on MNLI: profile {report.body.profile}, backend {report.body.backend}"
    properties = {"body_sha256": report.body_sha256, "limit": str(report.body.limit)}
    deployment = _component("application", "deployment", name, properties)
    tool = {"type": "application", "name": "deberta-ascend", "version": report.measured.deberta_ascend}
    tools = {"components": [{**tool, "licenses": [{"expression": "Apache-2.0"}]}]}
    head = {"bomFormat": "CycloneDX", "specVersion": "1.6"}
    content = {
        "version": 1,
        "metadata": {"timestamp": report.measured.finished, "tools": tools, "component": deployment},
        "components": components,
        "dependencies": _dependencies(tree, components),
    }
    serial = uuid.uuid5(_NAMESPACE, json.dumps({**head, **content}, sort_keys=True, ensure_ascii=False))
    schema_url = "http://cyclonedx.org/schema/bom-1.6.schema.json"
    return {"$schema": schema_url, **head, "serialNumber": f"urn:uuid:{serial}", **content}


def _component(kind: str, ref: str, name: str, properties: Mapping[str, str] | None = None, **fields: Any) -> Component:
    """A component; `fields` stand between its name and its properties, whose empty values are left out."""
    component = {"type": kind, "bom-ref": ref, "name": name, **fields}
    return {**component, "properties": _properties(properties)} if properties else component


def _properties(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": f"{_OURS}{name}", "value": value} for name, value in values.items() if value]


def _hashes(*digests: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest} for digest in digests]


def _claimed(tree: Evidence, path: str, kind: str = "sha256") -> list[str]:
    """A file's SHA-256, as the job or a record has it; of kind "dirHash" a folder's. Raises DataError if none has."""
    digests = sorted({claim.digest[kind] for claim in tree.claims if claim.path == path and kind in claim.digest})
    if not digests:
        raise DataError(f"neither the job nor a record has the {kind} of {path}. Run: invoke acceptance")
    return digests


def _checkpoint(tree: Evidence, job: Job) -> str:
    """The checkpoint's path, of the export's record, or by its name among the job's inputs."""
    path = evidence.option(tree.record_for(str(tree.artifacts.onnx)), "--checkpoint")
    named = (path for path in job.inputs if path.startswith(f"{tree.artifacts.models}/") and ".model" in path)
    if not path and not (path := next(named, "")):
        raise DataError(f"{tree.artifacts.job()} names no checkpoint among its inputs. Run: invoke acceptance")
    return str(hashed(PurePosixPath(path)))


def _models(tree: Evidence, report: Report, job: Job) -> Iterator[Component]:
    """The checkpoint, the exported graph, and the compiled model of each batch size, with what was measured of them."""
    artifacts, body = tree.artifacts, report.body
    reference = [_accuracy(counts, f"PyTorch, {version}") for version, counts in body.reference.items()]
    yield _model(tree, report, job, _checkpoint(tree, job), "a PyTorch checkpoint", ["token ids"], reference)
    figures: dict[str, list[Json]] = {str(artifacts.onnx): []}  # model -> what was measured of it
    inputs = {str(artifacts.onnx): _inputs("batch", contract.SEQUENCE_LENGTH)}
    for lengths, figure, metric in _figures(report):
        of_precision = replace(artifacts, precision=figure.precision)
        for part in matrix.parts(of_precision, lengths):
            length = "length" if part.bucketed and part.backend == "cpu" else part.length
            model, onnx = str(part.compiled(figure.batch_size)), str(part.onnx)
            inputs.update({onnx: _inputs("batch", length), model: _inputs(figure.batch_size, length)})
            figures.setdefault(onnx, [])
            figures.setdefault(model, []).append(metric)
    claimed = {claim.path for claim in tree.claims}
    compiler = "compiled by ATC" if artifacts.backend == "ascend" else "an OpenVINO model for a CPU"
    for path, metrics in sorted(figures.items(), key=lambda entry: not entry[0].endswith(".onnx")):
        is_onnx = path.endswith(".onnx")
        if path not in claimed or (is_onnx and tree.record_for(path) is None):
            continue  # of an older model, which is gone
        yield _model(tree, report, job, path, "ONNX" if is_onnx else compiler, inputs[path], metrics)
        if path.endswith(".xml"):
            weights = f"{path[: -len('.xml')]}.bin"
            yield _component("file", weights, weights, hashes=_hashes(*_claimed(tree, weights)))


def _figures(report: Report) -> Iterator[tuple[Lengths, EvaluationCell | PerformanceRun, Json]]:
    """What was measured: the lengths of the run, its figure, and that as a metric of the model that ran."""
    for cell in report.body.cells:
        yield tuple(map(int, cell.lengths)), cell, _accuracy(cell, _slice(cell))
    for run in report.measured.performances:
        yield (run.length,), run, {"type": "rows per second", "value": repr(run.fps), "slice": _slice(run)}


def _inputs(batch: object, length: object) -> list[str]:
    return [f"int32 {name} [{batch}, {length}]" for name in contract.INPUTS]


def _slice(figure: EvaluationCell | PerformanceRun) -> str:
    return figure.version + (f" ({figure.origin})" if figure.origin else "")


def _accuracy(counts: Proportion | EvaluationCell, rows: str) -> Component:
    lower, upper = counts.interval
    return {
        "type": "accuracy",
        "value": repr(counts.accuracy),
        "slice": f"{rows}: {counts.correct} of {counts.rows} rows",
        "confidenceInterval": {"lowerBound": repr(lower), "upperBound": repr(upper)},
    }


def _model(
    tree: Evidence, report: Report, job: Job, path: str, kind: str, inputs: Sequence[str], figures: Sequence[Json]
) -> Component:
    labels = ", ".join(report.body.labels)
    card: Component = {
        "modelParameters": {
            "task": "natural-language-inference",
            "architectureFamily": "transformer",
            "modelArchitecture": "DeBERTa v2",
            "datasets": [{"ref": data} for data in job.data.values()],
            "inputs": [{"format": name} for name in inputs],
            "outputs": [{"format": f"float32 {contract.OUTPUT} [batch, {len(contract.LABELS)}]: {labels}"}],
        }
    }
    if figures:
        card["quantitativeAnalysis"] = {"performanceMetrics": list(figures)}
    properties, hashes = dict(_UNKNOWN), {}
    if any("dirHash" in claim.digest for claim in tree.claims if claim.path == path):
        properties["dirHash"] = ", ".join(_claimed(tree, path, "dirHash"))
    else:
        hashes = {"hashes": _hashes(*_claimed(tree, path))}
    return _component("machine-learning-model", path, path, properties, description=kind, **hashes, modelCard=card)


def _data(tree: Evidence, job: Job) -> Iterator[Component]:
    """The tsv files, and of the other inputs those that are not the checkpoint: config and tokenizer."""
    versions = {path: version for version, path in job.data.items()}
    checkpoint = _checkpoint(tree, job)
    for path, digest in sorted(job.inputs.items()):
        if path == checkpoint:
            continue
        data = {"type": "configuration", "name": "configuration"}
        if path in versions:
            data = {"type": "dataset", "name": f"MNLI, {versions[path]}"}
        hashes = {"hashes": _hashes(digest["sha256"])} if "sha256" in digest else {}
        yield _component("data", path, path, {**_UNKNOWN, "dirHash": digest.get("dirHash", "")}, **hashes, data=[data])


def _containers(project: Path, tree: Evidence) -> Iterator[Component]:
    """The images that steps ran in, by id, and the bases that docker/pins.toml names for them."""
    images: dict[str, tuple[str, str]] = {}
    for record in tree.records.values():
        pins = str(record.internal.get("pins", ""))
        images.update((tag, (identity, pins)) for tag, identity in record.images.items())
    stages = set()
    for tag, (identity, pins) in sorted(images.items()):
        name, _, version = tag.rpartition(":")
        stages.add(PurePosixPath(name).name)
        properties = {"hash": "of the image's configuration: its id", "pins": pins}
        yield _component("container", tag, name, properties, version=version, hashes=_hashes(identity))
    if not stages:
        return
    from deberta.host.images import pins as pinned  # tomlkit is not loaded for the list of tasks

    for stage, base in sorted(pinned.load(project).bases.items()):
        if stage in stages:
            properties = {"hash": "of the manifest", "base-of": stage, **_UNKNOWN}
            hashes = _hashes(base.digest.partition(":")[2])
            yield _component("container", f"base.{stage}", base.image, properties, version=base.digest, hashes=hashes)


def _tools(tree: Evidence, report: Report) -> Iterator[Component]:
    """CANN, and what the user supplied to run models with, as far as the records have them."""
    cann, programs = set(), set()
    for record in tree.records.values():
        parameters = record.parameters
        if parameters.get("tool"):
            cann.add(str(record.internal.get("cann") or "unknown"))
            digests = {key: value for key, value in parameters.items() if _SHA256.fullmatch(str(value))}
            programs |= {(parameters["tool"] if key == "program" else key, value) for key, value in digests.items()}
    if _SHA256.fullmatch(msame := report.measured.tools.get("msame", "")):
        programs.add(("msame", msame))
    for version in sorted(cann):
        yield _component("platform", f"cann@{version}", "CANN", _UNKNOWN, version=version)
    for name, digest in sorted(programs):
        yield _component("application", f"{name}@{digest[:12]}", name, _UNKNOWN, hashes=_hashes(digest))


def _packages(project: Path) -> Iterator[Component]:
    """The stages' packages, of every machine that the lock is for, so that the bill is the same on each.

    A lock allows several files of each: the hashes are theirs, not of what is installed.
    """
    lock = project / stage_env.STAGES_LOCK
    for name, version, hashes in locks.of_any(lock):
        purl = f"pkg:pypi/{name}@{quote(version, safe='')}"
        files_of_lock = _hashes(*hashes)
        comment = f"one of these files, by {lock.name}"
        distributions = {"type": "distribution", "url": purl, "comment": comment, "hashes": files_of_lock}
        component = _component("library", purl, name, version=version, purl=purl)
        yield {**component, **licence_of(name, version), "externalReferences": [distributions]}


def licence_of(name: str, version: str) -> Component:
    """A package's licence as entries of its component: unknown for a version whose metadata was not looked at."""
    kind, text = LICENCES.get(f"{name}=={version}", ("", ""))
    if not kind:
        return {"properties": _properties(_UNKNOWN)}
    if kind == "expression":
        return {"licenses": [{"expression": text, "acknowledgement": "declared"}]}
    return {"licenses": [{"license": {"name": text, "acknowledgement": "declared"}}]}


def _dependencies(tree: Evidence, components: Iterable[Json]) -> list[Component]:
    """What was made of what, by the records; the deployment needs everything else."""
    refs = [component["bom-ref"] for component in components]
    dependencies: list[Component] = [{"ref": "deployment", "dependsOn": refs}]
    for ref in refs:
        record = tree.record_for(ref)
        names = {*record.dependencies, *record.images} if record else set()
        if needs := sorted(names & set(refs) - {ref}):
            dependencies.append({"ref": ref, "dependsOn": needs})
    return dependencies
