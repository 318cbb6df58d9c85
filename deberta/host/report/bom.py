"""bom.cdx.json: what a measured deployment consists of, as a CycloneDX 1.6 bill of materials for machine learning.

Format: https://cyclonedx.org/docs/1.6/json/. Models, data, containers, packages and tools, by the hashes that the
report's job and the records have. It is made of those, requirements-stages.lock and docker/pins.toml alone: the same
bytes on any day. Its one time is the report's own.
"""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path, PurePosixPath
from typing import Any, Iterable, Iterator, List, Mapping, Optional, Sequence
from urllib.parse import quote

import deberta
from deberta.core import contract, files, records
from deberta.core.errors import DataError
from deberta.core.paths import Artifacts, record_of
from deberta.core.records import Record
from deberta.host.environments import stages as stage_env
from deberta.host.plan.evaluation import Plan
from deberta.host.report import evidence, licences
from deberta.host.report.evidence import IMAGE, Evidence
from deberta.host.run.runner import BUILDER, Session

STEP = "bom"
PINS = "docker/pins.toml"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:deberta-ascend:bom")
_ENTRY = re.compile(r"(?m)^([A-Za-z0-9._-]+)==([^\s;]+)[^\n]*\\\n((?: +--hash=[^\n]+\n)+)")  # of a lock
_OURS = "deberta-ascend:"  # what our property names start with

Json = Mapping[str, Any]
Component = dict[str, Any]


def write(session: Session, plan: Plan) -> PurePosixPath:
    """Write the bill beside the report, and its record; returns its path. Raises MissingError and DataError."""
    started, artifacts = records.now(), plan.artifacts
    path = artifacts.bom()
    files.write_text(session.workspace / path, text(make(session, plan)))
    report = artifacts.report("json")
    statement = records.statement(
        subjects=[records.resource(path, session.digests.of(path))],
        dependencies=[records.resource(made_of, session.digests.of(made_of)) for made_of in (report, artifacts.job())],
        parameters={"step": STEP, **sources(session.project)},
        internal={},
        builder=f"{BUILDER}local",
        started=started,
        finished=records.now(),
        summary=None,
    )
    records.write(session.workspace / record_of(path), statement)
    return path


def make(session: Session, plan: Plan) -> dict[str, Any]:
    """The bill of the plan's report. Raises MissingError (no report) and DataError."""
    return of_tree(session.project, session.workspace, plan.artifacts)


def sources(project: Path) -> dict[str, str]:
    """What of the project a bill is made of: the same three, and the same report, give the same bill."""
    digests = {name: files.sha256_of(project / name) for name in (stage_env.STAGES_LOCK, PINS)}
    return {"deberta-ascend": deberta.__version__, **digests}


def text(bill: Json) -> str:
    return json.dumps(bill, indent=2, ensure_ascii=False) + "\n"


def of_tree(project: Path, root: Path, artifacts: Artifacts) -> dict[str, Any]:
    """The bill of a report in any tree; only JSON files are read in it. Raises MissingError and DataError."""
    found = evidence.walk(root, artifacts)
    try:
        return _bill(project, found)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"no bill of materials can be made of {artifacts.report('json')} and {artifacts.job()} "
            f"({type(error).__name__}: {error}). Run: invoke acceptance"
        ) from error


def _bill(project: Path, found: Evidence) -> dict[str, Any]:
    report = found.report
    packages = list(_packages(project))
    models = _models(found)
    data = list(_data(found))
    others = [*_containers(project, found), *_tools(found)]
    top = {
        "type": "application",
        "bom-ref": "deployment",
        "name": f"DeBERTa on MNLI: profile {report['body']['profile']}, backend {report['body']['backend']}",
        "properties": _properties({"body_sha256": report["body_sha256"], "limit": str(report["body"]["limit"])}),
    }
    tool = {
        **{"type": "application", "name": "deberta-ascend", "version": report["measured"]["deberta_ascend"]},
        "licenses": [{"expression": "Apache-2.0"}],
    }
    content = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"timestamp": report["measured"]["made"], "tools": {"components": [tool]}, "component": top},
        "components": [*models, *data, *others, *packages],
        "dependencies": _dependencies(found, [*models, *data, *others, *packages]),
    }
    serial = uuid.uuid5(_NAMESPACE, json.dumps(content, sort_keys=True, ensure_ascii=False))
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        **{key: content.pop(key) for key in ("bomFormat", "specVersion")},
        "serialNumber": f"urn:uuid:{serial}",
        **content,
    }


def _properties(values: Mapping[str, str]) -> List[dict[str, str]]:
    return [{"name": f"{_OURS}{name}", "value": value} for name, value in values.items() if value]


def _hashes(found: Evidence, path: str) -> dict[str, Any]:
    """A file's SHA-256, as the job or a record has it."""
    digests = sorted({str(claim.digest["sha256"]) for claim in found.claims if claim.path == path})
    if not digests:
        raise KeyError(path)
    return {"hashes": [{"alg": "SHA-256", "content": digest} for digest in digests]}


def _sizes(report: Json) -> List[int]:
    return sorted({entry["batch_size"] for entry in [*report["body"]["cells"], *report["measured"]["performances"]]})


def _models(found: Evidence) -> List[Component]:
    """The checkpoint, the exported graph, and the compiled model of each batch size, with what was measured of them."""
    report, artifacts = found.report, found.artifacts
    exported = found.record_for(str(artifacts.onnx))
    checkpoint = evidence.option(exported, "--checkpoint") or next(
        path for path in found.job["inputs"] if path.startswith(f"{artifacts.models}/") and ".model" in path
    )
    labels = ", ".join(report["body"]["labels"])
    reference = [_metric("accuracy", counts, f"PyTorch, {v}") for v, counts in report["body"]["reference"].items()]
    made = [_model(found, checkpoint, "a PyTorch checkpoint", ("token ids",), labels, reference)]
    if exported is not None:
        dynamic = tuple(f"int32 {name} [batch, {contract.SEQUENCE_LENGTH}]" for name in contract.INPUTS)
        made.append(_model(found, str(artifacts.onnx), "ONNX", dynamic, labels, []))
    for size in _sizes(report):
        path = str(artifacts.compiled(size))
        if not any(claim.path == path for claim in found.claims):
            continue  # of an older model, which is gone
        figures = [
            _metric("accuracy", cell, f"{cell['version']}{_origin(cell)}")
            for cell in report["body"]["cells"]
            if cell["batch_size"] == size
        ]
        runs = [run for run in report["measured"]["performances"] if run["batch_size"] == size]
        figures += [
            {"type": "rows per second", "value": repr(run["fps"]), "slice": f"{run['version']}{_origin(run)}"}
            for run in runs
        ]
        kind = "compiled by ATC" if artifacts.backend == "ascend" else "an OpenVINO model for a CPU"
        static = tuple(f"int32 {name} [{size}, {contract.SEQUENCE_LENGTH}]" for name in contract.INPUTS)
        made.append(_model(found, path, kind, static, labels, figures))
        if artifacts.backend != "ascend":
            weights = str(PurePosixPath(path).with_suffix(".bin"))
            made.append({"type": "file", "bom-ref": weights, "name": weights, **_hashes(found, weights)})
    return made


def _origin(entry: Json) -> str:
    return f" ({entry['origin']})" if entry["origin"] else ""


def _metric(kind: str, counts: Json, piece: str) -> dict[str, Any]:
    lower, upper = counts["interval"]
    return {
        "type": kind,
        "value": repr(counts["accuracy"]),
        "slice": f"{piece}: {counts['correct']} of {counts['rows']} rows",
        "confidenceInterval": {"lowerBound": repr(lower), "upperBound": repr(upper)},
    }


def _model(
    found: Evidence, path: str, kind: str, inputs: Sequence[str], labels: str, figures: Sequence[Json]
) -> Component:
    card: dict[str, Any] = {
        "modelParameters": {
            "task": "natural-language-inference",
            "architectureFamily": "transformer",
            "modelArchitecture": "DeBERTa v2",
            "datasets": [{"ref": str(data)} for data in found.job["data"].values()],
            "inputs": [{"format": name} for name in inputs],
            "outputs": [{"format": f"float32 {contract.OUTPUT} [batch, {len(contract.LABELS)}]: {labels}"}],
        },
    }
    if figures:
        card["quantitativeAnalysis"] = {"performanceMetrics": list(figures)}
    return {
        **{"type": "machine-learning-model", "bom-ref": path, "name": path, "description": kind},
        **_hashes(found, path),
        "modelCard": card,
        "properties": _properties({"licence": "unknown"}),
    }


def _data(found: Evidence) -> Iterator[Component]:
    """The tsv files, and of the other inputs those that are not the checkpoint: config and tokenizer."""
    tsvs = {str(path): version for version, path in found.job["data"].items()}
    checkpoint = evidence.option(found.record_for(str(found.artifacts.onnx)), "--checkpoint")
    for path, digest in sorted(found.job["inputs"].items()):
        if path == checkpoint or (not checkpoint and path not in tsvs and ".model" in path):
            continue
        what, kind = (f"MNLI, {tsvs[path]}", "dataset") if path in tsvs else ("configuration", "configuration")
        yield {
            **{"type": "data", "bom-ref": path, "name": path},
            **({"hashes": [{"alg": "SHA-256", "content": digest["sha256"]}]} if "sha256" in digest else {}),
            "data": [{"type": kind, "name": what}],
            "properties": _properties({"licence": "unknown", "dirHash": digest.get("dirHash", "")}),
        }


def _containers(project: Path, found: Evidence) -> Iterator[Component]:
    """The images that steps ran in, by id, and the bases that docker/pins.toml names for them."""
    images: dict[str, tuple[str, str]] = {}
    for record in found.records.values():
        for name, digest in record.dependencies.items():
            if name.startswith(IMAGE):
                images[name[len(IMAGE) :]] = (digest["sha256"], str(record.internal.get("pins", "")))
    stages = set()
    for tag, (identity, pins) in sorted(images.items()):
        name, _, version = tag.rpartition(":")
        stages.add(PurePosixPath(name).name)
        yield {
            **{"type": "container", "bom-ref": tag, "name": name, "version": version},
            "hashes": [{"alg": "SHA-256", "content": identity}],
            "properties": _properties({"hash": "of the image's configuration: its id", "pins": pins}),
        }
    if not stages:
        return
    from deberta.host.images import pins as pinned

    for stage, base in sorted(pinned.load(project).bases.items()):
        if stage in stages:
            yield {
                **{"type": "container", "bom-ref": f"base.{stage}", "name": base.image, "version": base.digest},
                "hashes": [{"alg": "SHA-256", "content": base.digest.partition(":")[2]}],
                "properties": _properties({"hash": "of the manifest", "base-of": stage, "licence": "unknown"}),
            }


def _tools(found: Evidence) -> Iterator[Component]:
    """CANN, and what the user brought to run models with, as far as the records have them."""
    cann, programs = set(), set()
    for record in found.records.values():
        parameters = record.parameters
        if parameters.get("tool"):
            cann.add(str(record.internal.get("cann") or "unknown"))
            brought = {key: value for key, value in parameters.items() if re.fullmatch(r"[0-9a-f]{64}", str(value))}
            programs |= {(parameters["tool"] if key == "program" else key, value) for key, value in brought.items()}
    if digest := str((found.report["measured"].get("tools") or {}).get("msame") or ""):
        programs |= {("msame", digest)} if re.fullmatch(r"[0-9a-f]{64}", digest) else set()
    for version in sorted(cann):
        yield {
            **{"type": "platform", "bom-ref": f"cann@{version}", "name": "CANN", "version": version},
            "properties": _properties({"licence": "unknown"}),
        }
    for name, digest in sorted(programs):
        yield {
            **{"type": "application", "bom-ref": f"{name}@{digest[:12]}", "name": name},
            "hashes": [{"alg": "SHA-256", "content": digest}],
            "properties": _properties({"licence": "unknown"}),
        }


def _packages(project: Path) -> Iterator[Component]:
    """The stages' packages. A lock allows several files of each: the hashes are theirs, not of what is installed."""
    lock = project / stage_env.STAGES_LOCK
    versions = stage_env.locked_versions(lock)
    for name, version, hashes in _ENTRY.findall(lock.read_text(encoding="utf-8")):
        if versions.get(name) != version:
            continue  # for another platform
        purl = f"pkg:pypi/{name}@{quote(version, safe='')}"
        digests = re.findall(r"sha256:([0-9a-f]{64})", hashes)
        files_of_it = {
            **{"type": "distribution", "url": purl, "comment": f"one of these files, by {lock.name}"},
            "hashes": [{"alg": "SHA-256", "content": digest} for digest in digests],
        }
        component: Component = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
        licence = licences.declared(name, version)
        if licence is None:
            component["properties"] = _properties({"licence": "unknown"})
        elif licence[1]:
            component["licenses"] = [{"expression": licence[0], "acknowledgement": "declared"}]
        else:
            component["licenses"] = [{"license": {"name": licence[0], "acknowledgement": "declared"}}]
        yield {**component, "externalReferences": [files_of_it]}


def _dependencies(found: Evidence, components: Iterable[Json]) -> List[dict[str, Any]]:
    """What was made of what, by the records; the deployment needs everything else."""
    refs = [component["bom-ref"] for component in components]
    made = []
    for ref in refs:
        record = found.record_for(ref)
        names = [name[len(IMAGE) :] if name.startswith(IMAGE) else name for name in _made_of(record)]
        if needs := sorted(set(names) & set(refs) - {ref}):
            made.append({"ref": ref, "dependsOn": needs})
    return [{"ref": "deployment", "dependsOn": refs}, *made]


def _made_of(record: Optional[Record]) -> List[str]:
    return list(record.dependencies) if record else []
