"""The guide's published figures of its model (Ascend 310P; its "baseline" is a T4), shown beside measured ones."""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "the guide's results table (Ascend ModelZoo, ACL_PyTorch/contrib/nlp/deberta)"


@dataclass(frozen=True)
class Published:
    """One row of the guide's table; accuracies in percent, throughput in samples per second."""

    batch_size: int
    baseline_fps: float
    ascend_fps: float
    official_match: float = 90.5
    official_mismatch: float = 90.5
    ascend_match: float = 90.46  # 8879 of 9815
    ascend_mismatch: float = 90.71  # 8919 of 9832


GUIDE = (
    Published(1, 2.849, 4.055),
    Published(4, 2.859, 4.692),
    Published(8, 2.821, 4.639),
    Published(16, 2.807, 4.681),
    Published(32, 2.935, 4.619),
    Published(64, 3.065, 5.027),
)
# microsoft/DeBERTa's own README gives other accuracies for V3-Base than the guide calls official.
NOTE = "microsoft/DeBERTa's README publishes M=90.6/MM=90.7 for DeBERTa-V3-Base; the guide's table says 90.5/90.5."
