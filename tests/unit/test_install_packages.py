"""What docker/install-packages removes from an image's packages: by rules, and never a licence."""

from __future__ import annotations

import importlib.util
import re
import sysconfig
from importlib import metadata
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from deberta.host.environments import locks, stages
from tests.mnli_helpers import REPOSITORY

KEPT = (
    "torch/__init__.py", "torch/bin/torch_shm_manager", "torch/lib/libtorch_cpu.so", "torch/testing/_internal/a.py",
    "torch/include/LICENSE", "numpy/_core/tests/data/NOTICE", "numpy/testing/__init__.py", "jinja2/tests.py",
    "pkg/contest/a.py", "openvino/libs/libopenvino_intel_cpu_plugin.so", "openvino/libs/libopenvino_arm_cpu_plugin.so",
    "numpy-2.dist-info/RECORD", "torch-2.dist-info/licenses/third_party/json/test/doctest/LICENSE.txt",
)  # fmt: skip
REMOVED = (
    "torch/test/test_api.cpp", "torch/bin/test_jit", "torch/bin/protoc-3.13.0.0", "torch/include/ATen/Tensor.h",
    "numpy/_core/tests/licenses.py", "numpy/_core/lib/libnpymath.a", "pkg/tests/__pycache__/a.cpython-311.pyc",
    "openvino/libs/libopenvino_intel_gpu_plugin.so", "openvino/cmake/OpenVINOConfig.cmake", "setuptools/__init__.py",
    "setuptools/_vendor/x.dist-info/LICENSE", "setuptools-84.dist-info/METADATA", "distutils-precedence.pth",
)  # fmt: skip


@pytest.fixture(scope="module")
def program() -> ModuleType:
    loader = SourceFileLoader("install_packages", str(REPOSITORY / "docker" / "install-packages"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_tests_headers_and_tools_go_and_nothing_else(
    program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (*KEPT, *REMOVED):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1234")
    program.slim(str(tmp_path))
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == set(KEPT)
    assert not [path for path in tmp_path.rglob("*") if path.is_dir() and not any(path.iterdir())]
    assert f"removed {len(REMOVED)} files" in capsys.readouterr().out


def test_the_licences_that_packages_name_stay(program: ModuleType) -> None:
    site, known = Path(sysconfig.get_path("purelib")), 0
    locked = {package.name for package in locks.read(REPOSITORY / stages.STAGES_LOCK)} - {"setuptools"}
    for folder in site.glob("*.dist-info"):
        package = metadata.Distribution.at(folder)
        if re.sub(r"[-_.]+", "-", package.name).lower() in locked:
            for name in package.metadata.get_all("License-File") or ():
                places = [place for place in (folder / "licenses" / name, folder / name) if place.is_file()]
                assert places, (package.name, name)
                assert not any(program.is_unneeded(str(place.relative_to(site))) for place in places), name
                known += 1
    assert known > 40


@pytest.mark.parametrize(
    ("library", "error"),
    [
        ("glibc 2.36", ""),
        ("glibc 2.35", ""),
        ("glibc 2.9", "error: openvino 1 needs glibc 2.35 or newer, and the base has glibc 2.9. Use a newer base"),
        (None, "error: openvino 1 needs glibc 2.35 or newer, and the base has a C library that is not glibc. Use a"),
    ],
)
def test_a_base_with_another_c_library_is_refused_before_pip_runs(
    library: str | None, error: str, program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "glibc").write_text("2.35 openvino 1\n", encoding="utf-8")
    monkeypatch.setattr(program, "NETWORK", str(tmp_path))
    monkeypatch.setattr(program.os, "confstr", lambda name: library)
    monkeypatch.setattr(program.subprocess, "call", lambda *arguments, **options: 0)
    ran: list[list[str]] = []
    monkeypatch.setattr(program, "run", lambda command, variables: ran.append(command))
    if error:
        with pytest.raises(SystemExit, match=error):
            program.install("python", [], [])
    else:
        program.install("python", [], [])
    assert len(ran) == (not error)


def test_torch_comes_first_and_alone_from_its_own_index(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "NETWORK", str(tmp_path))
    monkeypatch.setattr(program, "TORCH_LOCK", str(tmp_path / "torch.lock"))
    (tmp_path / "torch-index").write_text("https://own.invalid/cpu", encoding="utf-8")
    calls: list[list[str]] = []
    code = 0

    def call(command: list[str], **options: object) -> object:
        calls.append(command)
        return code

    monkeypatch.setattr(program, "run", lambda command, variables: calls.append(command))
    monkeypatch.setattr(program.subprocess, "call", call)
    not_found = SimpleNamespace(stdout=b"ERROR: No matching distribution found for torch")
    monkeypatch.setattr(program.subprocess, "run", lambda command, **options: not_found)
    program.install("python", [], [])
    assert ["own.invalid" in " ".join(command) for command in calls] == [
        False
    ]  # this machine's is on the default index
    (tmp_path / "torch.lock").write_text("torch==2+cpu \\\n    --hash=sha256:00\n", encoding="utf-8")
    program.install("python", [], [])
    assert ["https://own.invalid/cpu" in command for command in calls[1:]] == [True, False]
    assert "--no-deps" in calls[1] and "--require-hashes" in calls[1]
    code = 1
    with pytest.raises(SystemExit, match=r"torch==2\+cpu, the build .* cannot be had from https://own.invalid/cpu"):
        program.install("python", [], [])
