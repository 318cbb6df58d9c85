"""What `auto` means: which backend and executor a command uses, always said aloud."""

from __future__ import annotations

from deberta.contract import BACKENDS, EXECUTORS
from deberta.errors import ConfigError


def backend(asked: str) -> str:
    """The backend to use; says what `auto` picked. Raises ConfigError."""
    if asked not in (*BACKENDS, "auto"):
        raise ConfigError(f"--backend {asked!r} is not one of: auto, {', '.join(BACKENDS)}")
    if asked == "ascend":
        raise ConfigError("the ascend backend is not part of this version. Use: --backend cpu")
    if asked == "auto":
        print("backend: cpu (auto; this version has no ascend backend, so no .om is made)")
    return "cpu"


def executor(asked: str) -> str:
    """The executor to use; says what `auto` picked. Raises ConfigError."""
    if asked not in (*EXECUTORS, "auto"):
        raise ConfigError(f"--executor {asked!r} is not one of: auto, {', '.join(EXECUTORS)}")
    if asked == "docker":
        raise ConfigError("the docker executor is not part of this version. Use: --executor local")
    if asked == "auto":
        print("executor: local (auto; this version has no docker executor)")
    return "local"
