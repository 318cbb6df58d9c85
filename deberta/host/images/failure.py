"""Why a build failed, in one line: the line of the failing step that names the reason, else the engine's own error."""

from __future__ import annotations

import re
from typing import Any, Mapping, Sequence

from deberta.core.errors import one_line

# Sequences that turn colours on, move the cursor or set a title: ECMA-48's CSI and OSC, and those of two characters.
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
# As Docker's classic builder prints them, and Podman's, which counts the steps of each stage: [1/2] STEP 3/7: RUN x
_CODE = re.compile(r"(?:returned a non-zero code:|while running runtime: exit status) ([0-9]{1,9})")
STEP = re.compile(r"(?:\[[0-9]+/[0-9]+\] )?S(?:tep|TEP) ([0-9]+/[0-9]+) ?: (.*)", re.DOTALL)
_FULL = re.compile("no space left on device|disk quota exceeded", re.IGNORECASE)
_NO_REASON = re.compile(r"\[?(?:warning|warn|notice|note|hint)\b", re.IGNORECASE)
_LONGEST_COMMAND = 60  # characters of a step's command that are shown
KILLED = 137  # the exit code of a command that was killed: 128 and SIGKILL


def of_message(message: Mapping[str, Any]) -> str:
    """The error in a message of an engine's stream, empty if it has none; newer engines leave `error` out."""
    detail = message.get("errorDetail")
    return str((detail.get("message") if isinstance(detail, dict) else "") or message.get("error") or "")


def plain(line: str) -> str:
    """A line as a terminal would leave it: without escapes, and of what was written over itself the last."""
    return _ESCAPE.sub("", line).rstrip("\r\n").rpartition("\r")[2].strip()


def explain(step: str, printed: Sequence[str], failure: str) -> str:
    """The reason, with the step and its exit code; `printed` by it, `failure`: the engine's own error, perhaps empty.

    An error of the engine that is not about the step's exit code is the reason itself, whatever the step printed.
    """
    failure, lines = one_line(plain(failure)), [text for line in printed if (text := plain(line))]
    lines = [line for line in lines if one_line(line) != failure]
    code = _CODE.search(failure)
    reason = failure if failure and not code else _of_lines(lines) or failure
    full = next((line for line in (*lines, failure) if _FULL.search(line)), "")
    if full:
        reason = full
    reason = re.sub(r"^(?:error|E): ", "", one_line(reason), flags=re.IGNORECASE).rstrip(".")
    reason = reason or "the engine ended it without a message"
    if place := _place(step, code[1] if code and not _CODE.search(reason) else ""):
        reason += f" ({place})"
    if full:
        return (
            f"{reason}. The engine's disk is full: docker system df shows what fills it, docker system prune frees some"
        )
    if code and code[1] == str(KILLED):
        return f"{reason}. It was killed, most likely because memory ran out"
    return reason


def _of_lines(lines: Sequence[str]) -> str:
    """pip's last ERROR, apt's first E:, another last line that begins with an error, or names one, else the last."""
    if errors := [line for line in lines if line.startswith("ERROR: ")]:
        return errors[-1]
    if errors := [line for line in lines if line.startswith("E: ")]:
        return errors[0]  # the later ones are about its consequences
    if errors := [line for line in lines if line.lower().startswith(("error: ", "fatal: "))]:
        return errors[-1]
    telling = [line for line in lines if not _NO_REASON.match(line)] or list(lines)
    return next((line for line in reversed(telling) if "error" in line.lower()), telling[-1] if telling else "")


def _place(step: str, code: str) -> str:
    """As in: step 5/9, RUN ./install-packages, exit code 1."""
    parts = []
    if match := STEP.fullmatch(plain(step)):
        command = " ".join(match[2].split())
        short = command if len(command) <= _LONGEST_COMMAND else f"{command[:_LONGEST_COMMAND].rstrip()} ..."
        parts += [f"step {match[1]}", short]
    return ", ".join([*parts, *([f"exit code {code}"] if code else [])])
