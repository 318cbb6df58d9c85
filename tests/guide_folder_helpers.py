"""A folder in which the guide was followed on the demo's first rows: its names, with stand-ins."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deberta.core import contract, mnli
from deberta.core.contract import DEV_FILES, INPUTS, LABELS
from tests import report_helpers
from tests.mnli_helpers import REPOSITORY

RUN = "20261122_9_1_58_100122"


def make(folder: Path, tsvs: Path, sizes: Sequence[int] = (8,), versions: Sequence[str] = contract.VERSIONS) -> Path:
    """Lay the folder out; `tsvs` holds the dev files. Row 3 of each version is wrong, all others are right."""
    for source, name in (("pytorch.model-demo.bin", "pytorch.model-073631.bin"), ("model_config.json",) * 2):
        folder.mkdir(exist_ok=True)
        shutil.copyfile(REPOSITORY / "models/demo" / source, folder / name)
    shutil.copyfile(REPOSITORY / "models/demo/spm.model", folder / "spm.model")
    (folder / "MNLI").mkdir()
    (folder / "dynamic.onnx").write_bytes(b"\x08\x07 a graph")
    (folder / "pth2onnx.py").write_text("a script of the guide's\n")
    (folder / "DeBERTa/experiments").mkdir(parents=True)
    (folder / "DeBERTa/experiments/run.py").write_text("a clone\n")
    for version in versions:
        shutil.copyfile(tsvs / DEV_FILES[version], folder / "MNLI" / DEV_FILES[version])
        labels = np.array([row.label for row in mnli.rows(tsvs / DEV_FILES[version])])
        logits = np.eye(len(LABELS), dtype="<f4")[labels]
        logits[3] = np.roll(logits[3], 1)
        for size in sizes:
            (folder / f"deberta_bs{size}.om").write_bytes(b"IMOD a stand-in")
            for name in INPUTS:
                place = folder / f"pre_mnli_bs{size}" / version / name
                place.mkdir(parents=True)
                for index in range(contract.batch_count(len(labels), size)):
                    (place / contract.input_file(index)).write_bytes(bytes(contract.input_bytes(size)))
            outputs = f"result/outputs_bs{size}_om/{version}/{RUN}"
            report_helpers.write_outputs(folder / outputs, logits, size)
            text = f"result/eval_bs{size}_{version}.txt"
            report_helpers.evaluate(folder, outputs, f"MNLI/{DEV_FILES[version]}", text, size, version)
            (folder / text).with_suffix(".json").unlink()
            report_helpers.write_timing_log(folder / f"msame_bs{size}_{version}.txt", 1000.0 * size / 4)
            perf = folder / f"result/perf_bs{size}_om/{version}/{RUN}"
            perf.mkdir(parents=True)
            (perf / f"deberta_bs{size}_output_0.bin").write_bytes(bytes(contract.output_bytes(size)))
    return folder
