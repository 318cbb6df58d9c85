"""What runs inside a stage. May import torch, onnx, transformers and numpy; never docker or invoke."""

import os
import sys

# OpenVINO and ONNX Runtime report their use to their makers as soon as they are imported, unless they are told not to:
# the one where this package cannot be imported, the other by this variable.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
