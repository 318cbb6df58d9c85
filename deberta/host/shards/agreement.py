"""Whether devices may share a run: the same chip, CANN, driver, programs and code, and the same bytes of a batch."""

from __future__ import annotations

import hashlib
from typing import Mapping, Sequence

from deberta.core.errors import ConfigError, DataError, some
from deberta.core.job import DeviceFacts

ALLOW = "--allow-different-devices"
FACTS = {"chip": "chip", "cann": "CANN", "driver": "driver", "machine": "machine"}
ALWAYS_SAME = {"program": "program", "code": "code"}  # whatever is allowed


def check(devices: Sequence[DeviceFacts], backend: str, different: bool) -> list[str]:
    """What could not be compared of these devices. Raises ConfigError naming those that differ, unless that is allowed.

    Programs and code have to be the same always.
    """
    first, *others = devices
    for device in others:
        _check_same("version of our code", first.name, first.code[:12], device.name, device.code[:12])
        for name in sorted({*first.program, *device.program}):
            _check_same(name, first.name, first.program.get(name, ""), device.name, device.program.get(name, ""))
        _check_same("content of its image", first.name, first.image[:12], device.name, device.image[:12])
    unknown = []
    for name, noun in FACTS.items():
        if backend == "cpu" and name in ("cann", "driver"):
            continue
        values = {entry.name: str(getattr(entry, name)) for entry in devices}
        if silent := [place for place, value in values.items() if not value]:
            unknown.append(f"the {noun} of {', '.join(silent)} is not known, so it was not compared")
        known = {place: value for place, value in values.items() if value}
        for place, value in known.items():
            one = next(iter(known))
            if value != known[one] and not different:
                what = "CPU" if backend == "cpu" and name == "chip" else noun
                raise ConfigError(
                    f"{place} has another {what} than {one}: {value}, not {known[one]}. Leave it out, or add {ALLOW}, "
                    "which records it and leaves `accepted` out of reach"
                )
    return unknown


def check_record(device: DeviceFacts, identity: Mapping[str, object]) -> None:
    """Raise ConfigError unless a device runs the model with what the record will name: `identity` of the client.

    Devices of one run have the same programs, so that one of them tells of all.
    """
    there = {**device.program, "cann": "" if "image" in device.program else device.cann}  # an image has its CANN
    here = {"cann": "", **{name: str(value) for name, value in identity.items()}}
    for name in sorted({*there, *here}):
        what = "CANN" if name == "cann" else name
        _check_same(
            what, "this host, whose programs the record names", here.get(name, ""), device.name, there.get(name, "")
        )


def differ(devices: Sequence[DeviceFacts]) -> bool:
    """Whether any known fact of these devices differs."""
    return bool(unlike(devices, FACTS))


def unlike(devices: Sequence[DeviceFacts], facts: Mapping[str, str]) -> list[str]:
    """What is known of these devices and is not the same, as in "chip: 310P3 (a/0), 310P1 (b/0)"."""
    texts = []
    for name, noun in facts.items():
        first_of: dict[str, str] = {}
        for device in devices:
            value = getattr(device, name)
            text = ", ".join(f"{k} {v}" for k, v in sorted(value.items())) if isinstance(value, dict) else value
            if text:
                first_of.setdefault(text, device.name)
        if len(first_of) > 1:
            texts.append(f"{noun}: {some([f'{value} ({place})' for value, place in first_of.items()], 3)}")
    return texts


def _check_same(what: str, first: str, value: str, other: str, own: str) -> None:
    if own != value:
        raise ConfigError(
            f"{other} has another {what} than {first}: {own or 'none'}, not {value or 'none'}. Have the same on all "
            "hosts, or leave it out"
        )


def check_bytes(contents: Mapping[str, bytes], length: int, batch: int, different: bool) -> bool:
    """Whether devices gave the same bytes for a batch. Raises DataError naming those that differ, unless allowed."""
    names = list(contents)
    digests = {name: hashlib.sha256(content).hexdigest()[:12] for name, content in contents.items()}
    usual = max(digests.values(), key=list(digests.values()).count)
    odd = [name for name in names if digests[name] != usual]
    if not odd or different:
        return not odd
    rest = [name for name in names if name not in odd]
    shown = ", ".join(f"{name} {digests[name]}" for name in (*odd, *rest))
    raise DataError(
        f"{', '.join(odd)} and {', '.join(rest)} give different bytes for batch {batch} at length {length} (SHA-256: "
        f"{shown}). Leave out the device that is wrong, or add {ALLOW}, which records it and leaves `accepted` out of "
        "reach"
    )
