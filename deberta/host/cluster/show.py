"""Who is in a cluster: its devices, what they are, and whether they have our code."""

from __future__ import annotations

from typing import Any

from deberta import PROJECT
from deberta.core import schema
from deberta.core.errors import aligned, many
from deberta.core.job import DeviceFacts
from deberta.core.schema import Schema
from deberta.host.cluster import dask_settings
from deberta.host.cluster.certificates import HostCertificates
from deberta.host.run import source_digest

ANSWER_SECONDS = 10.0


class ClusterDevice(Schema):
    """A device that a worker offers. What is not known of it is empty. same_code: as on this host."""

    name: schema.Text
    address: str
    chip: str
    cann: str
    driver: str
    machine: str
    busy: bool
    code: str
    same_code: bool


class ClusterDocument(Schema):
    """silent: addresses of workers that did not say who they are."""

    scheduler: schema.Text
    code: schema.Sha256
    devices: list[ClusterDevice]
    silent: list[str]


def look(scheduler: str, certificates: HostCertificates) -> ClusterDocument:
    """Ask a scheduler and its workers. Raises MissingError if it does not answer, DataError if its CA is another."""
    dask_settings.apply()
    import distributed

    from deberta.host.cluster import work_side

    own = source_digest.of_package(PROJECT)
    security = certificates.security()
    try:
        with distributed.Client(scheduler, security=security, timeout=ANSWER_SECONDS, set_as_default=False) as client:
            answers: dict[str, Any] = client.run(work_side.introduce, on_error="return")
    except (OSError, TimeoutError) as error:
        raise dask_settings.no_answer(scheduler, error) from None
    devices, silent = [], []
    for address, answer in sorted(answers.items()):
        if not isinstance(answer, dict) or "device" not in answer:
            silent.append(address)
            continue
        about = answer.get("about")
        facts = about if isinstance(about, DeviceFacts) else DeviceFacts(host=answer["device"], device=0)
        devices.append(
            ClusterDevice(
                name=answer["device"],
                address=address,
                chip=facts.chip,
                cann=facts.cann,
                driver=facts.driver,
                machine=facts.machine,
                busy=bool(answer["busy"]),
                code=answer["code"],
                same_code=answer["code"] == own,
            )
        )
    devices.sort(key=lambda device: device.name)
    return ClusterDocument(scheduler=scheduler, code=own, devices=devices, silent=silent)


def text(document: ClusterDocument) -> str:
    """A line for each device."""
    if not document.devices and not document.silent:
        return f"{document.scheduler}: no device. Start one on each host: invoke cluster worker"
    rows: list[tuple[str, ...]] = [("device", "state", "chip", "CANN", "driver", "machine", "our code")]
    for device in document.devices:
        facts = (device.chip, device.cann, device.driver, device.machine)
        code = device.code[:12] if device.same_code else f"{device.code[:12]}, not {document.code[:12]}"
        rows.append((device.name, "busy" if device.busy else "idle", *(value or "not known" for value in facts), code))
    lines = [f"{document.scheduler}: {many(len(document.devices), 'device')}", *aligned(rows)]
    lines += [f"the worker at {address} did not say who it is" for address in document.silent]
    return "\n".join(lines)
