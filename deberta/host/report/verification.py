"""verify and sign: is a report what its own files come to, and are those files what the records say?

The tree is only read: it may be a copy on another machine, and it may be read-only. Stages run in the tree, and write
into a temporary folder elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Callable, List, Mapping, Optional, Sequence

from deberta.core import contract, files, records
from deberta.core.errors import ConfigError, DataError, DebertaError, MissingError, StageError, one_line, some
from deberta.core.paths import Artifacts
from deberta.host.plan.profiles import Profile
from deberta.host.report import bom, evidence
from deberta.host.report.evidence import Evidence
from deberta.host.run import local
from deberta.host.run.console import Console
from deberta.host.run.executor import judge_stage

PREDICATE_TYPE = "urn:deberta-ascend:attestation:v1"
RECOMPUTE, REPLAY, SIGN = (f"deberta.stages.verify.{name}" for name in ("recompute", "replay", "sign"))

Json = Mapping[str, Any]


@dataclass(frozen=True)
class VerificationRequest:
    """What to verify, and how. `python` gives the stages' interpreter; `profile` is this checkout's own, if it has it.

    `key`: a public key, None to check no signature; `rows` to replay (0: none), drawn by `seed`.
    """

    project: Path
    root: Path
    artifacts: Artifacts
    python: Callable[[], Path]
    profile: Optional[Profile] = None
    key: Optional[Path] = None
    rows: int = 0
    seed: int = 0


@dataclass(frozen=True)
class VerificationResult:
    """What was found to be in order: numbers made again, rows replayed and their largest difference, the signature."""

    numbers: int
    replayed: str
    signature: str


def show(request: VerificationRequest) -> None:
    """What verify runs, without its checks of digests: the report made again."""
    artifacts = request.artifacts
    arguments = ["--job", str(artifacts.job()), "--output", "report-made-again.json"]
    print(f"cd {shlex.quote(str(request.root))}")
    print(shlex.join([f"PYTHONPATH={request.project}", "python", "-m", "deberta.stages.report.assess", *arguments]))


def verify(request: VerificationRequest, signed: bool = True) -> Evidence:
    """Check a tree and print what was found. Raises DataError that names everything that is wrong.

    `signed`: look at the signature too. Raises MissingError (no report) and ConfigError (a key that is none) first.
    """
    artifacts, console = request.artifacts, Console("verify")
    print(f"verifying {request.root / artifacts.report('json')}", flush=True)
    with tempfile.TemporaryDirectory(prefix="deberta-verify-") as folder:
        scratch = Path(folder)
        signature = _signature(request, scratch, console) if signed else ("not looked at", "")
        found = evidence.collect(request.root, artifacts)
        if signature[1]:
            found.add(artifacts.attestation(), signature[1])
        if signed and (request.root / artifacts.attestation()).exists():
            _check_subjects(found)
        evidence.judge_job(found, request.project, request.profile)
        evidence.compare_code(found, request.project)
        numbers = _recompute(request, found, scratch, console)
        replayed = _replay(request, found, scratch, console) if request.rows else "none (--replay N)"
        console.close()
    _summarise(request, found, VerificationResult(numbers, replayed, signature[0]))
    return found


def _summarise(request: VerificationRequest, found: Evidence, outcome: VerificationResult) -> None:
    print(
        f"files checked: {found.files}, {found.bytes:,} bytes, by {len(found.records)} records\n"
        f"numbers recomputed: {outcome.numbers}\n"
        f"rows replayed: {outcome.replayed}\n"
        f"signature: {outcome.signature}"
    )
    verdict = found.report.get("verdict")
    said = verdict.get("verdict") if isinstance(verdict, dict) else None
    print(f"verdict in the report: {said or 'none, it is no acceptance'}")
    print("not checked:")
    for text in dict.fromkeys(found.unchecked):
        print(f"  {text}")
    print("  that times, machine and tools were what the report says: nothing but a signature vouches for them")
    print(f"  that {request.artifacts.onnx} is the checkpoint's graph: invoke export-onnx makes the same bytes again")
    findings = list(dict.fromkeys(map(str, found.findings)))
    if not findings:
        print(f"verified: {request.artifacts.report('json')}")
        return
    print(f"wrong: {len(findings)}")
    for text in findings:
        print(f"  {text}")
    raise DataError(
        f"{request.root / request.artifacts.report('json')} does not verify: {len(findings)} found: {some(findings, 3)}"
    )


def _run(
    request: VerificationRequest, module: str, arguments: Sequence[object], scratch: Path, say: Callable[[str], None]
) -> str:
    """Run a stage in the tree; returns what it printed. Raises the stage's errors."""
    # The tree may be anybody's: no module is imported from the folder that the stage runs in.
    variables = {**local.environment(request.project, os.environ), "PYTHONSAFEPATH": "1"}
    command = [str(request.python()), "-m", module, *map(str, arguments)]
    log = scratch / f"{module}.log"
    lines, code = local.execute(command, request.root, variables, log, say)
    try:
        judge_stage(module, lines, code, log)
    except StageError as error:  # the log goes with the scratch folder
        raise StageError(f"{error}. It said: {one_line(''.join(lines[-20:]))}") from error
    return "".join(lines)


def _recompute(request: VerificationRequest, found: Evidence, scratch: Path, console: Console) -> int:
    """Make the report and all that it counts again; returns how many numbers were compared."""
    artifacts = request.artifacts
    paths = [artifacts.job(), *map(artifacts.report, ("json", "md", "html"))]
    if absent := [path for path in paths if not (request.root / path).exists()]:
        for path in absent:
            found.add(path, "is missing, so nothing could be made again")
        return 0
    result = scratch / "recomputed.json"
    names = ("--job", "--report", "--markdown", "--html")
    arguments: List[object] = [part for pair in zip(names, paths) for part in pair]
    arguments += [*_of_data(found), *_bill(request, found, scratch)]
    arguments += ["--scratch", scratch, "--output", result]
    try:
        _run(request, RECOMPUTE, arguments, scratch, console.line)
    except DebertaError as error:
        found.add(artifacts.report("json"), f"cannot be made again: {error}")
        return 0
    made = json.loads(result.read_text(encoding="utf-8"))
    for entry in made["findings"]:
        found.add(entry["where"], entry["what"])
    return int(made["numbers"])


def _of_data(found: Evidence) -> List[object]:
    """The options that name the tokenizer and the config, as the step that read the data was given them."""
    claimed = {claim.path for claim in found.claims}
    for name in sorted(found.records):
        given = [evidence.option(found.records[name], part) for part in ("--tokenizer", "--config")]
        if claimed.issuperset(given):
            return ["--tokenizer", given[0], "--config", given[1]]
    if found.job.get("sentinels"):
        found.add(found.artifacts.job(), "has sentinels, and no record names the tokenizer and the config of the data")
    return []


def _bill(request: VerificationRequest, found: Evidence, scratch: Path) -> List[object]:
    """The bill of materials made again, where this checkout has what that one was made of."""
    path = request.artifacts.bom()
    record = found.record_for(str(path))
    if record is None or not (request.root / path).exists():
        return []
    parameters, ours = record.parameters, bom.sources(request.project)
    if others := [name for name, value in ours.items() if parameters.get(name) != value]:
        found.unchecked.append(f"{path} against its sources: this checkout has another {' and another '.join(others)}")
        return []
    try:
        bill = bom.of_tree(request.project, request.root, request.artifacts)
    except DebertaError as error:
        found.add(path, f"cannot be made again: {error}")
        return []
    files.write_text(scratch / path.name, bom.text(bill))
    return ["--also", path, scratch / path.name]


def _replay(request: VerificationRequest, found: Evidence, scratch: Path, console: Console) -> str:
    """Random rows through dynamic.onnx; returns what to say about them."""
    print(f"replaying {request.rows} rows, seed {request.seed}", flush=True)
    plan, result = scratch / "replay.json", scratch / "replayed.json"
    artifacts = request.artifacts
    of_data = _of_data(found)
    runs = []
    for cell in found.job.get("cells", ()):
        record = found.record_for(str(cell["outputs"]))
        bins = [name for name, digest in record.dependencies.items() if "dirHash" in digest] if record else []
        if (
            cell["origin"] not in ("", contract.BROUGHT_MODEL)
            or len(bins) != 1
            or cell.get("precision", "fp32") != "fp32"
        ):
            continue
        runs.append(
            {
                **{"batch_size": cell["batch_size"], "version": cell["version"], "bins": bins[0]},
                **{"data": found.job["data"][cell["version"]], "outputs": cell["outputs"]},
                "reference": found.job["references"].get(cell["version"], ""),
            }
        )
    if not runs or not of_data:
        found.add(artifacts.job(), "names no run of the present model whose rows could be replayed")
        return "none"
    content = {"model": str(artifacts.onnx), "tokenizer": of_data[1], "runs": runs}
    content.update({"limit": artifacts.limit, "float16": artifacts.backend == "ascend"})
    files.write_text(plan, json.dumps(content))
    arguments = ["--plan", plan, "--rows", request.rows, "--seed", request.seed, "--output", result]
    try:
        _run(request, REPLAY, arguments, scratch, console.line)
    except DebertaError as error:
        found.add(artifacts.onnx, f"cannot be replayed: {error}")
        return "none"
    made = json.loads(result.read_text(encoding="utf-8"))
    for text in made["differences"]:
        found.add("replay", text)
    largest = f"largest difference of a logit {made['max_abs_difference']:.3g} (at most {made['tolerance']:g})"
    return f"{made['rows']} (seed {request.seed}): {largest}"


def statement(found: Evidence) -> dict[str, Any]:
    """What is signed: the report, its pages, the bill and every record that they rest on, by SHA-256 (in-toto)."""
    report, root = found.report, found.root
    names = [*_signed_pages(found), *sorted(found.records)]
    body = report["body"]
    return {
        "_type": records.STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": files.sha256_of(root / name)}} for name in names],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            **{name: body[name] for name in ("profile", "backend", "limit")},
            "body_sha256": report["body_sha256"],
            "verdict": report["verdict"] and report["verdict"]["verdict"],
            "made": report["measured"]["made"],
        },
    }


def _signed_pages(found: Evidence) -> List[str]:
    artifacts = found.artifacts
    pages = [*map(artifacts.report, ("json", "md", "html")), artifacts.bom()]
    return [str(path) for path in pages if (found.root / path).exists()]


def _signature(request: VerificationRequest, scratch: Path, console: Console) -> tuple[str, str]:
    """The signature's state as the summary says it, and what is wrong with it, or "". Raises ConfigError."""
    path = request.artifacts.attestation()
    there = (request.root / path).exists()
    if request.key is None:
        return ("not signed", "") if not there else ("not checked: no key given", "")
    if not there:
        return "none, although a key was given", "is missing: expected a signature by the key given, found none"
    arguments = ["--envelope", path, "--key", os.path.abspath(request.key)]
    try:
        return f"signed by key {_run(request, SIGN, arguments, scratch, lambda line: None).strip()}", ""
    except DataError as error:
        return "bad", str(error)


def _check_subjects(found: Evidence) -> None:
    """Every file that was signed is the same, and everything that should be signed was."""
    path = found.artifacts.attestation()
    try:
        envelope = json.loads((found.root / path).read_text(encoding="utf-8"))
        content = json.loads(base64.b64decode(envelope["payload"], validate=True))
        signed = {str(entry["name"]): str(entry["digest"]["sha256"]) for entry in content["subject"]}
        if content["_type"] != records.STATEMENT_TYPE or content["predicateType"] != PREDICATE_TYPE:
            raise ValueError(f"it is of type {content['predicateType']}")
    except (KeyError, TypeError, AttributeError, ValueError, binascii.Error) as error:
        found.add(path, f"is not a signed statement on a report ({type(error).__name__}: {error})")
        return
    for name, expected in signed.items():
        there = found.root / name
        actual = files.sha256_of(there) if ".." not in PurePosixPath(name).parts and there.is_file() else "nothing"
        if actual != expected:
            found.add(name, f"expected sha256 {expected} (says {path}), found {actual}")
    for name in [*_signed_pages(found), *sorted(found.records)]:
        if name not in signed:
            found.add(path, f"does not have {name} among what was signed")


def new_key(request: VerificationRequest, path: Path, passphrase_env: Optional[str]) -> None:
    """Make a key pair."""
    with tempfile.TemporaryDirectory(prefix="deberta-sign-") as folder:
        arguments = ["--new-key", os.path.abspath(path)]
        arguments += ["--passphrase-env", passphrase_env] if passphrase_env else []
        said = _run(request, SIGN, arguments, Path(folder), lambda line: None).strip()
    print(f"key {said}\n  {path}: private, keep it\n  {path}.pub: for those who verify")


def sign(request: VerificationRequest, key: Path, passphrase_env: Optional[str]) -> None:
    """Verify the tree, and write the attestation. Raises DataError for a tree that does not verify."""
    path = request.artifacts.attestation()
    with tempfile.TemporaryDirectory(prefix="deberta-sign-") as folder:
        before, envelope = Path(folder) / "statement.json", Path(folder) / "envelope.json"
        found = evidence.walk(request.root, request.artifacts)
        try:
            text = json.dumps(statement(found))
        except (KeyError, TypeError) as error:
            raise DataError(f"{request.artifacts.report('json')} is no report ({error}). Run: invoke verify") from None
        files.write_text(before, text)
        arguments = ["--statement", before, "--key", os.path.abspath(key), "--output", envelope]
        arguments += ["--passphrase-env", passphrase_env] if passphrase_env else []
        # First, so that a wrong key or passphrase is known at once; kept only if everything verifies.
        identity = _run(request, SIGN, arguments, Path(folder), lambda line: None).strip()
        again = json.dumps(statement(verify(request, signed=False)))
        if again != text:
            raise DataError("something changed while it was verified. Run the same command again")
        files.write_text(request.root / path, envelope.read_text(encoding="utf-8"))
    print(f"signed by key {identity}: {path}")


def find_backend(root: Path, profile: str, limit: int) -> str:
    """The backend whose report is there, if no other's is. Raises MissingError and ConfigError."""
    there = [b for b in contract.BACKENDS if (root / Artifacts(profile, b, limit).report("json")).exists()]
    if not there:
        raise MissingError(
            f"there is no report of profile {profile} in {root / 'results' / profile}. Run: invoke acceptance "
            f"--profile {profile}, or name the tree that holds it with --path"
        )
    if len(there) > 1:
        raise ConfigError(f"{root / 'results' / profile} has reports of {' and '.join(there)}. Name one with --backend")
    print(f"backend: {there[0]} (the only one with a report)")
    return there[0]
