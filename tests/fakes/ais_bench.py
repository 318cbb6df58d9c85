"""Stand-in for `python3 -m ais_bench`, Ascend/tools at 9d6da90: runs what atc's stand-in packed, on the CPU.

Flags, names, checks, lines and errors are those of the public source; the tool itself was not run. Own choices: there
are 8 devices; a list of devices is refused as a bad one; .npy files are read as .bin; options that profile, dump, set
shapes at run time or write .npy end with 99.

onnxruntime comes from this interpreter, or, where it has none, from the one that FAKE_MSAME_PYTHON names.

FAKE_AIS_BENCH forces what no input can bring about; several words with commas between them:
  crash=N           dies of SIGSEGV after N inferences (the warm-up's never count)
  hang=N            sleeps after N inferences until it is killed
  fail=N            the runtime refuses inference N (from 0)
  slow=SECONDS      each inference takes so much longer
  second-folder     another run's folder and summary lie beside this one's
  truncated-output  the last output file has half its bytes
  missing-output    the last output file is not there
  extra-output      one more file in the folder
  no-summary        no summary is written, and the exit code is 0
  half-summary      the summary is cut off, and the exit code is 0
  times=N           the summary lists N times more than there were inferences, or fewer
  error-line        an [ERROR] line in a run that is fine otherwise, with exit code 0
  exit=N            exit code N after everything was done
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import re
import signal
import statistics
import struct
import sys
import time
from typing import Any, Dict, List, Sequence

from . import ais_bench_options, msame_model
from .msame import words

DEVICES = 8
PADDING = "padding"  # stands for a file that a last, incomplete batch lacks
_STARTED_AGAIN = "FAKE_AIS_BENCH_STARTED_AGAIN"
_ITEM = {"bool": 1, "int8": 1, "uint8": 1, "float16": 2, "int64": 8, "float64": 8}


def main(argv: Sequence[str]) -> int:
    """Mistakes raise, as in the tool: Python prints the traceback and exits with 1, argparse with 2."""
    if importlib.util.find_spec("onnxruntime") is None:
        return _start_again(argv)
    options = ais_bench_options.parse(argv)
    forced = words(os.environ.get("FAKE_AIS_BENCH", ""))
    unknown = set(forced) - set(re.findall(r"^  ([a-z-]+)", __doc__ or "", re.MULTILINE))
    others = ais_bench_options.not_played(options)
    if unknown or others:
        print(f"ais_bench stand-in: {sorted(unknown) or others} is not played", file=sys.stderr)
        return 99
    Session(options, forced).run(argv)
    sys.stdout.flush()
    return int(forced.get("exit") or 0)


def _start_again(argv: Sequence[str]) -> int:
    other = os.environ.get("FAKE_MSAME_PYTHON")
    if not other or _STARTED_AGAIN in os.environ:
        print(f"ais_bench stand-in: {sys.executable} has no onnxruntime. Set FAKE_MSAME_PYTHON", file=sys.stderr)
        return 127
    os.environ[_STARTED_AGAIN] = "1"
    os.execv(other, [other, os.path.join(os.path.dirname(os.path.realpath(__file__)), "ais_bench"), *argv])


def _info(text: str) -> None:
    print(f"[INFO] {text}")


def _error(text: str) -> None:
    print(f"[ERROR] {text}", flush=True)


class Session:
    """One run. `times`: of the inferences that count, in ms, in the 32 bits that the tool's have."""

    def __init__(self, options: argparse.Namespace, forced: Dict[str, str]) -> None:
        self.options = options
        self.forced = forced
        self.times: List[float] = []
        self.files: Dict[str, Dict[str, List[str]]] = {}
        self.model = self._open()
        self.folder = ""

    def run(self, argv: Sequence[str]) -> None:
        options = self.options
        self._choose_gear()
        batch_size = options.batchsize
        if batch_size is None:
            batch_size = self.model.shapes()[0][0]
            _info(f"try get model batchsize:{batch_size}")
        if options.output is not None:
            self.folder = os.path.join(options.output, options.output_dirname or time.strftime("%Y_%m_%d-%H_%M_%S"))
            os.makedirs(self.folder, 0o755, exist_ok=True)
            _info(f"output path:{self.folder}")
        batches = self._batches()
        if options.warmup_count:
            warming = [self._content(files, index) for index, files in enumerate(batches[0])]
            for _ in range(options.warmup_count):
                self._execute(warming, counts=False)
        _info(f"warm up {options.warmup_count} done")
        for number, batch in enumerate(batches):
            print(f"\rInference {options.run_mode} Processing: {number}/{len(batches)}", end="", flush=True)
            self._save(number, batch, self._loops([self._content(files, i) for i, files in enumerate(batch)]))
        print(f"\rInference {options.run_mode} Processing: {len(batches)}/{len(batches)}")
        self._summary(argv, batch_size)
        self._spoil()
        _info("unload model success, model Id is 1")
        _info("end to destroy context")
        _info(f"end to reset device is {options.device}")
        _info("end to finalize acl")

    def _open(self) -> msame_model.Model:
        _info("acl init success")
        if self.options.device >= DEVICES:
            _error(f"acl open device {self.options.device} failed")
            print("SetDevice failed.ret=507033")
            raise RuntimeError("[507033][Error code unknown] ")
        _info(f"open device {self.options.device} success")
        try:
            model = msame_model.load(self.options.model)
        except msame_model.LoadError as unreadable:
            print(unreadable)
            _error(f"load model from file failed, model file is {self.options.model}")
            raise RuntimeError("[1][ACL: invalid parameter] ") from None
        _info(f"load model {self.options.model} success")
        _info("create model description success")
        return model

    def _choose_gear(self) -> None:
        """Only a run without --dymDims of a model that has gears gets as far as an inference."""
        if self.options.dymDims is None:
            return
        numbers = [part.partition(":")[2] for part in self.options.dymDims.split(";")]
        gear = tuple(int(size) for part in numbers for size in part.split(","))
        if not self.model.packed.gears:
            print("the dynamic_dims parameter is not specified for model conversion", end="")
            raise RuntimeError("[-1][ACL: general failure] ")
        if gear not in self.model.packed.gears:
            _error("the dynamic_dims parameter is not correct")
            _error("check dynamic dims failed, please set correct dymDims paramenter")
            raise RuntimeError("[-1][ACL: general failure] ")
        self.model.gear = gear

    def _size(self, index: int) -> int:
        return math.prod(self.model.shapes()[index]) * _ITEM.get(self.model.packed.inputs[index].dtype, 4)

    def _batches(self) -> List[List[List[str]]]:
        """For each batch and input the files that make it up; [""] stands for made-up data."""
        count = len(self.model.packed.inputs)
        if self.options.input is None:
            return [[[""] for _ in range(count)]]
        given = self.options.input.split(",")
        if os.path.isfile(given[0]):
            for index, path in enumerate(given):
                if not os.path.isfile(path):
                    _error(f"Invalid input args.--input:{given} input[{index}]:{path} {path} not exist")
                    raise RuntimeError
            lists = _chunks(given, len(given) // count)
        elif os.path.isdir(given[0]):
            if len(given) != count:
                _error(f"Invalid args. args input dir num:{len(given)} not equal to model inputs num:{count}")
                raise RuntimeError
            for path in given:
                if not os.path.isdir(path):
                    _error(f"Invalid args. {path} of input args is not a real dir path")
                    raise RuntimeError
            lists = [_listed(path) for path in given]
        else:
            _error(f"Invalid args. {given[0]}  of --input is invalid")
            raise RuntimeError
        if len(lists) != count:
            _error(f"fileslist:{len(lists)} intensor:{count} not match")
            raise RuntimeError
        size, tensor = os.path.getsize(lists[0][0]), self._size(0)
        if size == 0 or tensor % size:
            _error(f"arg0 tensorsize: {tensor} filesize: {size} not match")
            raise RuntimeError
        together = tensor // size  # small files make up a batch
        runs = math.ceil(len(lists[0]) / together)
        _info(f"get filesperbatch files0 size:{size} tensor0size:{tensor} filesperbatch:{together} runcount:{runs}")
        split = [_chunks(files, together) for files in lists]
        return [[chunks[run] for chunks in split] for run in range(runs)]  # IndexError for an input with fewer files

    def _content(self, files: Sequence[str], index: int) -> bytes:
        size = self._size(index)
        if files[0] == "":
            return os.urandom(size) if self.options.pure_data_type == "random" else bytes(size)
        parts = []
        for path in files:
            with open(files[0] if path == PADDING else path, "rb") as file:
                parts.append(file.read())
        content = b"".join(parts)
        if len(files) > 1 and len(content) != size:
            _error(f"ndata size:{len(content)} not match {size}")
            raise RuntimeError
        return content

    def _loops(self, inputs: Sequence[bytes]) -> List[Any]:
        outputs: List[Any] = []
        loop = self.options.loop
        print("\n" if loop > 1 else "", end="")
        for index in range(loop):
            outputs = self._execute(inputs)
            if loop > 1:
                print(f"\rloop inference exec: ({index + 1}/{loop})", end="", flush=True)
        print("\n" if loop > 1 else "", end="")
        return outputs

    def _execute(self, inputs: Sequence[bytes], counts: bool = True) -> List[Any]:
        for index, content in enumerate(inputs):
            if len(content) != self._size(index):
                name, need = self.model.packed.inputs[index].name, self._size(index)
                _error(f"Check i:{index} name:{name} in size:{len(content)} needsize:{need} not match")
                self._refuse("Check InVector failed ret:-1")
        if self.model.packed.gears and self.model.gear is None:
            print(f"[WARN] check failed dym gearcount:{len(self.model.packed.gears)} but dymtype:0 not set")
            self._refuse("Set InputsData failed ret:-1")
        if counts:
            self._end_early()
        started = time.perf_counter()
        time.sleep(float(self.forced.get("slow") or 0))
        try:
            if counts and self.forced.get("fail") == str(len(self.times)):
                raise msame_model.ExecuteError("forced")
            outputs = self.model.execute(inputs)
        except msame_model.ExecuteError as refused:
            print(f"EH9999: Inner Error!\nEH9999  {refused}")
            _error("execute model failed, modelId is 1")
            _error("acl execute failed:1")
            self._refuse("Execute Infer failed ret:-1")
        milliseconds = max(1, round((time.perf_counter() - started) * 1e6)) / 1000  # gettimeofday's microseconds
        if counts:
            self.times.append(struct.unpack("f", struct.pack("f", milliseconds))[0])
        return outputs

    def _refuse(self, text: str) -> None:
        _error(text)
        raise RuntimeError("[-1][ACL: general failure] ")

    def _end_early(self) -> None:
        if self.forced.get("crash") == str(len(self.times)):
            import resource

            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.kill(os.getpid(), signal.SIGSEGV)
        while self.forced.get("hang") == str(len(self.times)):
            time.sleep(1)

    def _save(self, number: int, batch: Sequence[Sequence[str]], outputs: Sequence[Any]) -> None:
        """Each file that made up the batch gets its part of every output, named after the first input's file."""
        if not self.folder:
            return
        files = batch[0]
        for index, values in enumerate(outputs):
            if values.shape[0] % len(files):
                _error(f"save out files error array shape:{values.shape} files_count_perbatch:{len(files)}")
                raise RuntimeError
            rows = values.shape[0] // len(files)
            for part, path in enumerate(files):
                if path == PADDING:
                    continue
                stem = os.path.basename(path).split(".")[0] or "pure_infer_data"
                name = os.path.join(self.folder, f"{stem}_{index}.{self.options.outfmt.lower()}")
                sample = self.files.setdefault(
                    str(number * len(files) + part), {"infiles": [inputs[part] for inputs in batch], "outfiles": []}
                )
                sample["outfiles"].append(name)
                _write(name, values[part * rows : (part + 1) * rows])

    def _summary(self, argv: Sequence[str], batch_size: int) -> None:
        times = list(self.times)
        more = int(self.forced.get("times") or 0)
        times = times[:more] if more < 0 else times + times[:1] * more

        compute = _described(times)
        throughput = 1000 * batch_size / compute["mean"] if compute["mean"] else 0
        _info("-----------------Performance Summary------------------")
        listed = ", ".join(f"{name} = {value}" for name, value in compute.items() if name != "count")
        _info(f"NPU_compute_time (ms): {listed}")
        _info(f"throughput 1000*batchsize.mean({batch_size})/NPU_compute_time.mean({compute['mean']}): {throughput}")
        _info("------------------------------------------------------")
        if "error-line" in self.forced:
            _error("aclrtFree failed")
        content = json.dumps(
            {
                "filesinfo": self.files,
                "args": ["__main__.py", *argv],
                "NPU_compute_time": compute,
                "H2D_latency": _described([]),  # own choice: nothing is copied here
                "D2H_latency": _described([]),
                "throughput": throughput,
                "npu_compute_time_list": times,
                "pid": os.getpid(),
            }
        )
        if self.folder and "no-summary" not in self.forced:
            with open(f"{self.folder}_summary.json", "w", encoding="utf-8") as file:
                file.write(content[: len(content) // 2] if "half-summary" in self.forced else content)

    def _spoil(self) -> None:
        written = [name for sample in self.files.values() for name in sample["outfiles"]]
        if "missing-output" in self.forced:
            os.remove(written[-1])
        elif "truncated-output" in self.forced:
            os.truncate(written[-1], os.path.getsize(written[-1]) // 2)
        if "extra-output" in self.forced:
            _write(os.path.join(self.folder, "pure_infer_data_0.bin"))
        if "second-folder" in self.forced:
            other = os.path.join(self.options.output, "2022_12_17-07_37_18")
            os.makedirs(other)
            _write(os.path.join(other, "input_0_0.bin"))
            _write(f"{other}_summary.json")


def _chunks(files: Sequence[str], length: int) -> List[List[str]]:
    """ValueError for length 0, as the tool's own."""
    chunks = [list(files[start : start + length]) for start in range(0, len(files), length)]
    return [chunk + [PADDING] * (length - len(chunk)) for chunk in chunks]


def _listed(folder: str) -> List[str]:
    """Of any name, hidden ones too, in natural order: input_2 before input_10."""
    found = [
        os.path.join(folder, name) for name in os.listdir(folder) if name.endswith((".npy", ".NPY", ".bin", ".BIN"))
    ]
    if not found:
        _error(f"{folder} of input args not find valid file,valid file format:[*.npy *.NPY *.bin *.BIN]")
        raise RuntimeError
    return sorted(found, key=_natural_key)


def _natural_key(path: str) -> List[Any]:
    return [int(part) if part.isdigit() else part.lower() for part in re.split("([0-9]+)", path)]


def _described(times: Sequence[float]) -> Dict[str, float]:
    """All zero without any, as the tool's."""
    values = sorted(times) or [0.0]
    place = 0.99 * (len(values) - 1)
    low, high = values[math.floor(place)], values[math.ceil(place)]
    return {
        **{"min": values[0], "max": values[-1], "mean": statistics.fmean(values), "median": statistics.median(values)},
        **{"percentile(99%)": low + (high - low) * (place % 1), "count": len(times)},
    }


def _write(path: str, values: Any = None) -> None:
    """A file of an output; empty without one."""
    content = b"" if values is None else values.tobytes()
    if path.endswith(".txt"):
        rows = values.reshape(-1, values.shape[-1]).tolist()
        content = "".join("".join(f"{value:f} " for value in row) + "\n" for row in rows).encode()
    with open(path, "wb") as file:
        file.write(content)
