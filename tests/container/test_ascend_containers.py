"""The ascend backend in containers of the compile and runtime images, as users run it; failures first.

Their bases have CANN in them, as a user's own may: stand-ins of it (tests/fakes), with null devices in place of an NPU.
That shows how our containers are made, and nothing about CANN or a device.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from deberta.core import files, records
from deberta.host.engine import engine
from deberta.host.images import definition, pins
from tests import fake_cann
from tests.container import container_helpers as helpers
from tests.container.bases import BOOKWORM
from tests.container.conftest import CANN_AT, FORCED, one_at_a_time
from tests.container.container_helpers import CALLER, Place

ASCEND = ("--backend", "ascend", "--soc-version", "Ascend310P3")
BUILD = ("build-om", "--bs", "8", *ASCEND)
EVALUATE = ("evaluate", "--bs", "8", "--version", "mismatch", *ASCEND)
INFER = ("infer", *EVALUATE[1:], "--limit", "24")  # three batches
PERF = ("perf", "--bs", "8", "--loops", "5", *ASCEND)
RESULTS = "results/demo/ascend"
OM = "models/demo/ascend/deberta_bs8.om"
OUTPUTS, FEW_OUTPUTS = f"{RESULTS}/outputs_bs8_om", f"{RESULTS}/outputs_bs8_limit24_om"
NODES = ("davinci0", "davinci_manager", "devmm_svm", "hisi_hdc")
DEVICE_GROUP = 34567
# A step's inputs, and the folder that it may write to beside its scratch folder.
STEPS = {
    "export-onnx": (("models/demo/pytorch.model-demo.bin", "models/demo/model_config.json"), "models/demo"),
    "build-om_bs8": (("models/demo/dynamic.onnx",), "models/demo/ascend"),
    "preprocess_bs8_mismatch": (
        ("models/demo/spm.model", "data/demo/MNLI/dev_mismatched.tsv"),
        "data/demo/pre_mnli_bs8",
    ),
    "infer_bs8_mismatch": ((OM, "data/demo/pre_mnli_bs8/mismatch/input_ids/input_0.bin"), OUTPUTS),
    "postprocess_bs8_mismatch": ((f"{OUTPUTS}/mismatch/*", "data/demo/MNLI/dev_mismatched.tsv"), RESULTS),
}
# The command, what the stand-ins are told, and what shows that the tool is at work.
AT_WORK: dict[str, tuple[tuple[str, ...], dict[str, str], str]] = {
    "atc": (BUILD, {"atc": "hang"}, f"{OM.replace('/deberta', '/.deberta')}.tmp-*.om"),
    "msame": (INFER, {"msame": "hang=2"}, f"{FEW_OUTPUTS}/.mismatch.tmp-*/*/input_*"),
}
# What msame's stand-in needs of the export image, which is ten times as large; that is where it is found there, too.
PACKAGES = "/opt/stages/lib/python3.11/site-packages"
RUNTIME = "\n".join(
    (
        "FROM {export} AS stages",
        f"FROM {BOOKWORM}",
        f"LABEL {definition.LABEL}=test-base",
        "COPY --from=stages /opt/stages/pyvenv.cfg /opt/stages/",
        "COPY --from=stages /opt/stages/bin /opt/stages/bin",
        *(f"COPY --from=stages {PACKAGES}/{name} {PACKAGES}/{name}" for name in ("numpy", "numpy.libs", "onnxruntime")),
        f"COPY cann {CANN_AT}",
    )
)


@pytest.fixture(scope="session")
def ascend(
    project: Path,
    has_cann: str,
    engine_client: Any,
    build_settings: dict[str, str],
    locks: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A copy of the project with its bases, msame and images; the images stay on the engine for another run."""
    folder = tmp_path_factory.mktemp("ascend")
    copy = shutil.copytree(project, folder / "project")
    export = definition.plan(project, pins.load(project), "export", platform.machine()).tag
    runtime = "deberta-ascend-test/has-cann:runtime"
    tree = fake_cann.install(folder / "runtime/cann", at=CANN_AT, python="/opt/stages/bin/python", forced=FORCED)
    (folder / "runtime/Dockerfile").write_text(RUNTIME.format(export=export), encoding="utf-8")
    engine_client.images.build(path=str(folder / "runtime"), tag=runtime, rm=True)
    (copy / pins.MSAME).parent.mkdir()
    shutil.copy(tree / fake_cann.MSAME, copy / pins.MSAME)
    helpers.invoke(copy, build_settings, "images", "--lock")
    with one_at_a_time(locks, "compile"):
        helpers.invoke(copy, build_settings, "images", "--base", f"compile={has_cann}", "--base", f"runtime={runtime}")
    return copy


@pytest.fixture(scope="session")
def npu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The setting `npu`: four null devices that only their group may open, and a driver's files."""
    folder = tmp_path_factory.mktemp("npu")
    (folder / "dev").mkdir()
    for name in NODES:
        os.mknod(folder / "dev" / name, 0o660 | stat.S_IFCHR, os.makedev(1, 3))
        os.chown(folder / "dev" / name, 0, DEVICE_GROUP)
        os.chmod(folder / "dev" / name, 0o660)
    (folder / "driver/lib64").mkdir(parents=True)
    (folder / "driver/lib64/libascend_hal.so").write_bytes(b"stand-in\n")
    (folder / "driver/version.info").write_text(f"Version={fake_cann.DRIVER}\n")
    return {"nodes": str(folder / "dev"), "driver": str(folder / "driver")}


@pytest.fixture(scope="session")
def evaluated(
    ascend: Path, npu: dict[str, str], finished: Place, engine_client: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Place, dict[str, Any]]:
    """A workspace of an evaluation; and of each step what `docker inspect` says of its container, which was kept."""
    place = replace(finished.copy(tmp_path_factory.mktemp("evaluated") / "demo", npu=npu), project=ascend)
    try:
        said = place.succeed(*EVALUATE, "--force", "--keep")
        assert "accuracy mismatch bs=8 on ascend: 0.9641666666666666 = 1157/1200\n" in said
        kept = {
            one.name[len("deberta-ascend-") : -len("-12345678")]: one.attrs for one in place.containers(engine_client)
        }
    finally:
        place.run("clean", "--containers")
    place.succeed(*INFER)
    return place, kept


@pytest.fixture
def place(evaluated: tuple[Place, dict[str, Any]], tmp_path: Path) -> Iterator[Place]:
    yield evaluated[0].copy(tmp_path / "demo")
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("how", helpers.ENDS)
@pytest.mark.parametrize("tool", AT_WORK)
def test_a_run_that_ends_in_the_middle(place: Place, engine_client: Any, tmp_path: Path, tool: str, how: str) -> None:
    command, forced, sign = AT_WORK[tool]
    for made in (OM, f"{OM}.record.json") if tool == "atc" else (f"{FEW_OUTPUTS}/mismatch",):
        files.remove(place.root / made)
    fake_cann.force(place.root / "models", **forced)
    helpers.end_in_the_middle(how, place, engine_client, tmp_path, command, sign)
    fake_cann.force(place.root / "models")
    said = place.succeed(*command)
    assert helpers.ran(said) == ["build-om bs=8" if tool == "atc" else "infer bs=8 mismatch first 24 rows"]
    assert ("which an earlier run left" in said) == (how == "engine-gone")
    assert not [name for name in place.files() if ".tmp-" in name] and not place.containers(engine_client)


def test_an_interrupted_tool_is_killed_though_its_container_is_kept(place: Place, engine_client: Any) -> None:
    command, forced, sign = AT_WORK["atc"]
    files.remove(place.root / OM)
    fake_cann.force(place.root / "models", **forced)
    running = place.start(*command, "--keep")
    place.at_work(engine_client, running, sign)
    running.terminate()
    out, err = running.communicate(timeout=helpers.SECONDS)
    assert running.returncode == 130, out + err
    assert [one.status for one in place.containers(engine_client)] == ["exited"]
    place.succeed("clean", "--containers")


def test_what_is_missing_is_named(place: Place, finished: Place, tmp_path: Path) -> None:
    files.remove(place.root / f"{FEW_OUTPUTS}/mismatch")
    before = place.files()
    place.configure(npu={"nodes": str(tmp_path), "driver": str(tmp_path)})
    said = place.fail(3, *INFER)
    assert all(f"{tmp_path}/{name}" in said for name in (*NODES, "lib64")) and "no davinci device" in said
    assert "docker/bin/msame" in place.fail(2, *INFER, "--msame", "/bin/true")
    without = replace(place, project=finished.project)
    assert re.search("invoke .*images --base compile=IMAGE", without.fail(3, *BUILD, "--force"))
    assert place.files() == before


def test_a_tools_failure_is_judged(place: Place) -> None:
    """Both stand-ins end with exit code 0."""
    for made in (OM, f"{FEW_OUTPUTS}/mismatch"):
        files.remove(place.root / made)
    fake_cann.force(place.root / "models", atc="success-without-om")
    assert "atc" in place.fail(4, *BUILD) and not (place.root / OM).exists()
    fake_cann.force(place.root / "models", msame="missing-output")
    assert "input_2_output_0.bin" in place.fail(5, *INFER)
    assert not [path for path in (place.root / FEW_OUTPUTS).iterdir() if path.name != "mismatch.record.json"]


def test_counts_are_the_cpu_backends(evaluated: tuple[Place, dict[str, Any]]) -> None:
    root = evaluated[0].root / "results/demo"
    name = "eval_bs8_mismatch.txt"
    assert (root / "ascend" / name).read_text() == (root / "cpu" / name).read_text()


def test_images_and_records(evaluated: tuple[Place, dict[str, Any]], engine_client: Any, ascend: Path) -> None:
    place, kept = evaluated
    made = {"build-om_bs8": ("compile", OM), "infer_bs8_mismatch": ("runtime", f"{OUTPUTS}/mismatch")}
    for step, (stage, artifact) in made.items():
        image = definition.plan(ascend, pins.load(ascend), stage, platform.machine())
        found = engine_client.images.get(image.tag)
        assert {name: found.labels[name] for name in definition.labels(image)} == definition.labels(image)
        assert kept[step]["Image"] == found.id
        record = records.read(place.root / f"{artifact}.record.json")
        assert record is not None and record.parameters["image"] == image.tag
        assert record.dependencies[f"image {image.tag}"] == {"sha256": found.id.partition(":")[2]}
        assert record.internal["pins"].startswith("not pinned: base sha256:")
        assert record.internal["cann"] == fake_cann.VERSION


def test_the_real_packages_of_the_compile_image(ascend: Path, engine_client: Any) -> None:
    """requirements-compile.lock in full on Python 3.9, beside a stand-in of CANN."""
    tag = definition.plan(ascend, pins.load(ascend), "compile", platform.machine()).tag
    code = "import numpy, scipy.linalg, google.protobuf; print(numpy.int, google.protobuf.__version__)"
    for command, expected in (
        (["atc", "--help"], "usage: atc"),
        (["python3", "-W", "ignore", "-c", code], "<class 'int'> 3.20."),
    ):
        printed = engine_client.containers.run(
            tag, command, remove=True, network_mode="none", labels={definition.LABEL: "container"}
        )
        assert expected in printed.decode()


def mounted(found: Any, path: str) -> Any:
    """The mount that a path of a container lies in."""
    over = [one for one in found["Mounts"] if PurePosixPath(path).is_relative_to(one["Destination"])]
    return max(over, key=lambda one: len(one["Destination"]))


def test_no_container_may_do_more_than_it_must(evaluated: tuple[Place, dict[str, Any]], npu: dict[str, str]) -> None:
    place, kept = evaluated
    assert set(STEPS) <= set(kept)
    for step, found in kept.items():
        host, labels = found["HostConfig"], found["Config"]["Labels"]
        assert (host["NetworkMode"], host["Privileged"], host["CapDrop"], host["CapAdd"]) == (
            "none",
            False,
            ["ALL"],
            None,
        )
        assert (host["SecurityOpt"], host["ReadonlyRootfs"]) == (["no-new-privileges"], True)
        assert (host["PidMode"], host["IpcMode"], host["Binds"]) == ("", "private", None)
        assert found["Config"]["User"] == "{}:{}".format(*CALLER)
        assert labels[engine.LABEL] == "container" and labels[engine.OF_WORKSPACE] == engine.workspace_label(place.root)
        nodes = {(f"{npu['nodes']}/{name}", f"/dev/{name}") for name in NODES} if step.startswith("infer") else set()
        assert {(one["PathOnHost"], one["PathInContainer"]) for one in host["Devices"] or ()} == nodes
        assert (host["GroupAdd"] or []) == ([str(DEVICE_GROUP)] if nodes else [])


@pytest.mark.parametrize("step", STEPS)
def test_a_step_can_write_its_outputs_and_not_its_inputs(evaluated: tuple[Place, dict[str, Any]], step: str) -> None:
    place, kept = evaluated
    found = kept[step]
    inputs, outputs = STEPS[step]
    writable = {mount["Source"] for mount in found["Mounts"] if mount["RW"]}
    assert writable == {str(place.root / path) for path in (outputs, f".cache/scratch/{step}")}
    for path in inputs:
        [there] = [f"/workspace/{one.relative_to(place.root)}" for one in place.root.glob(path)]
        assert not mounted(found, there)["RW"], there
    for path in (
        "/etc/passwd",
        *(("/opt/deberta-ascend/deberta",) if "om" not in step and "infer" not in step else ()),
    ):
        assert not mounted(found, path)["RW"] and mounted(found, path)["Destination"] == path


def test_a_running_container_from_within(place: Place, engine_client: Any) -> None:
    command, forced, sign = AT_WORK["msame"]
    files.remove(place.root / FEW_OUTPUTS / "mismatch")
    fake_cann.force(place.root / "models", **forced)
    running = place.start(*command)
    container = place.at_work(engine_client, running, sign)
    try:
        assert container.attrs["State"]["Running"] and container.name.startswith(
            "deberta-ascend-infer_bs8_mismatch_limit24-"
        )

        def within(script: str) -> str:
            return str(container.exec_run(["sh", "-c", script]).output.decode())

        assert within("id -u; id -G").split() == [*map(str, CALLER), str(DEVICE_GROUP)]
        assert within("grep -E 'Cap(Prm|Eff|Bnd)|NoNewPrivs' /proc/1/status | cut -f 2 | sort -u").split() == [
            "0000000000000000", "1",
        ]  # fmt: skip
        assert within("ls /sys/class/net") == "lo\n"
        assert within("ls /dev | grep -E 'davinci|devmm|hisi'").split() == list(NODES)
        assert within("for node in davinci0 devmm_svm; do : < /dev/$node && echo open; done").split() == ["open"] * 2
        folders = "/ /opt/deberta-ascend /usr/local/Ascend . ./models ./models/demo/ascend ./data/demo ./results/demo"
        closed = f"cd /workspace; for folder in {folders}; do touch $folder/x 2>&1; done | grep -c Read-only"
        assert within(closed) == "8\n"
        scratch = "/workspace/.cache/scratch/infer_bs8_mismatch_limit24"
        folders = f"{scratch} $HOME $TMPDIR /tmp /workspace/{FEW_OUTPUTS}"
        opened = f"for folder in {folders}; do touch $folder/x && echo $folder; done"
        assert len(within(opened).splitlines()) == 5
    finally:
        running.terminate()
        out, err = running.communicate(timeout=helpers.SECONDS)
    assert running.returncode == 130, out + err


def test_performance_as_root_in_somebodys_workspace(place: Place) -> None:
    said = replace(place, caller=(0, 0)).succeed(*PERF)
    assert "perf bs=8 match on ascend: " in said and "(5 loops" in said and "you are root" in said
    assert (place.root / RESULTS / "msame_bs8_match.txt").read_text().count("Inference time: ") == 5
    for kind in ("models", "data", "results", ".cache"):
        assert helpers.owners(place.root / kind) == {CALLER}, kind
    [row] = [line for line in place.succeed("report", "--backend", "ascend").splitlines() if "| demo bs8 |" in line]
    assert row.count("not pinned") == 2 and "MM=96.42 (1157/1200)" in row
