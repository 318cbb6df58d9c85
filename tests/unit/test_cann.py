"""CANN on a machine: its set_env.sh is sourced in an empty environment, and what it leaves is all that tools get."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deberta.ascend import cann, programs
from deberta.core.errors import ConfigError, MissingError, StageError

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


def test_finding_the_script(script: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent" / "set_env.sh"
    assert cann.present([absent]) is None and cann.present([absent, script]) == script
    assert cann.find("", [absent, script]) == script
    with pytest.raises(MissingError, match=r"there is no .*absent/set_env\.sh\. Install the CANN toolkit, or name"):
        cann.find("", [absent])
    (tmp_path / "Ascend").mkdir()
    (tmp_path / "Ascend" / "ascend-toolkit").symlink_to(script.parent)
    for setting in (script, script.parent, tmp_path / "Ascend"):
        assert cann.find(str(setting), [absent]).samefile(script)
    for setting in (absent, tmp_path):  # a wrong setting never falls back to another CANN
        with pytest.raises(ConfigError, match=r"cann in invoke\.yaml is .*: no set_env\.sh is there"):
            cann.find(str(setting), [script])


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
        assert cann.tool(found, "atc") == script.parent / "latest" / "bin" / "atc"
        with pytest.raises(MissingError, match=r"msame is not on the PATH that .*\.sh makes"):
            cann.tool(found, "msame")
    assert found.environment["PATH"].endswith(f"/usr/local/python3.7.5/bin:{cann.PATH}")
    tools = programs.Tools(lambda: found, tmp_path / "msame", lambda: "")
    assert programs.executable(tools, found, "atc") == script.parent / "latest" / "bin" / "atc"
    assert programs.variables(found, "atc", tmp_path) == {**found.environment, "HOME": str(tmp_path)}
