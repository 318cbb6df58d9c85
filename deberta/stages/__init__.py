"""What runs inside a stage. May import torch, onnx, transformers and numpy; never docker or invoke."""

import sys

# OpenVINO reports each import of it to its makers, unless this package cannot be imported.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
