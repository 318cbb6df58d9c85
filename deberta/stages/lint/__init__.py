"""An offline check of ONNX files against what ATC takes."""
