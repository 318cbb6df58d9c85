"""Stand-in for msame, Ascend/tools at 9d6da90: runs what atc's stand-in packed, on the CPU.

Everything it prints, writes and returns was observed on the unmodified tool (compiled against a stand-in of the NPU's
runtime), the misleading exit codes above all: "observed" in a comment refers to that. Own choices: a sub-directory
among the inputs counts as a file that cannot be opened; there are 8 devices.

onnxruntime comes from this interpreter, or, where it has none, from the one that FAKE_MSAME_PYTHON names.

FAKE_MSAME forces what no input can bring about; several words with commas between them:
  crash=N           dies of SIGSEGV after N inferences, without what it had not yet flushed
  hang=N            sleeps after N inferences until it is killed
  fail=N            the runtime refuses inference N (from 0)
  slow=SECONDS      each inference takes so much longer
  second-folder     another run's folder, with an output of its own, lies beside the one that is printed
  truncated-output  the last output file has half its bytes (writing is not checked by the tool)
  missing-output    the last output file is not written
  extra-output      one more file in the folder
  error-line        an [ERROR] line in a run that is fine otherwise
  old-success       the success line of builds before November 2022, without a pid
  stops-at-failure  any failed inference ends a directory run with exit code 1, as in March 2022
  scientific        times that C++ prints as 1.23457e+06
  count=FOLDER      is counted there among the runners of its device, see overlaps.py
  digests           runs no model: of each row the output is the digest of its tokens, at 256 a row
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import sys
import time
from datetime import datetime
from typing import Dict, List, Optional, Sequence, Tuple

from . import msame_model, overlaps
from .msame_options import DEVICES, Options, StopError, UsageError, check_acl_json, parse, prepare_acl_json

_STARTED_AGAIN = "FAKE_MSAME_STARTED_AGAIN"


class FailedError(Exception):
    """A step returned FAILED: exit code 1 after everything was destroyed."""


def main(argv: Sequence[str]) -> int:
    if "digests" not in words(os.environ.get("FAKE_MSAME", "")) and importlib.util.find_spec("onnxruntime") is None:
        return _start_again(argv)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # dies of Ctrl-C as a C++ program does
    return run(argv, os.environ.get("FAKE_MSAME", ""))


def _start_again(argv: Sequence[str]) -> int:
    other = os.environ.get("FAKE_MSAME_PYTHON")
    if not other or _STARTED_AGAIN in os.environ:
        print(f"msame stand-in: {other or sys.executable} has no onnxruntime. Set FAKE_MSAME_PYTHON", file=sys.stderr)
        return 127
    os.environ[_STARTED_AGAIN] = "1"
    os.execv(other, [other, os.path.join(os.path.dirname(os.path.realpath(__file__)), "msame"), *argv])


def run(argv: Sequence[str], forced_words: str = "") -> int:
    """The tool's main; returns the exit code."""
    forced = words(forced_words)
    unknown = set(forced) - set(re.findall(r"^  ([a-z-]+)", __doc__ or "", re.MULTILINE))
    if unknown:
        print(f"msame stand-in: FAKE_MSAME has no {sorted(unknown)}", file=sys.stderr)
        return 2
    try:
        options = parse(argv)
        prepare_acl_json(options)
    except StopError:
        return 0  # observed: a refused option ends with exit code 0
    except UsageError:
        return 1
    if folder := forced.get("count"):
        overlaps.begin(folder, options.device, alone=bool(options.inputs) and ".bin" in options.inputs[0])
    code = 1
    try:
        _open(options)
        _process(options, forced)
        pid = "" if "old-success" in forced or "stops-at-failure" in forced else f"pid: {os.getpid()} "
        info(f"{pid}Execute sample success")
        code = 0
    except StopError:
        sys.stdout.flush()
        return 0  # observed: these end at once, without the four lines below
    except FailedError as failed:
        error(str(failed))
    info("end to destroy stream")
    info("end to destroy context")
    info(f"end to reset device is {options.device}")
    info("end to finalize acl")
    sys.stdout.flush()
    return code


def words(text: str) -> Dict[str, str]:
    """`a,b=c` -> {a: '', b: c}."""
    pairs = (word.partition("=") for word in filter(None, text.split(",")))
    return {name.strip(): value for name, _, value in pairs}


def info(text: str) -> None:
    print(f"[INFO] {text}")


def error(text: str) -> None:
    print(f"[ERROR] {text}")


def _open(options: Options) -> None:
    if not check_acl_json():
        error("acl init failed")
        raise FailedError("Sample init resource failed")
    info("acl init success")
    if options.device >= DEVICES:
        error(f"acl open device {options.device} failed")
        raise FailedError("Sample init resource failed")
    info(f"open device {options.device} success")
    for what in ("create context", "create stream", "get run mode"):
        info(f"{what} success")


def _process(options: Options, forced: Dict[str, str]) -> None:
    try:
        model = msame_model.Digests() if "digests" in forced else msame_model.load(options.model)
    except msame_model.LoadError as unreadable:
        print(unreadable)
        error(f"load model from file failed, model file is {options.model}")
        error("load model from file failed")
        print("[WARN] no model had been loaded, unload failed")
        raise FailedError("Sample process failed") from unreadable
    info(f"load model {options.model} success")
    session = Session(model, options, forced)
    try:
        info("create model description success")
        info("get input dynamic gear count success")
        session.choose_gear()
        info("create model output success")
        session.make_folder()
        if options.inputs and ".bin" not in options.inputs[0]:
            session.directories()
        else:
            session.files()
        session.leave()
    except FailedError:
        info("unload model success, model Id is 1")
        if session.dataset:
            info("destroy model input success")
        raise
    info("unload model success, model Id is 1")


class Session:
    """One run. `dataset`: the input buffers; those of an inference that failed stay in it, as observed."""

    def __init__(self, model: msame_model.Model, options: Options, forced: Dict[str, str]) -> None:
        self.model = model
        self.options = options
        self.forced = forced
        self.dataset: List[bytes] = []
        self.times: List[float] = []
        self.first = 0.0  # of the first input; stays 0 if that one failed
        self.folder = ""
        self.written: List[str] = []

    def choose_gear(self) -> None:
        gears = self.model.packed.gears
        dims = self.options.dynamic.get("dymDims")
        for name, what in (("dymBatch", "batch size"), ("dymHW", "image size"), ("dymShape", "shape")):
            if name in self.options.dynamic:
                error(f"the dynamic_{what.replace(' ', '_')} parameter is not specified for model conversion")
                error(f"check dynamic {what} failed")
                raise FailedError("Sample process failed")
        if dims is None:
            if gears:
                error("model has dynamic_dims, please add dymDims parameter")
                raise FailedError("Sample process failed")
            return
        if not gears:
            error("the dynamic_dims parameter is not specified for model conversion")
            raise FailedError("Sample process failed")
        numbers = [part.partition(":")[2] for part in dims.split(";")]  # the names are not looked at
        gear = tuple(int(size) if size.isdigit() else 0 for part in numbers for size in part.split(","))
        if gear not in gears:
            error("the dymDims parameter is not correct")
            error("check dynamic dims failed, please set correct dymDims paramenter")
            raise FailedError("Sample process failed")
        self.model.gear = gear
        info("prepare dynamic dims successful")

    def make_folder(self) -> None:
        """OUT/<T>: each of the two is made if its parent is there, and nothing is said if not."""
        self.folder = f"{self.options.output}/{time_name(datetime.now())}"
        if "second-folder" in self.forced:
            _make(self.options.output)
            other = f"{self.options.output}/2022115_9_3_7_52113"
            _make(other)
            with open(f"{other}/input_0_output_0.bin", "wb") as file:
                file.write(bytes(48))
        _make(self.options.output)
        print(self.folder, flush=True)
        _make(self.folder)
        if not os.path.isdir(self.folder):
            error("current user does not have permission")
            raise StopError

    def directories(self) -> None:
        """Directory mode: the files of the first directory, in plain string order."""
        inputs = self.options.inputs
        for element in inputs:
            if not os.path.exists(element):
                error(f"{inputs[0]} doesn't exist")  # observed: the first is named even if another is missing
                raise StopError
            if os.path.isfile(element):
                error("input parameter must be folder or file ending in '.bin'")
                raise StopError
        names = sorted((name for name in os.listdir(inputs[0]) if not name.startswith(".")), key=os.fsencode)
        if not names:
            print(f"[ERROR] No file in the directory[{inputs[0]}]", end="")
        for index, name in enumerate(names):
            for number, element in enumerate(inputs):
                self._read(f"{element}/{name}", number)
            outputs, milliseconds = self._execute()
            if outputs is None:
                error("model execute failed")
                if index == 1 or "stops-at-failure" in self.forced:  # observed: only the second file's failure counts
                    raise FailedError("Sample process failed")
                continue
            self._time(milliseconds)
            self.first = self.times[0] if index == 0 else self.first
            dot = name.rfind(".")
            if dot < 0:
                _abort(name)
            self._write(name[:dot], outputs)
            self.dataset.clear()
            info("destroy model input success")
        self._averages("Inference average time : ", 2)

    def files(self) -> None:
        """File mode: --loop inferences, then the outputs once; without --input, of zeros."""
        if self.options.inputs:
            for index, element in enumerate(self.options.inputs):
                self._read(element, index)
        else:
            self.dataset = self.model.zeros()
        outputs: List[object] = []
        for loop in range(self.options.loop):
            found, milliseconds = self._execute()
            self._time(milliseconds)  # observed: printed even for an inference that failed
            self.first = self.times[0] if loop == 0 else self.first
            if found is None:
                error("model execute failed")
                raise FailedError("Sample process failed")
            outputs = found
        name = self.options.model.rpartition("/")[2]
        self._write(name[: name.rfind(".")], outputs)
        self._averages("Inference average time: ", 6)
        self.dataset.clear()
        info("destroy model input success")

    def leave(self) -> None:
        if "extra-output" in self.forced:
            with open(f"{self.folder}/profiler", "wb"):
                pass
        if self.written and "missing-output" in self.forced:
            os.remove(self.written[-1])
        elif self.written and "truncated-output" in self.forced:
            os.truncate(self.written[-1], os.path.getsize(self.written[-1]) // 2)
        if "error-line" in self.forced:
            error("aclrtFree failed")
        if self.options.removes_acl_json:
            os.remove("acl.json")
            info("delete acl.json success")

    def _read(self, path: str, index: int) -> None:
        info(f"start to process file:{path}")
        try:
            with open(path, "rb") as file:
                content = file.read()
        except OSError:
            error(f"open file {path} failed")
            content = b""
        else:
            if not content:
                error(f"binfile is empty, filename is {path}")
        if not content:
            error(f"get pic device buffer failed,index is {index}")
            raise FailedError("Sample process failed")
        self.dataset.append(content)

    def _execute(self) -> Tuple[Optional[List[object]], float]:
        """Outputs, or None for a failure, and the milliseconds it took."""
        self._end_early("crash")
        self._end_early("hang")
        started = time.perf_counter()
        time.sleep(float(self.forced.get("slow") or 0))
        try:
            if self.forced.get("fail") == str(len(self.times)):
                raise msame_model.ExecuteError("forced")
            outputs = self.model.execute(self.dataset)
        except msame_model.ExecuteError as refused:
            print(f"EH9999: Inner Error!\nEH9999  {refused}")
            error("execute model failed, modelId is 1")
            return None, (time.perf_counter() - started) * 1000
        info("model execute success")
        return outputs, (time.perf_counter() - started) * 1000

    def _end_early(self, word: str) -> None:
        if self.forced.get(word) != str(len(self.times)):
            return
        if word == "crash":
            _no_core_file()
            os.kill(os.getpid(), signal.SIGSEGV)
        while True:
            time.sleep(1)

    def _time(self, milliseconds: float) -> None:
        if "scientific" in self.forced:
            milliseconds += 1234567
        self.times.append(milliseconds)
        print(f"Inference time: {milliseconds:g}ms", flush=True)

    def _write(self, stem: str, outputs: Sequence[object]) -> None:
        for index, values in enumerate(outputs):
            path = f"{self.folder}/{stem}_output_{index}.{'txt' if self.options.text else 'bin'}"
            content = (
                msame_model.text(values).encode()
                if self.options.text
                else msame_model.content(self.model, index, values)
            )
            try:
                with open(path, "wb") as file:
                    file.write(content)
                self.written.append(path)
            except OSError:
                pass  # the tool does not look
        info("get max dynamic batch size success")
        info("output data success")

    def _averages(self, start: str, digits: int) -> None:
        average = f"{sum(self.times) / len(self.times):.{digits}f}" if self.times else "-nan"
        print(f"{start}{average} ms")
        if len(self.times) > 1:
            rest = (sum(self.times) - self.first) / (len(self.times) - 1)
            print(f"Inference average time without first time: {rest:.{digits}f} ms")


def time_name(now: datetime) -> str:
    """<T>: local time without leading zeros."""
    return f"{now.year}{now.month}{now.day}_{now.hour}_{now.minute}_{now.second}_{now.microsecond}"


def _make(folder: str) -> None:
    with contextlib.suppress(OSError):  # the tool looks at the result only
        os.mkdir(folder, 0o775)


def _abort(name: str) -> None:
    """Observed: an exception that nobody catches, exit code 134 in a shell; what was not flushed is lost."""
    print("terminate called after throwing an instance of 'std::out_of_range'", file=sys.stderr)
    print(
        f"  what():  basic_string::erase: __pos (which is {2**64 - 1}) > this->size() (which is {len(name)})",
        file=sys.stderr,
    )
    sys.stderr.flush()
    _no_core_file()
    os.abort()


def _no_core_file() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
