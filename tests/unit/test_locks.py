"""The locks: what pip would install with their hashes on each machine, by what the package index has now."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deberta import PROJECT
from deberta.core.errors import DataError
from deberta.host.environments import locks, platforms, stages
from requirements import lock
from requirements.lock import Package, Wheel

HASHES = [f"{number:064x}" for number in range(4)]


def test_every_lock_can_be_installed_on_both_machines_and_needs_what_the_table_says() -> None:
    try:
        with ThreadPoolExecutor() as pool:  # they wait for the index
            table = dict(zip([lock.lock_of(name).name for name in lock.PYTHONS], pool.map(lock.needs_of, lock.PYTHONS)))
    except lock.NoAnswerError as error:
        if os.environ.get("INDEX_TESTS") == "required":
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    assert table == platforms.NEEDS, "run requirements/lock.sh"


def _wheel(name: str, number: int, size: int = 10**6) -> Wheel:
    return Wheel(name, HASHES[number], "", size)


RESOLVED = [
    Package(
        *("openvino", "1", ""),
        (
            _wheel("openvino-1-7-cp311-cp311-manylinux_2_28_x86_64.whl", 0),
            _wheel("openvino-1-7-cp311-cp311-manylinux_2_35_aarch64.whl", 1, 2 * 10**6),
            _wheel("openvino-1-7-cp312-cp312-manylinux_2_17_aarch64.whl", 2),
        ),
    ),
    Package("torch", "2", "platform_machine == 'aarch64'", (_wheel("torch-2-cp39-abi3-manylinux2014_aarch64.whl", 3),)),
]


def _check(path: Path, entries: Sequence[str], resolved: Sequence[Package] = RESOLVED) -> Mapping[str, platforms.Needs]:
    path.write_text("".join(f"{entry}\n" for entry in entries), encoding="utf-8")
    return lock.table_of(path, resolved, [(3, 11)])


def test_a_lock_that_pip_would_refuse_on_a_machine(tmp_path: Path) -> None:
    openvino = [f"openvino==1 \\\n    --hash=sha256:{HASHES[0]} \\\n    --hash=sha256:{HASHES[1]}"]
    torch = [f"torch==2 ; platform_machine == 'aarch64' \\\n    --hash=sha256:{HASHES[3]}"]
    path = tmp_path / "requirements-stages.lock"
    table = _check(path, [*openvino, *torch])
    assert table["x86_64"] == platforms.Needs("2.28", "openvino 1", musl=False, megabytes=1)
    assert table["aarch64"] == platforms.Needs("2.35", "openvino 1", musl=False, megabytes=3)
    for entries, resolved, problem in (
        (
            [openvino[0].replace(HASHES[1], HASHES[2]), *torch],
            RESOLVED,
            "aarch64, Python 3.11: no hash of openvino 1 is of",
        ),
        (
            [openvino[0], torch[0].replace("torch==2", "torch==3")],
            RESOLVED,
            "aarch64, Python 3.11: torch 2 is needed and ",
        ),
        (openvino, RESOLVED, "on aarch64, Python 3.11: torch 2 is needed and not in the lock"),
        ([*openvino, *torch], RESOLVED[1:], "on x86_64, Python 3.11: the index has no wheel of openvino 1"),
        (
            [*openvino, *torch],
            [*RESOLVED, Package("nvidia-cudnn", "9", "platform_machine == 'aarch64'", ())],  # as torch of CUDA asks for
            "on aarch64, Python 3.11: nvidia-cudnn 9 is needed and not in the lock",
        ),
    ):
        with pytest.raises(DataError, match=problem):
            _check(path, entries, resolved)


def test_what_changed_is_said_for_each_machine() -> None:
    both = {"x86_64 Python 3.11": {"numpy": "1", "torch": "2+cpu"}, "aarch64 Python 3.11": {"numpy": "1", "torch": "2"}}
    new = {"x86_64 Python 3.11": {"numpy": "2", "torch": "3+cpu"}, "aarch64 Python 3.11": {"numpy": "2", "sympy": "1"}}
    assert lock.changes(both, both) == []
    assert lock.changes(both, new) == [
        "numpy: 1 -> 2 (x86_64 Python 3.11; aarch64 Python 3.11)",
        "sympy: none -> 1 (aarch64 Python 3.11)",
        "torch: 2 -> none (aarch64 Python 3.11)",
        "torch: 2+cpu -> 3+cpu (x86_64 Python 3.11)",
    ]


def test_forms_of_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    one, two = f"--hash=sha256:{HASHES[0]}", f"--hash=sha256:{HASHES[1]}"
    forms = (
        f"one==1 \\\n    {one} \\\n    {two}\n    # via other==1\nnone==2\n# end",
        f"one==1 ; python_version > '3' {one} {two}\nnone==2",
    )
    for text in forms:
        path.write_text(text, encoding="utf-8")
        assert locks.read(path) == [("one", "1", tuple(HASHES[:2])), ("none", "2", ())]
    path.write_text(locks.text(locks.read(path)[0]), encoding="utf-8")
    assert locks.read(path) == [("one", "1", tuple(HASHES[:2]))]
    for text in ("one>=1,<2\n", "one\n", "one = 1\n", "one==1 ; nothing\n"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=r"is no entry of a lock\. Run: git checkout -- a\.lock"):
            locks.read(path)


@pytest.mark.parametrize(
    ("wheel", "glibc", "musl"),
    [
        ("one-1-py3-none-any.whl", (0, 0), True),
        ("one-1-cp39-abi3-manylinux_2_34_aarch64.whl", (2, 34), False),
        ("one-1-cp311-cp311-manylinux2014_aarch64.manylinux_2_17_aarch64.whl", (2, 17), False),
        ("one-1-cp311-cp311-musllinux_1_2_aarch64.whl", None, True),
        ("one-1-cp311-cp311-manylinux_2_17_x86_64.whl", None, False),
        ("one-1-cp312-cp312-manylinux_2_17_aarch64.whl", None, False),
        ("one-1-cp313-abi3-manylinux_2_17_aarch64.whl", None, False),
        ("one-1-cp311-cp311-macosx_11_0_arm64.whl", None, False),
    ],
)
def test_which_wheels_a_machine_takes(wheel: str, glibc: tuple[int, int] | None, musl: bool) -> None:
    assert locks.glibc_of(wheel, "aarch64") == glibc
    assert locks.is_for_musl(wheel, "aarch64") == musl


def test_the_page_says_what_the_table_does() -> None:
    page = (PROJECT / "docs" / "hosts.md").read_text(encoding="utf-8")
    for machine, needs in platforms.NEEDS[stages.STAGES_LOCK].items():
        assert f"| {machine} | {needs.glibc} or newer | {needs.package} | {needs.megabytes} MB |" in page


def test_platform_tags_are_pips_own() -> None:
    assert locks.platform_tags("aarch64", (2, 18)) == [
        *("manylinux_2_18_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64", "linux_aarch64")
    ]
    assert locks.platform_tags("x86_64", (2, 36))[-2:] == ["manylinux1_x86_64", "linux_x86_64"]
