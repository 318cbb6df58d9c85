"""bench: the machine that figures were measured on, described so that others can be compared with it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
from pathlib import Path
from typing import Any

from deberta.core import machine

# Instructions that decide the speed of matrix products, as Linux names them in /proc/cpuinfo (x86_64, then aarch64).
FLAGS = (
    "avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_bf16", "amx_int8", "asimd", "asimddp", "bf16", "i8mm", "sve", "sve2",
)  # fmt: skip
PACKAGES = ("openvino", "onnxruntime", "torch", "transformers", "onnx", "numpy")
IDLE = 0.5  # a load average above this at the start means that something else is running


def describe() -> dict[str, Any]:
    fields, flags = machine.cpu_fields(), machine.cpu_flags()
    memory = re.search(r"MemTotal:\s+(\d+) kB", _read("/proc/meminfo"))
    compiler = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    return {
        "cpu": machine.cpu_name(),
        "family_model_stepping": [fields.get(name, "") for name in ("cpu family", "model", "stepping")],
        "flags": [flag for flag in FLAGS if flag in flags],
        "logical_cpus": os.cpu_count(),
        "usable_cpus": machine.effective_cpus(),
        "hypervisor": "hypervisor" in flags,
        "memory_bytes": int(memory[1]) * 1024 if memory else None,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "c_library": " ".join(platform.libc_ver()).strip(),
        "cxx_compiler": Path(compiler).name if compiler else None,
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "load_average": round(os.getloadavg()[0], 2),
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # not Linux
