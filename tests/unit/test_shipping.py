"""Files that reach a device's host: what is there is used, what came wrong has no name."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from deberta.core import records
from deberta.core.errors import ConfigError, DataError
from deberta.core.paths import record_of
from deberta.host.cluster import shipping
from deberta.host.cluster.shipping import HostFiles, ShippedFile
from deberta.host.plan.plan import Inference, Input, ModelRun, Step
from deberta.host.shards.pool import ShardRequest

MODEL = PurePosixPath("models/p/x.om")
RECORD = record_of(MODEL)
BINS = PurePosixPath("data/p/bins")
RUN = ModelRun(
    PurePosixPath("results/o"),
    {f"input_{i}_output_0.bin": 24 for i in range(5)},
    5,
    (BINS / "input_ids", BINS / "input_mask"),
    2 * 64 * 4,
)
STEP = Step(
    name="infer",
    title="infer",
    stage="",
    tool="msame",
    arguments=(),
    inputs=(Input(MODEL, ""), Input(BINS, "")),
    outputs=(RUN.output,),
    log=PurePosixPath("results/logs/infer.log"),
    commands={},
    inference=Inference((RUN,)),
)


@pytest.fixture(name="client")
def _client(tmp_path: Path) -> Path:
    workspace = tmp_path / "client"
    (workspace / MODEL).parent.mkdir(parents=True)
    (workspace / MODEL).write_bytes(os.urandom(100_000))
    (workspace / RECORD).write_text("{}")
    for folder in RUN.bins:
        (workspace / folder).mkdir(parents=True)
        for index in range(5):
            (workspace / folder / f"input_{index}.bin").write_bytes(f"{folder} {index}".encode().ljust(512))
    return workspace


def artifacts_of(client: Path) -> tuple[list[ShippedFile], list[ShippedFile]]:
    """The model's and a shard's."""
    model = shipping.of_step(client, records.Digests(client), STEP)
    bins = shipping.of_shard(client, ShardRequest(STEP, 64, 1, 2, attempt=1))
    return model, bins


def unseen(artifacts: list[ShippedFile]) -> list[ShippedFile]:
    """As they come to a host without the client's file system."""
    return [artifact._replace(source=f"/nowhere{artifact.source}") for artifact in artifacts]


def send(host: HostFiles, artifacts: list[ShippedFile], most: int = 30_000) -> int:
    """How many pieces were sent; sources as the client has them."""
    lacking = {artifact.path for artifact in host.put(unseen(artifacts))}
    sent = 0
    for group in shipping.pieces([artifact for artifact in artifacts if artifact.path in lacking], most):
        assert sum(len(piece.data) for piece in group) <= most
        host.receive("t", group)
        sent += len(group)
    return sent


def test_a_shard_has_its_files_on_each_device_and_a_host_gets_a_model_once(client: Path, tmp_path: Path) -> None:
    model, bins = artifacts_of(client)
    assert [artifact.path for artifact in model] == [str(MODEL), str(RECORD)]
    assert [artifact.path for artifact in bins] == [str(f / f"input_{i}.bin") for f in RUN.bins for i in (1, 2)]
    first = HostFiles(tmp_path / "d0", tmp_path / "cache", "h1")
    assert send(first, model) == 5 and send(first, bins) == 4
    for path in (MODEL, RECORD, BINS / "input_ids/input_1.bin", BINS / "input_mask/input_2.bin"):
        assert (tmp_path / "d0" / path).read_bytes() == (client / path).read_bytes()
    assert send(HostFiles(tmp_path / "d1", tmp_path / "cache", "h1"), model) == 0
    assert os.path.samefile(tmp_path / "d1" / MODEL, tmp_path / "d0" / MODEL)
    later = shipping.of_shard(client, ShardRequest(STEP, 64, 2, 3, attempt=2))
    assert send(first, later) == 2  # input_2 is there
    assert sorted(os.listdir(tmp_path / "d0" / BINS / "input_ids")) == ["input_2.bin", "input_3.bin"]
    assert (tmp_path / "d0" / MODEL).exists()


def test_a_file_on_a_shared_file_system_is_not_sent_unless_it_is_another(client: Path, tmp_path: Path) -> None:
    model, bins = artifacts_of(client)
    host = HostFiles(tmp_path / "d0", tmp_path / "cache", "h1")
    assert host.put(model) == [] and host.put(bins) == []
    assert (tmp_path / "d0" / MODEL).read_bytes() == (client / MODEL).read_bytes()
    other = HostFiles(tmp_path / "d1", tmp_path / "cache1", "h1")
    (client / MODEL).write_bytes(os.urandom(100_000))
    assert [artifact.path for artifact in other.put(model)] == [str(MODEL)]
    assert not (tmp_path / "d1" / MODEL).exists()


def test_what_was_corrupted_on_its_way_is_refused_by_name_and_sent_again_later(client: Path, tmp_path: Path) -> None:
    model, bins = artifacts_of(client)
    host = HostFiles(tmp_path / "d0", tmp_path / "cache", "h1")
    for wanted in (model, bins):
        groups = list(shipping.pieces(wanted[:1], 30_000))
        piece = groups[-1][-1]
        groups[-1][-1] = piece._replace(data=bytes([piece.data[0] ^ 1]) + piece.data[1:])
        with pytest.raises(DataError, match=rf"^{wanted[0].path} came to h1 with SHA-256 .* was refused: it was corr"):
            for group in groups:
                host.receive("t", group)
        assert host.put(unseen(wanted))[0].path == wanted[0].path
        assert not (tmp_path / "d0" / wanted[0].path).exists()
        with pytest.raises(DataError, match="with a gap"):
            host.receive("t", [piece._replace(offset=99)])
        send(host, wanted)
        assert host.put(unseen(wanted)) == []
    (client / MODEL).write_bytes(b"short")
    with pytest.raises(DataError, match=r"x.om was changed while it was sent"):
        list(shipping.pieces(model))


def test_a_kept_file_that_was_changed_is_not_used(client: Path, tmp_path: Path) -> None:
    model, _ = artifacts_of(client)
    host = HostFiles(tmp_path / "d0", tmp_path / "cache", "h1")
    send(host, model)
    with open(tmp_path / "d0" / MODEL, "r+b") as file:  # the same file as the kept one
        file.write(b"!")
    assert [artifact.path for artifact in host.put(unseen(model))] == [str(MODEL)]


def test_the_cache_has_a_bound_and_what_is_used_stays(client: Path, tmp_path: Path) -> None:
    host = HostFiles(tmp_path / "d0", tmp_path / "cache", "h1", most=250_000)
    digests = []
    for number in range(4):
        (client / MODEL).write_bytes(bytes([number]) * 100_000)
        model = shipping.of_step(client, records.Digests(client), STEP)
        send(host, model)
        digests.append(model[0].sha256)
        for age, digest in enumerate(reversed(digests)):
            if (tmp_path / "cache" / digest).exists():
                os.utime(tmp_path / "cache" / digest, (time.time() - age,) * 2)
    kept = [digest for digest in digests if (tmp_path / "cache" / digest).exists()]
    assert kept == digests[2:]
    part = tmp_path / "cache" / digests[3] / ".content.part-dead"
    part.write_bytes(b"x")
    os.utime(part, (0, 0))
    HostFiles(tmp_path / "d1", tmp_path / "cache", "h1")
    assert not part.exists()


def test_nothing_is_read_or_written_outside_the_workspaces(client: Path, tmp_path: Path) -> None:
    for path in (PurePosixPath("/etc/hostname"), PurePosixPath("../x.om")):
        step = replace(STEP, inputs=(Input(path, ""),))
        with pytest.raises(ConfigError, match="is not in the workspace"):
            shipping.of_step(client, records.Digests(client), step)
    host = HostFiles(tmp_path / "d0", tmp_path / "cache", "h1")
    for artifact in (
        ShippedFile("../outside", "0" * 64, 1, "/nowhere", False),
        ShippedFile("models/x", "../../x", 1, "/nowhere", True),
    ):
        with pytest.raises(DataError, match="is no path in a workspace"):
            host.receive("t", [shipping.Piece(artifact, 0, b"x")])
