"""Stand-in for atc, ATC of CANN 5.1.RC2: same flags, checks, texts on stdout, exit codes and side effects.

It writes `<output>.om` (the format is om.py's), kernel_meta/ and check_result.json into the working directory,
and ascend/log and atc_data into $HOME, as the real one does.

FAKE_ATC forces what no input can bring about; several words with commas between them:
  exit0-without-success  the .om is written and the exit code 0, but there is no success line
  success-without-om     the success line and exit code 0, but no .om (an old one is removed)
  empty-om               the same with an .om of 0 bytes
  old-om                 the same with an .om that is older than the run; an old one stays as it is
  failed-exit0           `ATC run failed` with exit code 0; an old .om stays
  success-exit255        the success line and a whole .om, but exit code 255
  hang                   leaves half an .om and sleeps until it is killed
  killed                 leaves half an .om and is killed (SIGKILL)
  code=E40001            fails with this error code, any of atc_codes.TEXTS, and exit code 255
  warnings               W11001 after the success line for every Gather, GatherElements, Where and Expand
  new-format             codes are followed by `[PID: n] time`, as in CANN 8
  needs-hal              fails as the loader does unless libascend_hal.so is in a folder of LD_LIBRARY_PATH
  slow=SECONDS           takes so long

Own choice: with VIRTUAL_ENV set it fails with E40001, because the real one needs the Python modules of CANN's own
Python, which a project's virtual environment does not have. An unknown flag: message on stderr, exit code 1.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from datetime import datetime
from typing import Dict, List, Mapping, Sequence

from . import om
from .atc_checks import UnknownFlagError, check_options, fix_shapes, parse, read_model
from .atc_codes import FAILED, FAILURE, STARTING, SUCCESS, TEXTS, AtcError, failure, warning

SLOW_OPERATORS = ("Gather", "GatherElements", "Where", "Expand")
HELP = "usage: atc <args>\natc --model=./m.onnx --framework=5 --output=./m --soc_version=<soc>"


def main(argv: Sequence[str]) -> int:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # dies of Ctrl-C as a C++ program does
    forced = words(os.environ.get("FAKE_ATC", ""))
    unknown = set(forced) - set(re.findall(r"^  ([a-z0-9-]+)", __doc__ or "", re.MULTILINE)) - {"code", "slow"}
    if unknown:
        print(f"atc stand-in: FAKE_ATC has no {sorted(unknown)}", file=sys.stderr)
        return 2
    if "needs-hal" in forced and not _hal():
        missing = "libascend_hal.so: cannot open shared object file: No such file or directory"
        print(f"atc.bin: error while loading shared libraries: {missing}", file=sys.stderr)
        return 127
    if argv and argv[0] in ("--help", "-h"):
        print(HELP)
        return 0
    try:
        options = parse(argv)
    except UnknownFlagError as error:
        print(f"ERROR: unknown command line flag '{error}'", file=sys.stderr)
        return 1
    say(STARTING)
    try:
        write_logs(os.environ)
        warnings = convert(options, forced)
    except AtcError as error:
        for line in failure(error):
            say(_newer(line) if "new-format" in forced else line)
        return FAILURE
    if "failed-exit0" in forced:
        say(FAILED, f"E19999: {TEXTS['E19999']}")
        return 0
    if "exit0-without-success" not in forced:
        say(SUCCESS, *warnings)
    return FAILURE if "success-exit255" in forced else 0


def words(text: str) -> Dict[str, str]:
    """`a,b=c` -> {a: '', b: c}."""
    pairs = (word.partition("=") for word in filter(None, text.split(",")))
    return {name.strip(): value for name, _, value in pairs}


def say(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)


def convert(options: Mapping[str, str], forced: Mapping[str, str]) -> List[str]:
    """Check everything, write the .om and return the warnings."""
    check_options(options)
    content, model = read_model(options["model"])
    inputs, gears = fix_shapes(options, model)
    _pollute(options)
    if os.environ.get("VIRTUAL_ENV"):
        raise AtcError("E40001", "Failed to import Python module [ModuleNotFoundError: No module named 'te'].")
    if "code" in forced:
        raise AtcError(forced["code"])
    time.sleep(float(forced.get("slow") or 0))
    output_type = options.get("output_type", "FP32").rpartition(":")[2]
    compiled = om.Om(inputs, content, tuple(gears), output_type, options["soc_version"])
    _write(options["output"] + ".om", om.pack(compiled), forced)
    slow = [node.name or node.op for node in model.nodes if node.op in SLOW_OPERATORS]
    return [warning(name) for name in slow] if "warnings" in forced else []


def _write(path: str, content: bytes, forced: Mapping[str, str]) -> None:
    if "success-without-om" in forced and os.path.exists(path):
        os.remove(path)
    if "success-without-om" in forced or "failed-exit0" in forced or ("old-om" in forced and os.path.exists(path)):
        return
    half = "hang" in forced or "killed" in forced
    try:
        with open(path, "wb") as file:
            file.write(b"" if "empty-om" in forced else content[: len(content) // 2] if half else content)
    except OSError as error:
        raise AtcError("E19999", f"write [{path}] failed, errmsg[{error.strerror}]") from error
    if "old-om" in forced:
        os.utime(path, (time.time() - 3600, time.time() - 3600))
    if "killed" in forced:
        os.kill(os.getpid(), signal.SIGKILL)
    while "hang" in forced:
        time.sleep(1)


def _pollute(options: Mapping[str, str]) -> None:
    """The working directory's leavings. Own choice: E90000 where they cannot be written."""
    try:
        os.makedirs(os.path.join(options.get("debug_dir") or ".", "kernel_meta"), exist_ok=True)
        with open(options.get("check_report") or "check_result.json", "w", encoding="utf-8") as file:
            file.write("{}\n")
    except OSError as error:
        raise AtcError("E90000", f"Compile operator failed, cause: {error.filename}: {error.strerror}.") from error


def write_logs(environment: Mapping[str, str]) -> None:
    """$HOME/ascend/log and $HOME/atc_data; where that cannot be written, the run goes on without."""
    home = environment.get("HOME") or "/"
    logs = os.path.join(environment.get("ASCEND_PROCESS_LOG_PATH") or f"{home}/ascend/log", "debug", "plog")
    now = datetime.now().strftime("%Y%m%d%H%M%S%f")[:17]
    try:
        os.makedirs(logs, exist_ok=True)
        os.makedirs(os.path.join(home, "atc_data", "kernel_cache"), exist_ok=True)
        with open(os.path.join(logs, f"plog-{os.getpid()}_{now}.log"), "w", encoding="utf-8") as file:
            file.write(f"[INFO] GE({os.getpid()},atc.bin):{now}\n")
    except OSError as error:
        print(f"[ERROR] can not create log directory {error.filename}", file=sys.stderr)


def _hal() -> bool:
    folders = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    return any(os.path.isfile(os.path.join(folder, "libascend_hal.so")) for folder in folders if folder)


def _newer(line: str) -> str:
    match = re.fullmatch(r"(E[0-9A-Z]\d{4}): (.*)", line)
    if match is None:
        return line
    return f"{match[1]}: [PID: {os.getpid()}] {datetime.now().strftime('%Y-%m-%d-%H:%M:%S.%f')} {match[2]}"
