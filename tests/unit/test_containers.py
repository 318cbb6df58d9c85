"""A step's container as data, without an engine."""

from __future__ import annotations

import csv
import io
import os
import re
import subprocess
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest

from deberta.ascend import atc
from deberta.core.errors import ConfigError, MissingError
from deberta.host.engine import containers, limits, traits
from deberta.host.engine.containers import Access, Container, Mount, User
from deberta.host.engine.limits import ContainerLimits
from deberta.host.engine.npu_access import NpuSettings
from deberta.host.images.definition import BuildSettings
from deberta.host.plan import evaluation, profiles
from deberta.host.plan.plan import Case, Plan, Step
from deberta.host.run import docker_executor, local
from tests.mnli_helpers import REPOSITORY

PROFILE = profiles.load("demo", {"demo": {"checkpoint": "p.bin", "config": "c.json", "tokenizer": "spm.model",
    "dataset": "MNLI", "labels": ["contradiction", "neutral", "entailment"], "rows": {"match": 10}}})  # fmt: skip
CPU = Plan(PROFILE, "cpu")
ASCEND = Plan(PROFILE, "ascend", soc_version="Ascend310P3", devices=(2,))
USER, NO_NPU = User(1234, 5678), Access()
OUTPUTS = PurePosixPath("results/demo/cpu/outputs_bs1_om/match/2022_1")


def of(step: Step, workspace: Path, access: Access = NO_NPU) -> Container:
    return containers.of_step(step, step.arguments, "image:tag", Path("/project"), workspace, USER, access)


def binds(container: Container, workspace: Path) -> dict[str, tuple[str, bool]]:
    """Target to source and whether it may be written to; sources in the workspace as relative paths."""
    found = {}
    for mount in container.mounts:
        inside = mount.source.is_relative_to(workspace)
        source = mount.source.relative_to(workspace) if inside else mount.source
        assert str(mount.target) not in found
        found[str(mount.target)] = (str(source), mount.writable)
    return found


KINDS = {f"/workspace/{kind}": (kind, False) for kind in ("models", "data", "results")}


def scratch(name: str) -> dict[str, tuple[str, bool]]:
    there = f".cache/scratch/{name}"
    return {f"/workspace/{there}": (there, True), "/etc/passwd": (f"{there}/passwd", False)}


def test_a_stage_writes_to_its_folder_and_not_over_its_inputs(tmp_path: Path) -> None:
    made = of(evaluation.export_onnx(CPU), tmp_path)
    assert binds(made, tmp_path) == {
        **KINDS,
        **scratch("export-onnx"),
        "/workspace/models/demo": ("models/demo", True),
        "/workspace/models/demo/p.bin": ("models/demo/p.bin", False),
        "/workspace/models/demo/c.json": ("models/demo/c.json", False),
        "/opt/deberta-ascend/deberta": ("/project/deberta", False),
    }
    # A mount below another one has to come after it.
    targets = [str(mount.target) for mount in made.mounts]
    assert (
        targets.index("/workspace/models")
        < targets.index("/workspace/models/demo")
        < targets.index("/workspace/models/demo/p.bin")
    )
    assert made.command[:3] == ("/opt/stages/bin/python", "-m", "deberta.stages.compile.export_onnx")
    assert made.folder == PurePosixPath("/workspace") and made.variables["PYTHONPATH"] == "/opt/deberta-ascend"
    assert made.variables["HOME"] == made.variables["TMPDIR"] == "/workspace/.cache/scratch/export-onnx/home"


def test_outputs_of_an_earlier_step_in_the_same_folder_are_read_only(tmp_path: Path) -> None:
    made = binds(of(evaluation.postprocess(Case(CPU, 1, "match"), [OUTPUTS]), tmp_path), tmp_path)
    assert made["/workspace/results/demo/cpu"] == ("results/demo/cpu", True)
    assert made[f"/workspace/{OUTPUTS}"] == (str(OUTPUTS), False)


def test_a_tool_works_in_its_scratch_folder_without_our_code(tmp_path: Path) -> None:
    access = Access(mounts=(Mount(Path("/driver/lib64"), PurePosixPath("/usr/local/Ascend/driver/lib64")),))
    [step] = evaluation.infer(Case(ASCEND, 1, "match"), {256: 10})
    made = of(step, tmp_path, access)
    assert binds(made, tmp_path) == {
        **KINDS,
        **scratch("infer_bs1_match"),
        "/workspace/results/demo/ascend/outputs_bs1_om": ("results/demo/ascend/outputs_bs1_om", True),
        "/usr/local/Ascend/driver/lib64": ("/driver/lib64", False),
    }
    assert made.folder == PurePosixPath("/workspace/.cache/scratch/infer_bs1_match") and made.command[0] == "msame"
    assert "PYTHONPATH" not in made.variables
    assert step.arguments[-2:] == ("--device", "2")
    assert docker_executor.without_device(step.arguments) == step.arguments[:-2]
    options = atc.options({"fusion_switch_file": "models/demo/fusion.cfg"})
    built = of(evaluation.build_om(Case(Plan(PROFILE, "ascend", soc_version="Ascend310P3", atc=options), 1)), tmp_path)
    assert binds(built, tmp_path)["/workspace/models/demo/ascend"] == ("models/demo/ascend", True)


def test_links_and_paths_elsewhere_have_mounts_of_their_own(tmp_path: Path) -> None:
    workspace, elsewhere = tmp_path / "workspace", tmp_path / "else,where"
    for folder in (workspace / "models/demo", workspace / "data", elsewhere / "results", elsewhere / "out"):
        folder.mkdir(parents=True)
    (workspace / "results").symlink_to(elsewhere / "results")
    (elsewhere / "p.bin").touch()
    (workspace / "models/demo/p.bin").symlink_to(elsewhere / "p.bin")
    made = binds(of(evaluation.export_onnx(CPU), workspace), workspace)
    assert made["/workspace/models/demo/p.bin"] == (str(elsewhere / "p.bin"), False)
    assert made["/workspace/results"] == (str(elsewhere / "results"), False)
    (workspace / "models/demo/p.bin").unlink()  # a folder of links now, as a checkpoint in shards may be
    (workspace / "models/demo/p.bin").mkdir()
    for name in ("a.index.json", "a-00001-of-00001.bin"):
        (elsewhere / name).touch()
        (workspace / "models/demo/p.bin" / name).symlink_to(elsewhere / name)
    made = binds(of(evaluation.export_onnx(CPU), workspace), workspace)
    assert made["/workspace/models/demo/p.bin/a.index.json"] == (str(elsewhere / "a.index.json"), False)
    assert "/workspace/models/demo/p.bin/a-00001-of-00001.bin" in made
    step = evaluation.postprocess(Case(CPU, 1, "match"), [PurePosixPath(elsewhere / "out")])
    made = binds(of(step, workspace), workspace)
    assert made[str(elsewhere / "out")] == (str(elsewhere / "out"), False)
    assert made["/workspace/results/demo/cpu"] == (str(elsewhere / "results/demo/cpu"), True)


def parsed(line: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The options of a `docker run` line, and the image with its command."""
    assert line[:2] == ["docker", "run"]
    options: dict[str, list[str]] = {}
    rest = line[2:]
    while rest[0].startswith("--"):
        alone = rest[0] in ("--rm", "--read-only")
        options.setdefault(rest[0], []).append("" if alone else rest[1])
        rest = rest[1 if alone else 2 :]
    return options, rest


@pytest.mark.parametrize("runtime", [False, True])
def test_the_line_to_paste_means_what_the_engine_is_asked_for(tmp_path: Path, runtime: bool) -> None:
    nodes = tuple((Path("/d") / name, f"/dev/{name}") for name in ("davinci0", "hisi_hdc"))
    access = (
        Access(runtime="ascend", variables=(("ASCEND_VISIBLE_DEVICES", "0"),))
        if runtime
        else Access(nodes, groups=(7, 8))
    )
    workspace = tmp_path / 'a, b "c"'
    made = of(evaluation.infer(Case(ASCEND, 1, "match"), {256: 10})[0], workspace, access)
    made = made._replace(limits=ContainerLimits(memory="8g", pids=512, tmp="1g"))
    asked: dict[str, Any] = containers.create_arguments(made, "sha256:1", "name", {"label": "x"})
    options, command = parsed(containers.command_line(made))
    assert command == ["image:tag", *asked["command"]]
    assert (options["--network"], asked["network_mode"]) == (["none"], "none")
    assert (options["--cap-drop"], asked["cap_drop"]) == (["ALL"], ["ALL"])
    assert options["--security-opt"] == asked["security_opt"] == ["no-new-privileges"]
    assert options["--read-only"] and asked["read_only"] and "privileged" not in asked
    assert options["--tmpfs"] == [":".join(*asked["tmpfs"].items())] == ["/tmp:size=1g"]
    assert (options["--pids-limit"], asked["pids_limit"]) == (["512"], 512)
    assert (options["--memory"], asked["mem_limit"]) == (["8g"], "8g")
    assert options["--log-driver"] == [asked["log_config"]["Type"]] == ["json-file"]
    assert dict(pair.split("=") for pair in options["--log-opt"]) == asked["log_config"]["Config"]
    assert options["--user"] == [asked["user"]] == ["1234:5678"]
    assert options["--userns"] == [asked["userns_mode"]] == ["host"]
    assert options["--workdir"] == [asked["working_dir"]]
    assert options.get("--group-add", []) == asked["group_add"] == ([] if runtime else ["7", "8"])
    assert options.get("--device", []) == asked["devices"]
    assert options.get("--runtime", []) == ([asked["runtime"]] if "runtime" in asked else [])
    assert dict(pair.split("=", 1) for pair in options["--env"]) == asked["environment"]
    mounts = [next(csv.reader(io.StringIO(value))) for value in options["--mount"]]
    assert mounts == [
        [
            "type=bind",
            f"source={mount['Source']}",
            f"target={mount['Target']}",
            *(["readonly"] if mount["ReadOnly"] else []),
        ]
        for mount in asked["mounts"]
    ]
    assert f"source={workspace}/models" in mounts[0]
    assert set(options) <= {
        *("--rm", "--network", "--cap-drop", "--security-opt", "--read-only", "--tmpfs", "--user", "--workdir"),
        *("--pids-limit", "--memory", "--log-driver", "--log-opt"),
        *("--group-add", "--device", "--runtime", "--env", "--mount", "--userns"),
    }


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"memory": "255m"}, "containers in invoke.yaml: memory: 255m is less than 256m, the least that is taken"),
        ({"memory": "8 GB"}, "containers in invoke.yaml: memory: Expected `str` matching regex"),
        ({"memory": 8}, "memory: Expected `str`"),
        ({"pids": 7}, "pids: 7 is neither 0, no limit, nor 64 or more"),
        ({"tmp": "1m"}, "tmp: 1m is less than 16m"),
        ({"cpus": 2}, "unknown field `cpus`, which is not one of: memory, pids, tmp"),
    ],
)
def test_limits_that_cannot_be(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        limits.settings(settings)


def test_limits_that_the_engine_cannot_set_are_said_and_not_asked_for(tmp_path: Path) -> None:
    most = limits.settings({"memory": "8g"})
    assert most == ContainerLimits("8g", 4096, "2g") and limits.settings(None) == ContainerLimits() == ContainerLimits(
        "", 4096, "2g"
    )
    capable = {"MemoryLimit": True, "PidsLimit": True, "CgroupDriver": "systemd", "CgroupVersion": "2"}
    rootless = {"SecurityOptions": ["name=rootless"]}
    for info, kept in (
        (capable, most),
        ({}, most),  # API 1.39 does not say
        ({**capable, **rootless}, most),
        ({**capable, "PidsLimit": False}, ContainerLimits("8g", 0, "2g")),
        ({**capable, **rootless, "CgroupVersion": "1"}, ContainerLimits("", 0, "2g")),
        ({**capable, "CgroupDriver": "none"}, ContainerLimits("", 0, "2g")),
    ):
        assert limits.possible(most, traits.of(info)) == kept
        assert len(limits.notes(most, traits.of(info))) == (kept != most)
    [note] = limits.notes(most, traits.of({"CgroupDriver": "none"}))
    assert "containers.memory and containers.pids of invoke.yaml has no effect" in note
    asked = containers.create_arguments(of(evaluation.export_onnx(CPU), tmp_path)._replace(limits=kept), "x", "y", {})
    assert not {"mem_limit", "pids_limit"} & set(asked)
    assert "more memory than 8g, which is containers.memory in invoke.yaml" in limits.out_of_memory("c", most, "log")
    assert "containers.memory in invoke.yaml sets no limit" in limits.out_of_memory("c", ContainerLimits(), "log")


def test_selinux_gets_labels_for_our_own_folders_alone(tmp_path: Path) -> None:
    """What lies elsewhere keeps its label; a container that needs such, or a device, is not confined by SELinux."""
    project, workspace, step = Path("/project"), tmp_path / "workspace", evaluation.export_onnx(CPU)
    (workspace / "models/demo").mkdir(parents=True)
    ours = containers.for_selinux(of(step, workspace), [project, workspace])
    asked = containers.create_arguments(ours, "sha256:1", "name", {})
    options, _ = parsed(containers.command_line(ours))
    assert options["--volume"] == asked["volumes"] and not {"--mount"} & set(options) and "mounts" not in asked
    assert f"{workspace}/models:/workspace/models:ro,z" in asked["volumes"]
    assert f"{workspace}/models/demo:/workspace/models/demo:rw,z" in asked["volumes"]
    assert "/project/deberta:/opt/deberta-ascend/deberta:ro,z" in asked["volumes"]
    assert options["--security-opt"] == asked["security_opt"] == ["no-new-privileges"]
    nodes = Access(((Path("/d/davinci0"), "/dev/davinci0"),))
    [infer] = evaluation.infer(Case(ASCEND, 1, "match"), {256: 10})
    (tmp_path / "p.bin").touch()
    elsewhere = workspace / "models/demo/p.bin"
    elsewhere.symlink_to(tmp_path / "p.bin")
    colon = of(step, tmp_path / "a:b")
    for container in (of(infer, workspace, nodes), of(step, workspace), colon):
        unconfined = containers.for_selinux(container, [project, workspace, tmp_path / "a:b"])
        asked = containers.create_arguments(unconfined, "sha256:1", "name", {})
        options, _ = parsed(containers.command_line(unconfined))
        assert options["--security-opt"] == asked["security_opt"] == ["no-new-privileges", "label=disable"]
        assert "--mount" in options and "--volume" not in options and "volumes" not in asked


@pytest.mark.parametrize(
    ("security", "says"),
    [
        (["name=seccomp,profile=default", "name=selinux", "name=cgroupns"], ["--user 1234:5678", ":ro,z "]),
        (["name=seccomp,profile=default", "name=userns"], ["--userns host --", "--user 1234:5678"]),  # Docker
        (["name=seccomp,profile=default", "name=rootless"], ["--user 0:0", "type=bind"]),
        (None, ["# for an engine of root's without SELinux, since none was asked: no Docker engine answers", "1234:"]),
    ],
)
def test_the_engine_decides_what_a_dry_run_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, security: list[str] | None, says: list[str]
) -> None:
    def connect(_: float) -> Any:
        if security is None:
            raise MissingError("no Docker engine answers")
        return SimpleNamespace(info=lambda: {"SecurityOptions": security}, close=lambda: None)

    monkeypatch.setattr(docker_executor, "connect", connect)
    monkeypatch.setattr(docker_executor, "owner", lambda _: USER)
    settings = BuildSettings(), NpuSettings()
    docker_executor.DockerExecutor(REPOSITORY, tmp_path, *settings, keep=False).show(evaluation.export_onnx(CPU))
    shown = capsys.readouterr().out
    assert all(text in shown for text in says), shown
    assert not list(tmp_path.iterdir())


def test_podman_says_what_it_is_in_its_own_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer: dict[str, Any] = {"SecurityOptions": ["name=seccomp,profile=default"], "BuildahVersion": "1.28.2"}
    assert not traits.of({**answer, "Rootless": False}).rootless and traits.of({**answer, "Rootless": True}).rootless
    for exists in (False, True):
        monkeypatch.setattr(traits, "SELINUX", tmp_path if exists else tmp_path / "none")
        assert traits.of(answer).selinux == exists
        assert not traits.of({"SecurityOptions": answer["SecurityOptions"]}).selinux  # Docker without it


def test_a_rootless_engine_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "engine.sock").touch()
    address, user = f"unix://{tmp_path}/engine.sock", os.getuid()
    traits.check_owner(address, user)
    with pytest.raises(ConfigError, match=rf"belongs to the user {user}, and .* not to {user + 1}\. Set DOCKER_HOST"):
        traits.check_owner(address, user + 1)


def test_the_folder_that_a_run_names_is_the_shells_to_find(tmp_path: Path) -> None:
    """In a mount too, whatever else is in that."""
    for name in ("one", "t wo"):
        (tmp_path / "out puts" / name).mkdir(parents=True)
    os.utime(tmp_path / "out puts/one", (1, 1))
    mount = 'type=bind,"source=/a, $b/$T",target=/workspace/$T,readonly'
    step = evaluation.export_onnx(CPU)
    lines = local.script(step, ["printf", "%s\\n", mount, "", "--outputs", "out puts/$T"], ())
    ran = subprocess.run(["sh", "-e", "-c", "\n".join(lines)], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == [mount.replace("$T", "t wo"), "", "--outputs", "out puts/t wo"]


def test_passwd() -> None:
    container = Container("", (), PurePosixPath("/"), USER, (), {"HOME": "/workspace/.cache/home"})
    assert containers.passwd(container).splitlines()[1] == "user:x:1234:5678::/workspace/.cache/home:/bin/sh"
    assert containers.passwd(container._replace(user=User(0, 0))) == "root:x:0:0:root:/root:/bin/sh\n"
