"""PyTorch to ONNX, and ONNX to a model of the cpu backend."""
