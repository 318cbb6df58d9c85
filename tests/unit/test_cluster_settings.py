"""Certificates and settings of a cluster: whatever would let somebody else in is refused by name."""

from __future__ import annotations

import json
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from deberta.core.errors import ConfigError, DataError, DebertaError, MissingError
from deberta.host.cluster import certificates, cluster_settings, job
from deberta.host.cluster.certificates import CA, CA_KEY, CERTIFICATE, KEY

LAB = {"lab": {"scheduler": "tls://10.0.0.1:8786", "certificates": "certs"}}


@pytest.fixture(name="place", scope="module")
def _place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ca")
    certificates.make(folder, ["npu1", "10.0.0.2"], 365)
    return folder


def test_each_host_gets_a_key_of_its_own_that_nobody_else_reads(place: Path) -> None:
    one, other = (certificates.check(place / name) for name in ("npu1", "10.0.0.2"))
    assert one.key.read_bytes() != other.key.read_bytes() and one.ca.read_bytes() == other.ca.read_bytes()
    assert {oct(os.stat(path).st_mode & 0o777) for path in (one.key, other.key, place / CA_KEY)} == {"0o600"}
    assert not (place / "npu1" / CA_KEY).exists()
    assert timedelta(364) < certificates.expires(one) - datetime.now(timezone.utc) < timedelta(366)
    with pytest.raises(ConfigError, match="npu1 is there"):
        certificates.make(place, ["npu1"], 365)
    for name in ("../evil", "", "a b", "-x\n", "x" * 65):
        with pytest.raises(ConfigError, match="is no name or address"):
            certificates.make(place, [name], 365)


def copied(place: Path, to: Path, name: str = "npu1") -> Path:
    to.mkdir()
    for path in (place / name).iterdir():
        (to / path.name).write_bytes(path.read_bytes())
        (to / path.name).chmod(0o600)
    return to


def test_a_certificate_that_lets_somebody_else_in_is_refused(place: Path, tmp_path: Path) -> None:
    certificates.make(tmp_path / "stranger", ["npu1"], 365)
    stranger = tmp_path / "stranger" / "npu1"
    own = copied(place, tmp_path / "own")

    def refused(kind: type[DebertaError], words: str, now: datetime | None = None) -> None:
        with pytest.raises(kind, match=words):
            certificates.check(own, now)

    def replaced(name: str, content: bytes, kind: type[DebertaError], words: str) -> None:
        before = (own / name).read_bytes()
        (own / name).write_bytes(content)
        refused(kind, words)
        (own / name).write_bytes(before)

    certificates.check(own)
    (own / KEY).chmod(0o644)
    refused(ConfigError, r"key.pem can be read by others \(mode 644\).*Run: chmod 600")
    (own / KEY).chmod(0o600)
    for path, safe, mode in ((own / CA, 0o644, 0o666), (own, 0o700, 0o770)):
        path.chmod(mode)
        refused(ConfigError, rf"{path} can be changed by others \(mode {mode:o}\).*Run: chmod go-w {path}")
        path.chmod(safe)
    today = datetime.now(timezone.utc)
    refused(ConfigError, "cert.pem expired on", today + timedelta(366))
    refused(ConfigError, "ca.pem is not valid before", today - timedelta(1))
    replaced(CA, (stranger / CA).read_bytes(), DataError, "not signed by .*ca.pem: another CA of that name")
    replaced(KEY, (stranger / KEY).read_bytes(), DataError, "key.pem is not the key of")
    replaced(CERTIFICATE, (place / CA).read_bytes(), DataError, "cert.pem is a CA's own certificate")
    ca, ca_key = certificates._load(place / CA), certificates._load_key(place / CA_KEY)
    with_its_key = certificates._sign("npu1", ca.public_key(), ca.subject, ca_key, 9, [certificates._name("npu1")])
    replaced(CERTIFICATE, certificates._pem(with_its_key), DataError, "cert.pem .* has its key: a host has its own")
    replaced(CA, (place / "npu1" / CERTIFICATE).read_bytes(), DataError, "ca.pem is no CA's certificate")
    for name in (CA, CERTIFICATE):
        replaced(
            name, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", DataError, "is no certificate"
        )
    replaced(KEY, b"no key", DataError, "is no private key")
    (own / CERTIFICATE).unlink()
    refused(MissingError, "cert.pem missing.*invoke cluster certs")


def test_a_cluster_without_encryption_or_with_an_unknown_setting_is_refused() -> None:
    assert cluster_settings.load(LAB, "lab").endpoint == ("10.0.0.1", 8786)
    assert cluster_settings.endpoint("tls://[fd00::1]:8786") == ("fd00::1", 8786)
    for address in ("tls://0.0.0.0:8786", "tls://[::]:8786", "tls://[::ffff:0.0.0.0]:8786"):
        with pytest.raises(ConfigError, match="stands for all addresses"):
            cluster_settings.endpoint(address)
    for address in ("tls://0:8786", "tls://0x0:8786", "tls://0.0:8786", "tls://00.0.0.0.:8786"):  # 0.0.0.0 to systems
        with pytest.raises(ConfigError, match="neither a name nor an address"):
            cluster_settings.endpoint(address)
    for address in ("tcp://10.0.0.1:8786", "10.0.0.1:8786", "tls://10.0.0.1", "tls://10.0.0.1:0", "tls://a b:1"):
        with pytest.raises(ConfigError, match="has to be tls://HOST:PORT"):
            cluster_settings.load({"lab": {**LAB["lab"], "scheduler": address}}, "lab")
    with pytest.raises(ConfigError, match="without TLS anybody on the network could run code"):
        cluster_settings.endpoint("tcp://10.0.0.1:8786")
    with pytest.raises(ConfigError, match=r"no cluster 'x' in invoke.yaml. Known: lab"):
        cluster_settings.load(LAB, "x")
    with pytest.raises(ConfigError, match=r"Add it to invoke.yaml: clusters"):
        cluster_settings.load(None, "lab")
    with pytest.raises(ConfigError, match=r"lab.*unknown field.*password|password"):
        cluster_settings.load({"lab": {**LAB["lab"], "password": "x"}}, "lab")


def test_a_worker_listens_on_one_address_alone() -> None:
    assert cluster_settings.own_address(("127.0.0.1", 8786)) == "127.0.0.1"
    assert cluster_settings.own_address(("127.0.0.1", 8786), "127.0.0.2") == "127.0.0.2"
    for address in ("0.0.0.0", "::", "::ffff:0.0.0.0"):
        with pytest.raises(ConfigError, match="stands for all addresses"):
            cluster_settings.own_address(("127.0.0.1", 8786), address)
    for address in ("npu1", "192.0.2.7"):
        with pytest.raises(ConfigError, match=f"'{address}' is no address of this host"):
            cluster_settings.own_address(("127.0.0.1", 8786), address)


def test_the_kubernetes_job_has_a_chip_a_pod_an_image_by_digest_and_no_root() -> None:
    image = f"registry.local/deberta@sha256:{'a' * 64}"
    config, made = json.loads(job.kubernetes("lab", "tls://10.0.0.1:8786", image, 8))["items"]
    spec, pod = made["spec"], made["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert (made["apiVersion"], made["kind"], spec["completionMode"]) == ("batch/v1", "Job", "Indexed")
    assert (spec["completions"], spec["parallelism"], spec["backoffLimitPerIndex"]) == (8, 8, job.FAILURES)
    assert container["resources"]["limits"] == {"huawei.com/Ascend310P": 1} == container["resources"]["requests"]
    assert container["image"] == image and pod["securityContext"]["runAsNonRoot"] and "schedulerName" not in pod
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    cluster_settings.load(json.loads(config["data"]["invoke.yaml"])["clusters"], "lab")
    volcano = json.loads(job.kubernetes("lab", "tls://10.0.0.1:8786", image, 8, volcano=True))["items"][1]
    assert volcano["spec"]["template"]["spec"]["schedulerName"] == "volcano"
    for tag in ("", "deberta:latest", "deberta@sha256:abc"):
        with pytest.raises(ConfigError, match="names no image by its digest"):
            job.kubernetes("lab", "tls://10.0.0.1:8786", tag, 8)


def test_lines_for_ssh_start_a_worker_on_each_host() -> None:
    lines = job.ssh_lines("lab", ["npu1", "me@npu2"], "/home/me/deberta-ascend", "all")
    assert [line.split()[:2] for line in lines] == [["ssh", "npu1"], ["ssh", "me@npu2"]]
    assert "cluster worker --cluster lab --device all" in lines[0] and "Restart=on-failure" in lines[0]
    with pytest.raises(ConfigError, match="is no name of a host"):
        job.ssh_lines("lab", ["-oProxyCommand=evil"], "/x", "all")
