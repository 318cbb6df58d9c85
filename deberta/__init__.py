"""DeBERTa NLI on Ascend: from a PyTorch checkpoint to a measured deployment."""

__version__ = "0.1.0"
