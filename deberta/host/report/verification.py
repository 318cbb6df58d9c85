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
from pathlib import Path
from typing import Any, Callable, Iterator, Optional, Sequence

from deberta.core import contract, files, progress, records, schema
from deberta.core.errors import DataError, DebertaError, GateError, StageError, one_line, some
from deberta.core.job import Job
from deberta.core.paths import ACCEPTANCES, Artifacts
from deberta.core.report import Report
from deberta.core.schema import Schema
from deberta.host.plan.profiles import Profile
from deberta.host.report import archive, bom, evidence, shard_findings
from deberta.host.report.evidence import Evidence
from deberta.host.run import local
from deberta.host.run.console import Console
from deberta.host.run.executor import check_exit
from deberta.host.run.messages import as_started

VERDICTS = ("", "failed", "checked", "accepted")  # "": of a report that nothing judged
PREDICATE_TYPE = "urn:deberta-ascend:attestation:v1"
RECOMPUTE, REPLAY, SIGN = (f"deberta.stages.verify.{name}" for name in ("recompute", "replay", "sign"))


@dataclass(frozen=True)
class VerificationRequest:
    """What to verify, and how. `python` gives the stages' interpreter; `profile` is this checkout's own, if it has it.

    `key`: a public key, None to check no signature; `rows` to replay (0: none), drawn by `seed`. `own`: as of Evidence.
    `strict`: nothing that a verdict rests on may be left unchecked. `require`: the least verdict, "" for any.
    """

    project: Path
    root: Path
    artifacts: Artifacts
    python: Callable[[], Path]
    profile: Optional[Profile] = None
    key: Optional[Path] = None
    rows: int = 0
    seed: int = 0
    own: bool = False
    strict: bool = False
    require: str = ""


def show(request: VerificationRequest) -> None:
    """What verify runs, without its checks of digests: the report made again."""
    artifacts = request.artifacts
    arguments = ["--job", str(artifacts.job()), "--output", "report-made-again.json"]
    print(f"cd {shlex.quote(str(request.root))}")
    print(shlex.join([f"PYTHONPATH={request.project}", "python", "-m", "deberta.stages.report.assess", *arguments]))


class UncheckedClaim(Schema):
    """What nothing here shows. `settled`: a signature that was checked stands for it."""

    text: str
    settled: bool


class VerifyDocument(Schema):
    """`bytes` and `records`: of the files that were checked. `verdict`: that of the report, empty of no acceptance."""

    report: str
    verified: bool
    verdict: str
    files: schema.Count
    bytes: schema.Count
    records: schema.Count
    numbers_recomputed: schema.Count
    rows_replayed: str
    signature: str
    unchecked: list[UncheckedClaim]
    wrong: list[str]


def verify(
    request: VerificationRequest, signed: bool = True, show: Optional[Callable[[VerifyDocument, str], None]] = None
) -> Evidence:
    """Check a tree and print the result. Raises DataError that names everything that is wrong.

    `show`: takes a document and its text, which is printed otherwise. `signed`: look at the signature too. Raises
    MissingError (no report) and ConfigError (a key that is none) first, and GateError last: the request's `strict` or
    `require` is not met.
    """
    artifacts, console = request.artifacts, Console("verify")
    where = request.root / artifacts.report("json")
    progress.say(f"verifying {where}")
    with tempfile.TemporaryDirectory(prefix="deberta-verify-") as folder:
        scratch = Path(folder)
        signature, problem = _signature(request, scratch, console) if signed else ("not looked at", "")
        tree = evidence.collect(request.root, artifacts, request.own)
        if problem:
            tree.add(artifacts.attestation(), problem)
        if signed and (request.root / artifacts.attestation()).exists():
            _check_subjects(tree)
        _leave_unchecked(request, tree, signature)
        archive.check(tree)
        evidence.check_verdict(tree, request.project, request.profile)
        shard_findings.check(tree)
        evidence.compare_code(tree, request.project)
        numbers = _recompute(request, tree, scratch, console)
        replayed = _replay(request, tree, scratch, console) if request.rows else "none"
        console.close()
    word = tree.report.verdict.verdict if tree.report and tree.report.verdict else ""
    lines = [
        f"files checked: {tree.files}, {tree.bytes:,} bytes, by {len(tree.records)} records",
        f"numbers recomputed: {numbers}",
        f"rows replayed: {replayed}",
        f"signature: {signature}",
        f"verdict in the report: {word or 'none, it is no acceptance'}",
    ]
    findings = list(dict.fromkeys(tree.findings))
    if not findings:
        lines.append(f"verified: {artifacts.report('json')}")
    settled = [evidence.ASIDE, evidence.SIGNED] if request.key and signed and not problem else [evidence.ASIDE]
    lines.append("not checked:")
    lines += [f"  {text} ({why})" if why in settled else f"  {text}" for text, why in tree.unchecked.items()]
    if findings:
        lines += [f"wrong: {len(findings)}", *(f"  {text}" for text in findings)]
    document = VerifyDocument(
        report=str(where),
        verified=not findings,
        verdict=word,
        files=tree.files,
        bytes=tree.bytes,
        records=len(tree.records),
        numbers_recomputed=numbers,
        rows_replayed=replayed,
        signature=signature,
        unchecked=[UncheckedClaim(text=text, settled=why in settled) for text, why in tree.unchecked.items()],
        wrong=findings,
    )
    if show is not None:
        show(document, "\n".join(lines))
    else:
        print(as_started("\n".join(lines)))
    if findings:
        raise DataError(f"{where} does not verify: {len(findings)} found: {some(findings, 3)}")
    left = [text for text, why in tree.unchecked.items() if why not in settled]
    if request.strict and left:
        raise GateError(f"--strict: {where} verifies but for {len(left)} not checked: {some(left, 3)}")
    if request.require and VERDICTS.index(word) < VERDICTS.index(request.require):
        raise GateError(f"--require {request.require}: the verdict of {where} is {word or 'none'}")
    return tree


def _leave_unchecked(request: VerificationRequest, tree: Evidence, signature: str) -> None:
    """What no check of ours shows, or none that was asked for."""
    if not request.key:
        tree.unchecked[f"who vouches for the report ({signature}): --key checks its signature"] = evidence.OPEN
    if not request.rows:
        tree.unchecked[f"that {request.artifacts.onnx} gives these logits: --replay N runs N rows"] = evidence.OPEN
    onnx, job = request.artifacts.onnx, tree.job
    if job and job.baseline:
        text = f"that {job.baseline} is what differs from the baseline: its files are not here. See invoke diff"
        tree.unchecked[text] = evidence.ASIDE
    texts = [
        "that times, machine, tools and settings were what report, logs and records say, and that nothing was left out",
        f"that {onnx} is the checkpoint's graph: invoke export-onnx makes the same bytes again",
        f"that the compiled models were made of {onnx}: invoke build-om makes them again",
    ]
    if job and any(cell.precision != contract.FP32 for cell in job.cells):
        texts.append("that models of lower precisions give these logits: float32 alone is replayed")
    tree.unchecked.update(dict.fromkeys(texts, evidence.SIGNED))


def run_stage(
    request: VerificationRequest, module: str, arguments: Sequence[object], scratch: Path, say: Optional[Console] = None
) -> str:
    """Run a stage in the tree; returns what it printed, and shows it by `say`. Raises the stage's errors."""
    # The tree may be anybody's: no module is imported from the folder that the stage runs in.
    variables = {**local.environment(request.project), "PYTHONSAFEPATH": "1"}
    command = [str(request.python()), "-m", module, *map(str, arguments)]
    log = scratch / f"{module}.log"
    lines, code = local.execute(command, request.root, variables, log, say.line if say else lambda line: None)
    try:
        check_exit(module, lines, code, log)
    except StageError as error:  # the log goes with the scratch folder
        raise StageError(f"{error}. It said: {one_line(''.join(lines[-20:]))}") from error
    return "".join(lines)


def _recompute(request: VerificationRequest, tree: Evidence, scratch: Path, console: Console) -> int:
    """Make the report and all that it counts again; returns how many numbers were compared."""
    artifacts = request.artifacts
    paths = [artifacts.job(), *map(artifacts.report, ("json", "md", "html"))]
    if tree.unsafe or not all(map(tree.within, [*paths, artifacts.bom()])):
        tree.add(artifacts.report("json"), "is not made again: what it rests on holds files that are not opened")
        return 0
    if absent := [path for path in paths if not (request.root / path).exists()]:
        for path in absent:
            tree.add(path, "is missing, so nothing could be made again")
        return 0
    output = scratch / "recomputed.json"
    arguments = [part for pair in zip(("--job", "--report", "--markdown", "--html"), paths) for part in pair]
    others = [*_data_options(tree), *_bill(request, tree, scratch), "--scratch", scratch, "--output", output]
    try:
        run_stage(request, RECOMPUTE, [*arguments, *others], scratch, console)
    except DebertaError as error:
        tree.add(artifacts.report("json"), f"cannot be made again: {error}")
        return 0
    result = schema.read_json(output, dict[str, Any])
    for finding in result["findings"]:
        tree.add(finding["where"], finding["what"])
    return schema.convert(result["numbers"], int, str(output))


def _data_options(tree: Evidence) -> list[object]:
    """The options that name the tokenizer and the config, as on the command line of the step that read the data."""
    claimed = {claim.path for claim in tree.claims}
    for name in sorted(tree.records):
        paths = [evidence.option(tree.records[name], part) for part in ("--tokenizer", "--config")]
        if claimed.issuperset(paths) and all(map(tree.within, paths)):
            return ["--tokenizer", paths[0], "--config", paths[1]]
    if tree.job and tree.job.sentinels:
        tree.add(tree.artifacts.job(), "has sentinels, and no record names the tokenizer and the config of the data")
    return []


def _bill(request: VerificationRequest, tree: Evidence, scratch: Path) -> list[object]:
    """The bill of materials made again, where this checkout has what that one was made of."""
    path = request.artifacts.bom()
    record = tree.record_for(str(path))
    if record is None or not (request.root / path).exists():
        return []
    parameters, ours = record.parameters, bom.sources(request.project)
    if others := [name for name, value in ours.items() if parameters.get(name) != value]:
        text = f"{path} against its sources: this checkout has another {' and another '.join(others)}"
        tree.unchecked[text] = evidence.ASIDE
        return []
    try:
        bill = bom.of_tree(request.project, request.root, request.artifacts, request.own)
    except DebertaError as error:
        tree.add(path, f"cannot be made again: {error}")
        return []
    files.write_text(scratch / path.name, schema.text(bill))
    return ["--stored-bom", path, "--recomputed-bom", scratch / path.name]


def _replay(request: VerificationRequest, tree: Evidence, scratch: Path, console: Console) -> str:
    """Random rows through dynamic.onnx; returns what to say about them."""
    progress.say(f"replaying {request.rows} rows, seed {request.seed}")
    plan, output = scratch / "replay.json", scratch / "replayed.json"
    artifacts, data_options = request.artifacts, _data_options(tree)
    model, runs = str(artifacts.onnx), list(_replayable(tree, tree.job)) if tree.job else []
    replayed = [model, *(str(path) for run in runs for path in run["bins"].values())]
    if tree.unsafe or not all(map(tree.within, replayed)):
        return "none, since a file is not opened"
    if not runs or not data_options:
        tree.add(artifacts.job(), "names no run of the present model whose rows could be replayed")
        return "none"
    float16 = artifacts.backend == "ascend"
    content = {"model": model, "tokenizer": data_options[1], "runs": runs, "limit": artifacts.limit, "float16": float16}
    files.write_text(plan, json.dumps(content))
    arguments = ["--plan", plan, "--rows", request.rows, "--seed", request.seed, "--output", output]
    try:
        run_stage(request, REPLAY, arguments, scratch, console)
    except DebertaError as error:
        tree.add(artifacts.onnx, f"cannot be replayed: {error}")
        return "none"
    result = schema.read_json(output, dict[str, Any])
    for text in result["differences"]:
        tree.add("replay", text)
    if left := result["of"] - result["rows"]:
        tree.unchecked[f"that {model} gives the logits of the {left} rows that were not drawn"] = evidence.SIGNED
    largest = f"largest difference of a logit {result['max_abs_difference']:.3g} (at most {result['tolerance']:g})"
    return f"{result['rows']} (seed {request.seed}): {largest}"


def _replayable(tree: Evidence, job: Job) -> Iterator[dict[str, Any]]:
    """The float32 runs of the present model, as the replay stage takes them."""
    for cell in job.cells:
        bins = dict(cell.bins)
        if not bins:  # padded: the record of the outputs names the folder
            [outputs] = cell.outputs.values()
            record = tree.record_for(outputs)
            folders = [path for path, digest in record.dependencies.items() if "dirHash" in digest] if record else []
            bins = {str(contract.SEQUENCE_LENGTH): path for path in folders[:1]}
        is_of_present = not cell.origin or contract.supplied_parts(cell.origin)
        if is_of_present and bins and cell.precision == contract.FP32:
            yield {
                "batch_size": cell.batch_size,
                "bins": bins,
                "data": job.data[cell.version],
                "outputs": cell.outputs,
                "reference": job.references.get(cell.version, ""),
            }


def statement(tree: Evidence) -> dict[str, Any]:
    """What is signed: the report, its pages, the bill and every record that they rest on, by SHA-256 (in-toto).

    Raises DataError if the report does not fit its schema.
    """
    report, root = tree.report, tree.root
    if report is None:
        raise DataError(f"{tree.artifacts.report('json')} is no report. Run: invoke verify")
    names = [*_signed_pages(tree), *sorted(tree.records)]
    return {
        "_type": records.STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": files.sha256_of(root / name)}} for name in names],
        "predicateType": PREDICATE_TYPE,
        "predicate": _predicate(report),
    }


def _predicate(report: Report) -> dict[str, Any]:
    return {
        "profile": report.body.profile,
        "backend": report.body.backend,
        "limit": report.body.limit,
        "body_sha256": report.body_sha256,
        "verdict": report.verdict and report.verdict.verdict,
        "made": report.measured.finished,
    }


def _signed_pages(tree: Evidence) -> list[str]:
    return [str(path) for path in tree.artifacts.pages if (tree.root / path).exists()]


def _signature(request: VerificationRequest, scratch: Path, console: Console) -> tuple[str, str]:
    """The signature's state as the summary says it, and what is wrong with it, or "". Raises ConfigError."""
    path = request.artifacts.attestation()
    exists = (request.root / path).exists()
    if exists and not files.inside(request.root, path, not request.own):
        return "bad", "leads out of the tree"
    if request.key is None:
        return ("not checked: no key given" if exists else "not signed"), ""
    if not exists:
        return "none, although a key was given", "is missing: expected a signature by the key given, found none"
    arguments = ["--envelope", path, "--key", os.path.abspath(request.key)]
    try:
        return f"signed by key {run_stage(request, SIGN, arguments, scratch).strip()}", ""
    except DataError as error:
        return "bad", str(error)


def _check_subjects(tree: Evidence) -> None:
    """Every file that was signed is the same, and everything that should be signed was."""
    path = tree.artifacts.attestation()
    try:
        envelope = schema.read_json(tree.root / path, dict[str, Any])
        content = schema.decode(base64.b64decode(envelope["payload"], validate=True), dict[str, Any])
        signed = {str(entry["name"]): str(entry["digest"]["sha256"]) for entry in content["subject"]}
        if content["_type"] != records.STATEMENT_TYPE or content["predicateType"] != PREDICATE_TYPE:
            raise ValueError(f"it is of type {content['predicateType']}")
        if tree.report and content["predicate"] != _predicate(tree.report):
            tree.add(path, "was signed for another report")
    except (KeyError, TypeError, AttributeError, ValueError, binascii.Error) as error:
        tree.add(path, f"is not a signed statement on a report ({type(error).__name__}: {error})")
        return
    for name, expected in signed.items():
        file = tree.root / name
        actual = files.sha256_of(file) if tree.holds(name) and file.is_file() else "nothing"
        if actual != expected:
            tree.add(name, f"expected sha256 {expected} (says {path}), found {actual}")
    for name in [*_signed_pages(tree), *sorted(tree.records)]:
        if name not in signed:
            tree.add(path, f"does not have {name} among what was signed")


def _sign(request: VerificationRequest, folder: str, passphrase_env: Optional[str], *arguments: object) -> str:
    """Run the stage that signs or makes a key; returns the key's id."""
    passphrase = ["--passphrase-env", passphrase_env] if passphrase_env else []
    return run_stage(request, SIGN, [*arguments, *passphrase], Path(folder)).strip()


def new_key(request: VerificationRequest, path: Path, passphrase_env: Optional[str]) -> None:
    """Make a key pair."""
    with tempfile.TemporaryDirectory(prefix="deberta-sign-") as folder:
        identity = _sign(request, folder, passphrase_env, "--new-key", os.path.abspath(path))
    print(f"key {identity}\n  {path}: private, keep it\n  {path}.pub: for those who verify")


def sign(request: VerificationRequest, key: Path, passphrase_env: Optional[str]) -> None:
    """Verify the tree, and write the attestation. Raises DataError for a tree that does not verify."""
    path = request.artifacts.attestation()
    with tempfile.TemporaryDirectory(prefix="deberta-sign-") as folder:
        before, envelope = Path(folder) / "statement.json", Path(folder) / "envelope.json"
        text = json.dumps(statement(evidence.walk(request.root, request.artifacts, request.own)))
        files.write_text(before, text)
        # First, so that a wrong key or passphrase is known at once; kept only if everything verifies.
        arguments = ["--statement", before, "--key", os.path.abspath(key), "--output", envelope]
        identity = _sign(request, folder, passphrase_env, *arguments)
        again = json.dumps(statement(verify(request, signed=False)))
        if again != text:
            raise DataError("something changed while it was verified. Run the same command again")
        signed, kept = envelope.read_text(encoding="utf-8"), request.root
        if kept.parent.name != ACCEPTANCES:
            kept = archive.keep(request.root, request.artifacts, exact=True)
        archive.add_signature(kept, request.artifacts, signed)
        files.write_text(request.root / path, signed)
    print(f"signed by key {identity}: {path}\n  kept in {kept}")
