"""What runs inside a stage. May import torch, onnx, transformers and numpy; never docker or invoke."""
