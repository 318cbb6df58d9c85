"""CANN on a machine: its set_env.sh is sourced in an empty environment, and what it leaves is all that tools get."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deberta.ascend import cann, programs
from deberta.core.errors import ConfigError, MissingError, StageError
from deberta.host.run import local

# The variables of the real script (5.1's layout), its trailing colons, and a last test that fails.
SET_ENV = """\
export ASCEND_TOOLKIT_HOME={home}/latest
export LD_LIBRARY_PATH=${{ASCEND_TOOLKIT_HOME}}/lib64:$LD_LIBRARY_PATH
export PYTHONPATH=${{ASCEND_TOOLKIT_HOME}}/python/site-packages:$PYTHONPATH
export PATH=${{ASCEND_TOOLKIT_HOME}}/bin:$PATH
export ASCEND_OPP_PATH=${{ASCEND_TOOLKIT_HOME}}/opp
export ARGUMENTS=$#
echo "what it says is not a variable"
[ -n "$VIRTUAL_ENV" ] && export FOUND_A_VENV=1
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A toolkit in a folder whose name a shell could take for a command."""
    root = tmp_path / "as'cend $(touch injected); toolkit"
    tools = root / "latest" / "bin"
    tools.mkdir(parents=True)
    (tools / "atc").write_text("#!/bin/sh\n")
    (tools / "atc").chmod(0o755)
    path = root / "set_env.sh"
    quoted = "'" + str(root).replace("'", "'\\''") + "'"
    path.write_text(SET_ENV.format(home=quoted))
    return path


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def test_nothing_of_the_callers_gets_in(script: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LD_PRELOAD_OF_MINE", "BASH_ENV"):
        monkeypatch.setenv(name, f"/callers/{name}")
    monkeypatch.setenv("PATH", f"/project/.venv/bin{os.pathsep}{os.environ['PATH']}")
    home = f"{script.parent}/latest"
    assert cann.environment(script, scratch) == {
        "HOME": str(scratch),
        "LANG": "C.UTF-8",
        "PATH": f"{home}/bin:{cann.PATH}",
        "ARGUMENTS": "0",
        "ASCEND_TOOLKIT_HOME": home,
        "ASCEND_OPP_PATH": f"{home}/opp",
        "LD_LIBRARY_PATH": f"{home}/lib64:",
        "PYTHONPATH": f"{home}/python/site-packages:",
    }
    assert sorted(os.listdir(scratch)) == []


def test_a_path_is_never_text_of_the_shells(script: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(script.parent)
    assert "ASCEND_OPP_PATH" in cann.environment(Path("set_env.sh"), scratch)
    assert not list(script.parents[1].rglob("injected"))


def test_values_may_hold_anything(script: Path, scratch: Path) -> None:
    with script.open("a") as file:
        file.write("export ODD=$'two\\nlines=\"x\" \\xff'\nfunction f() { :; }\nexport -f f\n")
    variables = cann.environment(script, scratch)
    assert variables["ODD"] == 'two\nlines="x" \udcff'
    program = "import os; print(ascii(os.environ['ODD']))"
    printed = subprocess.check_output([sys.executable, "-c", program], env=variables, text=True)
    assert printed.strip() == ascii(variables["ODD"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("echo out; echo 'no such package' >&2; exit 1\n", "sets nothing of CANN's: no such package"),
        ("exit 0\n", "sets nothing of CANN's. Correct it"),
        ("export OTHER=1\n", "sets nothing of CANN's"),
        (". /nonexistent/set_env.sh\n", "No such file or directory"),  # a script of the user's own
    ],
)
def test_a_script_that_does_not_work(script: Path, scratch: Path, text: str, says: str) -> None:
    script.write_text(text)
    with pytest.raises(StageError) as raised:
        cann.environment(script, scratch)
    assert says in str(raised.value)


def test_a_script_that_hangs_is_ended_with_all_it_started(
    script: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cann, "TIMEOUT_SECONDS", 0.3)
    script.write_text(f"sleep 1000 &\necho $! > '{scratch}/child'\nwait\n")
    with pytest.raises(StageError, match=r"set_env\.sh did not end"):
        cann.environment(script, scratch)
    child = int((scratch / "child").read_text())
    # Killed with its group, which takes a moment; a zombie if nobody here reaps it.
    for _ in range(200):
        if not _runs(child):
            break
        time.sleep(0.05)
    assert not _runs(child)


def _runs(process: int) -> bool:
    try:
        return "(sleep) Z" not in Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_finding_the_script(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = tmp_path / "absent" / "set_env.sh"
    monkeypatch.setattr(os, "environ", {})
    assert cann.find("", [absent, script]) == cann.Location(script, "a known place")
    with pytest.raises(MissingError, match=r"there is no .*absent/set_env\.sh\. Install the CANN toolkit, or name"):
        cann.find("", [absent])
    (tmp_path / "Ascend").mkdir()
    (tmp_path / "Ascend" / "ascend-toolkit").symlink_to(script.parent)
    for setting in (script, script.parent, script.parent / "latest", tmp_path / "Ascend"):
        assert cann.find(str(setting), [absent]).script.samefile(script)
    for setting in (absent, tmp_path):  # a wrong setting never falls back to another CANN
        with pytest.raises(ConfigError, match=r"cann in invoke\.yaml is .*: no set_env\.sh is there"):
            cann.find(str(setting), [script])


def _installed(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("export ASCEND_TOOLKIT_HOME=/x\n")
        (root / name).chmod(0o755)


# (files, the caller's variables, the script, by what); {} is the folder that all is in, and `known` the known place.
PLACES: list[tuple[list[str], dict[str, str], str, str]] = [
    (
        ["a/set_env.sh", "a/latest/bin/atc"],
        {"ASCEND_TOOLKIT_HOME": "{}/a/latest"},
        "a/set_env.sh",
        "by $ASCEND_TOOLKIT_HOME",
    ),
    (["cann-8.5/set_env.sh"], {"ASCEND_HOME_PATH": "{}/cann-8.5"}, "cann-8.5/set_env.sh", "by $ASCEND_HOME_PATH"),
    (
        ["a/set_env.sh", "b/set_env.sh", "known/set_env.sh"],
        {"ASCEND_TOOLKIT_HOME": "{}/a/latest", "ASCEND_HOME_PATH": "{}/b"},
        "a/set_env.sh",
        "by $ASCEND_TOOLKIT_HOME",
    ),
    (["a/set_env.sh"], {"ASCEND_TOOLKIT_HOME": "{}/a/8.0.0/aarch64-linux"}, "a/set_env.sh", "by $ASCEND_TOOLKIT_HOME"),
    (["known/set_env.sh", "h/Ascend/cann/set_env.sh"], {"HOME": "{}/h"}, "known/set_env.sh", "a known place"),
    (
        ["known/set_env.sh"],
        {"ASCEND_TOOLKIT_HOME": "{}/gone"},
        "known/set_env.sh",
        "a known place; $ASCEND_TOOLKIT_HOME is {}/gone, with no set_env.sh in it or in the two folders above",
    ),
    (["h/Ascend/ascend-toolkit/set_env.sh"], {"HOME": "{}/h"}, "h/Ascend/ascend-toolkit/set_env.sh", "a known place"),
    (["h/Ascend/cann/set_env.sh"], {"HOME": "{}/h"}, "h/Ascend/cann/set_env.sh", "a known place"),
    (
        ["a/set_env.sh", "a/latest/x86_64-linux/bin/atc"],
        {"PATH": "/nowhere:{}/a/latest/x86_64-linux/bin"},
        "a/set_env.sh",
        "above {}/a/latest/x86_64-linux/bin/atc on PATH",
    ),
]


@pytest.mark.parametrize(("names", "variables", "script", "source"), PLACES)
def test_where_users_have_it(
    names: list[str], variables: dict[str, str], script: str, source: str, tmp_path: Path
) -> None:
    _installed(tmp_path, *names)
    own = {name: value.format(tmp_path) for name, value in variables.items()}
    location = cann.find("", [tmp_path / "known/set_env.sh"], own)
    assert location == cann.Location(tmp_path / script, source.format(tmp_path))
    # A setting that is wrong never falls back to what is there.
    with pytest.raises(ConfigError, match=r"no set_env\.sh is there"):
        cann.find(str(tmp_path / "nothing"), [tmp_path / "known/set_env.sh"], own)


def test_an_atc_that_is_a_link(tmp_path: Path) -> None:
    _installed(tmp_path, "a/set_env.sh", "a/8.0/compiler/bin/atc")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/atc").symlink_to(tmp_path / "a/8.0/compiler/bin/atc")
    assert cann.find("", [], {"PATH": str(tmp_path / "bin")}).script == tmp_path / "a/set_env.sh"


def test_what_is_not_there_is_said_with_all_that_was_looked_at(tmp_path: Path) -> None:
    _installed(tmp_path, "tools/bin/atc")
    own = {"ASCEND_HOME_PATH": f"{tmp_path}/gone", "HOME": "/h", "PATH": f"{tmp_path}/tools/bin"}
    with pytest.raises(MissingError) as raised:
        cann.find("", [tmp_path / "known/set_env.sh"], own)
    message = str(raised.value)
    assert message.startswith(f"CANN was not found: $ASCEND_HOME_PATH is {tmp_path}/gone, with no set_env.sh")
    assert f"atc is on PATH ({tmp_path}/tools/bin/atc), with no set_env.sh in the folders above it: name it" in message
    assert f"there is no {tmp_path}/known/set_env.sh and no /h/Ascend/ascend-toolkit/set_env.sh and no /h/A" in message


ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00"
UNSTARTABLE = {
    "another machine": (ELF + b"\xb7\x00" + bytes(44), "it is built for aarch64, and this machine is x86_64"),
    "no program": (b"hello", "it is no program that this machine (x86_64) runs (Exec format error)"),
    "an empty file": (b"", "it is no program that this machine (x86_64) runs"),
    "no interpreter": (b"#!/opt/python3.7/bin/python3 -u\n", "/opt/python3.7/bin/python3 is not there. Install it"),
}


@pytest.mark.parametrize("kind", UNSTARTABLE)
def test_a_program_that_does_not_start(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    content, says = UNSTARTABLE[kind]
    program = tmp_path / "npu-smi"
    program.write_bytes(content)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StageError) as raised:
        programs.npu_devices()
    assert f"{program} cannot be started: " in str(raised.value) and says in str(raised.value)
    with pytest.raises(StageError, match=r"npu-smi cannot be started: "):
        local.execute([str(program)], tmp_path, {}, tmp_path / "log", print)


def test_a_program_that_cannot_be_a_program(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path / 'none'}:{tmp_path / 'bin'}")
    assert programs.npu_devices() is None
    (tmp_path / "bin").mkdir()
    for name, look in (
        ("npu-smi", programs.npu_devices),
        ("msame", lambda: programs.check_msame(tmp_path / "bin/msame")),
        ("atc", lambda: cann.tool(cann.Cann(cann.Location(script, ""), "", dict(os.environ)), "atc")),
    ):
        program = tmp_path / "bin" / name
        program.symlink_to("moved")
        with pytest.raises(ConfigError, match=rf"bin/{name} is a link to moved, which is not there\. Correct the link"):
            look()
        program.unlink()
        program.write_text("#!/bin/sh\n")
        program.chmod(0o644)
        with monkeypatch.context() as patch:
            patch.setattr(os, "access", lambda path, mode: False)  # permissions say nothing to root
            with pytest.raises(ConfigError, match=rf"bin/{name} is not executable\. Run: chmod a\+x "):
                look()
    with pytest.raises(MissingError, match=r"other is missing\. Build msame as the guide says"):
        programs.check_msame(tmp_path / "other")


@pytest.mark.parametrize(
    ("file", "text", "version"),
    [
        (
            "x86_64-linux/ascend_toolkit_install.info",
            "package_name=Ascend-cann-toolkit\nversion=5.1.RC2\ninnerversion=V100R001C79B120\narch=x86_64\n",
            "5.1.RC2",
        ),
        ("aarch64-linux/ascend_nnrt_install.info", "package_name=Ascend-cann-nnrt\nversion=5.1.RC2\n", "5.1.RC2"),
        (
            "version.cfg",
            "# version: 1.0\nopp_running_version=[1.84]\ntoolkit_running_version=[1.84.15.1.310:6.0.1]\n",
            "6.0.1",
        ),
        ("compiler/version.info", "Version=7.6.0.1.220\nversion_dir=8.0.0\ntimestamp=20250101_000000000\n", "8.0.0"),
        ("compiler/version.info", "Version=7.6.0.1.220\n", ""),  # a component's own number is no version of CANN
        ("x86_64-linux/ascend_toolkit_install.info", "innerversion=V100\n", ""),
    ],
)
def test_the_version(tmp_path: Path, file: str, text: str, version: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    assert cann.version(tmp_path) == version
    assert cann.version(tmp_path / "absent") == ""


def test_an_installation(script: Path, scratch: Path, tmp_path: Path) -> None:
    info = script.parent / "latest" / "x86_64-linux" / "ascend_toolkit_install.info"
    info.parent.mkdir()
    info.write_text("version=5.1.RC2\n")
    # A script of the user's own, which puts another Python first, is as good: CANN is where that leads.
    own = tmp_path / "own.sh"
    own.write_text(f'export PATH=/usr/local/python3.7.5/bin:$PATH\n. "{script}"\n'.replace("$(", "\\$("))
    for setting in (str(script), str(own)):
        found = cann.load(setting, scratch)
        assert found.version == "5.1.RC2"  # of the folder latest beside the script
        assert found.text == f"CANN 5.1.RC2: {setting} (cann in invoke.yaml)"
        assert cann.tool(found, "atc") == script.parent / "latest" / "bin" / "atc"
        with pytest.raises(MissingError, match=r"msame is not on the PATH that .*\.sh \(cann in invoke\.yaml\) makes"):
            cann.tool(found, "msame")
    assert found.environment["PATH"].endswith(f"/usr/local/python3.7.5/bin:{cann.PATH}")
    tools = programs.Tools(lambda: found, tmp_path / "msame", lambda: "", lambda: None)
    assert programs.executable(tools, found, "atc") == script.parent / "latest" / "bin" / "atc"
    assert programs.variables(found, "atc", tmp_path) == {**found.environment, "HOME": str(tmp_path)}
