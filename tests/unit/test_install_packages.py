"""What docker/install-packages removes from an image's packages: by rules, and never a licence."""

from __future__ import annotations

import importlib.util
import re
import sysconfig
from importlib import metadata
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

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
