"""A cluster's processes with a stand-in for msame, run by the Python of .venv-cluster: see test_dask_pool.py.

scheduler ADDRESS PORT CERTIFICATES
worker SCHEDULER LISTEN CERTIFICATES DEVICE FOLDER
runner --model ... --input A/,B/ --output OUT         the stand-in: it hashes each pair of bins
infer SCHEDULER CERTIFICATES WORKSPACE BATCHES        an accuracy run; prints a line of JSON at its end
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from unittest import mock

from deberta.core import files
from deberta.core.contract import input_file, output_file
from deberta.core.errors import INTERRUPTED, DebertaError
from deberta.host.engine.transcript import Show
from deberta.host.plan.plan import Inference, Input, ModelRun, Step
from deberta.host.run import compiled, device_locks, local, source_digest
from deberta.host.run.console import Console
from deberta.host.run.executor import Provenance
from deberta.host.run.session import Session
from deberta.host.shards import work

MODEL, BINS = PurePosixPath("models/p/x.om"), (PurePosixPath("data/p/a"), PurePosixPath("data/p/b"))
BIN_BYTES, OUTPUT_BYTES = 2048, 24  # of two rows at 256 tokens


def content(index: int) -> list[bytes]:
    """What the two bins of a batch hold."""
    return [f"{folder} {index} ".encode().ljust(BIN_BYTES, b"x") for folder in BINS]


def output(bins: Sequence[bytes]) -> bytes:
    """What the stand-in writes for them."""
    return hashlib.sha256(b"".join(bins)).digest()[:OUTPUT_BYTES]


def step_of(batches: int) -> Step:
    run = ModelRun(PurePosixPath("results/p/out"), {output_file(i): 24 for i in range(batches)}, batches, BINS, 2048)
    folders = ",".join(f"{folder}/" for folder in BINS)
    return Step(
        name="infer_bs2",
        title="infer bs=2",
        stage="",
        tool="msame",
        arguments=("--model", str(MODEL), "--input", folders, "--output", str(run.output)),
        inputs=(Input(MODEL, "invoke build-om"), Input(PurePosixPath("data/p"), "invoke preprocess")),
        outputs=(run.output,),
        log=PurePosixPath("results/p/logs/infer_bs2.log"),
        commands={},
        inference=Inference((run,)),
    )


class StandIn:
    """An executor of the stand-in. The variables FLIP, PACE (ms of a batch) and CANN are its device's."""

    name = "local"

    def __init__(self, root: Path) -> None:
        self.root = root

    def identity(self, step: Step) -> dict[str, str]:
        return {"cann": os.environ.get("CANN", "5.1.RC2"), "program": "stand-in"}

    def prepare(self, step: Step) -> None:
        """Nothing to prepare."""

    def hold(self, files: Sequence[int]) -> None:
        """It has no containers."""

    def run(self, step: Step, arguments: Sequence[str], show: Show) -> tuple[list[str], int]:
        command = [sys.executable, "-m", "tests.cluster.pool_processes", "runner", *arguments]
        folder = self.root / ".cache/scratch" / step.name
        return local.execute(command, folder, dict(os.environ), self.root / step.log, show)

    def provenance(self, step: Step) -> Provenance:
        return Provenance()

    def show(self, step: Step) -> None:
        """Not asked for here."""

    def sibling(self) -> StandIn:
        return self

    def close(self) -> None:
        """Nothing is open."""


def run_stand_in(arguments: Sequence[str]) -> None:
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    inputs = [Path(folder) for folder in options["--input"].split(",")]
    folder = Path(options["--output"], f"2026111_1_1_1_{os.getpid()}")
    folder.mkdir(parents=True)
    assert Path(options["--model"]).stat().st_size
    print(f"[INFO] acl init success\n{folder}")
    names = sorted(os.listdir(inputs[0]))
    for name in names:
        time.sleep(float(os.environ.get("PACE", "50")) / 1000)
        result = output([(path / name).read_bytes() for path in inputs])
        if os.environ.get("FLIP"):
            result = bytes([result[0] ^ 1]) + result[1:]
        (folder / f"{name[:-4]}_output_0.bin").write_bytes(result)
        print("Inference time: 50ms", flush=True)
    print("Inference average time : 50.00 ms")
    if len(names) > 1:
        print("Inference average time without first time: 50.00 ms")
    print("[INFO] pid: 1 Execute sample success")


def security(folder: str) -> Any:
    from deberta.host.cluster import certificates

    return certificates.check(Path(folder)).security()


async def run_scheduler(address: str, port: str, certificates: str) -> None:
    from deberta.host.cluster import dask_settings

    dask_settings.apply()
    from distributed import Scheduler

    own = security(certificates)
    scheduler = await Scheduler(host=address, port=int(port), protocol="tls", security=own, dashboard=False)
    print(f"scheduler at {scheduler.address}", flush=True)
    await scheduler.finished()


def run_worker(scheduler: str, listen: str, certificates: str, device: str, folder: str) -> None:
    """The variable UNSHARED: it has no file system with the client; CORRUPT: a bit of each model turns on its way."""
    from deberta.host.shards.runner_process import RunnerProcess

    device_locks.FOLDER = Path(folder, "locks")
    name = work.name_of(int(device))
    workspace = Path(folder, name.replace("/", "-"))
    workspace.mkdir(parents=True, exist_ok=True)
    runner = RunnerProcess(Session(workspace, workspace, StandIn(workspace), str), int(device))

    async def serve() -> None:
        from deberta.host.cluster import dask_settings
        from deberta.host.cluster.shipping import HostFiles, Piece
        from deberta.host.cluster.work_side import WorkSide

        dask_settings.apply()
        from distributed import Worker

        receive = HostFiles.receive

        def corrupting(host: HostFiles, transfer: str, group: Sequence[Piece]) -> None:
            altered = [
                piece._replace(data=bytes([piece.data[0] ^ 1]) + piece.data[1:]) if piece.artifact.stays else piece
                for piece in group
            ]
            receive(host, transfer, altered)

        if os.environ.get("UNSHARED"):
            mock.patch.object(HostFiles, "_copy", lambda *_: False).start()
        if os.environ.get("CORRUPT"):
            mock.patch.object(HostFiles, "receive", corrupting).start()
        side = WorkSide(runner, name, HostFiles(workspace, Path(folder, "models"), work.host()))
        worker = await Worker(
            scheduler, host=listen, protocol="tls", nthreads=1, name=name, security=security(certificates),
            memory_limit=0, dashboard=False, nanny=None, plugins=(side,), local_directory=str(Path(folder, "dask")),
        )  # fmt: skip
        print(f"worker of {name}, its process {runner.number}", flush=True)
        await worker.finished()
        print(f"worker of {name} ended", flush=True)

    asyncio.run(serve())


def run_infer(scheduler: str, certificates: str, workspace: str, batches: str) -> int:
    from deberta.host.cluster.dask_pool import DaskPool
    from deberta.host.shards.coordinate import ShardSettings
    from deberta.host.shards.sharded import ShardedRuns

    folder = Path(workspace)
    settings = ShardSettings(batches=5, patience=float(os.environ.get("PATIENCE", "120")))
    shards = ShardedRuns(
        lambda session: DaskPool(scheduler, security(certificates), folder, lambda line: print(line, flush=True)),
        settings,
    )
    step = step_of(int(batches))
    session = Session(folder, folder, StandIn(folder), str, shards=shards, task="infer")
    document: dict[str, Any] = {}
    try:
        with files.staged(folder / "out") as temporary:
            temporary.mkdir()
            [judged] = shards.infer(
                session, step, {step.outputs[0]: temporary}, folder / "summary.json", Console("infer")
            )
            document["dirHash"] = files.folder_digest(judged.folder)
        document["sharding"] = shards.internal(step)["sharding"]
        shards.recorded(session, step)
        code = 0
    except DebertaError as error:
        document["error"], code = str(error), error.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED
    document["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(document), flush=True)
    return code


def make_workspace(folder: Path, batches: int, model: int) -> str:
    """The inputs of `infer`, with a model of `model` bytes; returns the dirHash that a right run has."""
    for path in (*BINS, MODEL.parent):
        (folder / path).mkdir(parents=True)
    with open(folder / MODEL, "wb") as file:
        for start in range(0, model, 2**20):
            file.write(os.urandom(min(2**20, model - start)))
    (folder / "right").mkdir()
    for index in range(batches):
        bins = content(index)
        for path, data in zip(BINS, bins, strict=True):
            (folder / path / input_file(index)).write_bytes(data)
        (folder / "right" / output_file(index)).write_bytes(output(bins))
    return files.folder_digest(folder / "right")


def main(role: str, *arguments: str) -> int:
    if role == "runner":
        run_stand_in(arguments)
        return 0
    if code := os.environ.get("CODE"):
        mock.patch.object(source_digest, "of_package", lambda project: code).start()
    mock.patch.object(compiled, "check_chip", lambda *_: "").start()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if role == "scheduler":
        asyncio.run(run_scheduler(*arguments))
    elif role == "worker":
        run_worker(*arguments)
    else:
        return run_infer(*arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
