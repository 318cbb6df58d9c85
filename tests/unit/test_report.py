from __future__ import annotations

import platform
from dataclasses import replace

from deberta.host import report
from deberta.host.report import Evaluated, Measured, Performance
from tests.unit.test_steps import _plan

COUNTS = {
    **{"accuracy": 8879 / 9815, "correct": 8879, "rows": 9815},
    "genres": {"fiction": {"accuracy": 0.5, "correct": 1, "rows": 2}},
}
EVALUATION = Evaluated(COUNTS, "")
PERFORMANCE = Performance("match", 4.75, 1684.2, {"p50": 1680.0, "p90": 1700.0, "p99": 1750.5}, 100, "")
ENGINES = ("openvino 1, f32, 2 threads",)


def test_published_stands_beside_measured_and_each_cell_says_its_backend() -> None:
    plan = _plan()
    text = report.render(plan, [Measured(8, {"match": EVALUATION}, (PERFORMANCE,), ENGINES), Measured(64, {}, (), ())])
    rows = [line for line in text.splitlines() if line.startswith("| Deberta")]
    assert rows == [
        "| Deberta bs8 | M=90.5/MM=90.5 | M=90.46/MM=90.71 | M=90.46 (8879/9815) on cpu "
        "| 2.821 | 4.639 | 4.750 on cpu |",
        "| Deberta bs64 | M=90.5/MM=90.5 | M=90.46/MM=90.71 | - | 3.065 | 5.027 | - |",
    ]
    assert "90.6/MM=90.7" in text and f"({platform.machine()}; openvino 1, f32, 2 threads). No Ascend device" in text
    assert "| 8 | match | fiction | 1/2 | 0.5000 |" in text
    assert "| 8 | match | 100 | 4.750 | 1684.2 | 1680.000 | 1700.000 | 1750.500 |" in text


def test_another_model_gets_no_published_figures() -> None:
    text = report.render(_plan(published=False), [Measured(8, {"match": EVALUATION}, (), ())])
    assert "| Deberta bs8 | - | - | M=90.46 (8879/9815) on cpu | - | - | - |" in text
    assert "4.639" not in text


def test_a_figure_of_other_outputs_or_another_model_does_not_name_the_backend() -> None:
    brought = Evaluated(COUNTS, "outputs brought: results/from_a_310p")
    old = replace(PERFORMANCE, origin="outdated: another model")
    text = report.render(_plan(), [Measured(8, {"match": brought}, (old,), ())])
    assert "M=90.46 (8879/9815) (outputs brought: results/from_a_310p) |" in text
    assert "4.750 (outdated: another model) |" in text and "on cpu" not in text
