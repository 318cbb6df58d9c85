"""From a DeBERTa checkpoint in PyTorch to a measured Ascend deployment."""

from pathlib import Path

__version__ = "0.1.0"
PROJECT = Path(__file__).resolve().parents[1]  # the folder that holds this package, tasks.py and invoke.yaml
