"""run.py's decisions: which Python, what the `.venv` needs, what is installed, what the commands do."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lib_lora import interpreters

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lorakit_run", ROOT / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answers(**versions: tuple[int, int]) -> Any:
    return lambda command: versions.get(command[0])


@pytest.mark.parametrize(
    ("versions", "chosen"),
    [
        ({"a": (3, 12), "b": (3, 10), "c": (3, 11)}, "b"),
        ({"a": (3, 9), "c": (3, 11)}, "c"),
        ({"a": (3, 9), "b": (3, 12), "c": (3, 13)}, "b"),
        ({"b": (4, 0)}, "b"),
    ],
)
def test_choice_prefers_the_first_lock(run: ModuleType, versions: dict[str, tuple[int, int]], chosen: str) -> None:
    assert run.choose([["a"], ["b"], ["c"]], answers(**versions)).command == [chosen]


def test_no_python_says_what_to_do(run: ModuleType) -> None:
    with pytest.raises(run.SetupError, match=r"tried: a, b.*Install Python 3.11.*LORAKIT_PYTHON"):
        run.choose([["a"], ["b"], ["a"]], answers(a=(3, 8)))


def test_candidates_begin_with_the_running_python_unless_one_is_named(run: ModuleType) -> None:
    assert list(run.candidates({"LORAKIT_PYTHON": "/x/python"})) == [["/x/python"]]
    found = list(run.candidates({}))
    assert found[0] == [sys.executable]
    assert found.index(["python3.11"]) < found.index(["python3.10"]) < found.index(["python3.12"])


def test_candidates_look_into_pyenv(run: ModuleType, tmp_path: Path) -> None:
    for name in ("3.11.2", "3.10.4", "3.9.1"):
        (tmp_path / "versions" / name).mkdir(parents=True)
    ours = [c[0] for c in run.candidates({"PYENV_ROOT": str(tmp_path)}) if c[0].startswith(str(tmp_path))]
    assert [Path(path).parents[1].name for path in ours] == ["3.11.2", "3.10.4"]


def test_probe_tells_the_version_and_survives_what_is_no_python(run: ModuleType, tmp_path: Path) -> None:
    assert run.probe([sys.executable]) == sys.version_info[:2]
    assert run.probe([str(tmp_path / "none")]) is None
    assert run.probe([sys.executable, "-c", "raise SystemExit(3)", "--"]) is None


def ready(run: ModuleType, level: str, version: tuple[int, int] = (3, 11)) -> dict[str, Any]:
    return {"state": "ready", "version": list(version), "level": level, "hash": run.fingerprint(version, level)}


def test_plan(run: ModuleType) -> None:
    assert run.plan({"state": "absent"}, False, "base") == "make"
    assert run.plan({"state": "making"}, True, "base") == "make"
    assert run.plan(ready(run, "base"), True, "base") == "nothing"
    assert run.plan(ready(run, "base"), True, "dev") == "install"
    assert run.plan(ready(run, "dev"), True, "base") == "nothing"
    assert run.plan(ready(run, "dev"), False, "dev") == "make"
    assert run.plan({**ready(run, "dev"), "hash": "old"}, True, "base") == "install"
    with pytest.raises(run.SetupError, match="not made by run.py"):
        run.plan({"state": "foreign"}, True, "base")


def test_stamp_states(run: ModuleType, tmp_path: Path) -> None:
    venv = tmp_path / ".venv"
    assert run.read_stamp(venv)["state"] == "absent"
    venv.mkdir()
    assert run.read_stamp(venv)["state"] == "absent"
    (venv / "pyvenv.cfg").write_text("")
    assert run.read_stamp(venv)["state"] == "foreign"
    run.write_stamp(venv, {"state": "making"})
    assert run.read_stamp(venv) == {"state": "making"}
    (venv / run.STAMP).write_text('{"sta')
    assert run.read_stamp(venv)["state"] == "making"
    assert [path.name for path in venv.glob("*.tmp")] == []


def test_fingerprint_follows_content_and_version(
    run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "requirements"
    folder.mkdir()
    for name in ("base.txt", "dev.txt", "newest.txt"):
        (folder / name).write_bytes(b"torch==1\n")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    first = run.fingerprint((3, 11), "base")
    (folder / "base.txt").write_bytes(b"torch==1\r\n")
    assert run.fingerprint((3, 11), "base") == first  # a checkout on Windows is no change
    assert run.fingerprint((3, 10), "base") != first
    (folder / "base.txt").write_bytes(b"torch==2\n")
    assert run.fingerprint((3, 11), "base") != first
    assert run.lock_files((3, 12), "dev") == [folder / "newest.txt"]


@pytest.mark.parametrize(
    ("platform", "nvidia", "first"),
    [("linux", False, "+cpu"), ("linux", True, ""), ("darwin", False, ""), ("win32", False, "")],
)
def test_cpu_build_is_tried_where_it_exists(run: ModuleType, platform: str, nvidia: bool, first: str) -> None:
    choices = run.torch_choices(ROOT / "requirements" / "base.txt", platform, nvidia)
    assert choices[0] == choices[-1].removesuffix("+cpu") + first
    assert re.fullmatch(r"torch==[\d.]+", choices[-1])


def test_locks_are_exact() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        assert all(re.match(r"[A-Za-z0-9_.-]+==[^\s=]+( ; .+)?$", line) for line in lines), path
        names = [(line.split("==")[0].lower(), line.partition(";")[2]) for line in lines]
        assert len(set(names)) == len(names), path


def test_parser(run: ModuleType) -> None:
    args = run.parser().parse_args(["demo", "--photos", "p", "--class", "dog", "--checkpoint", "c", "--out", "o"])
    assert (args.photos, args.class_word, args.checkpoint, args.out) == (Path("p"), "dog", Path("c"), Path("o"))
    assert run.parser().parse_args(["ui"]).port == 7866
    args, rest = run.parser().parse_known_args(["test", "-k", "name", "tests/ui"])
    assert args.command == "test" and rest == ["-k", "name", "tests/ui"]


def test_unknown_argument_ends_with_2_before_any_set_up(run: ModuleType) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main(["ui", "--nonsense"])
    assert ended.value.code == 2


def commands(*codes: int) -> list[tuple[str, list[str]]]:
    return [(f"step{i}", [sys.executable, "-c", f"raise SystemExit({code})"]) for i, code in enumerate(codes)]


@pytest.mark.parametrize(("codes", "code"), [((0, 0), 0), ((0, 3, 0), 3)])
def test_checks_stop_at_the_first_failure(
    run: ModuleType, capfd: pytest.CaptureFixture[str], codes: Sequence[int], code: int
) -> None:
    assert run.run_checks(commands(*codes)) == code
    summary = capfd.readouterr().out.splitlines()[-1]
    assert "step0 ok" in summary
    assert ("step1 FAILED (3)" in summary and "step2 not run" in summary) == bool(code)


def test_pip_failure_shows_its_errors_and_the_log(run: ModuleType, tmp_path: Path) -> None:
    log = tmp_path / "install.log"
    code = run.run_logged([sys.executable, "-c", "print('noise'); print('ERROR: no such thing'); exit(1)"], log)
    text = str(run.pip_failed(log))
    assert code == 1 and "ERROR: no such thing" in text and "noise" not in text and str(log) in text


def test_help_needs_no_packages() -> None:
    environ = {**os.environ, "LORAKIT_PYTHON": "/nowhere"}
    done = subprocess.run(
        [sys.executable, "-S", str(ROOT / "run.py"), "--help"], capture_output=True, text=True, env=environ, check=False
    )
    assert done.returncode == 0 and "demo" in done.stdout and "test" in done.stdout


def test_a_file_in_place_of_the_venv_is_left_alone(run: ModuleType, tmp_path: Path) -> None:
    (tmp_path / ".venv").write_text("mine")
    assert run.read_stamp(tmp_path / ".venv")["state"] == "foreign"
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / run.STAMP).write_text("{}")
    assert run.read_stamp(tmp_path / "half")["state"] == "making"


def test_a_folder_that_cannot_be_written_is_one_line(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(level: str) -> Path:
        raise PermissionError(13, "Permission denied", "/x/.venv")

    monkeypatch.delenv("LORAKIT_INSIDE", raising=False)
    monkeypatch.setattr(run, "ensure_venv", refuse)
    assert run.main(["demo"]) == 2
    error = capsys.readouterr().err
    assert "Permission denied" in error and error.count("\n") == 1


def test_windows_takes_its_own_paths_and_waits_for_the_child(run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def child(command: list[str], **_: Any) -> Any:
        asked.append(command)
        return subprocess.CompletedProcess(command, 7)

    venv = Path("a folder with spaces") / ".venv"
    monkeypatch.setattr(run.subprocess, "run", child)
    windows = SimpleNamespace(**{**vars(os), "name": "nt"})  # for these two modules alone: pathlib stays what it is
    monkeypatch.setattr(run, "os", windows)
    monkeypatch.setattr(interpreters, "os", windows)
    python = run.venv_python(venv)
    code = run.again(python, ["demo", "--class", "my dog"])
    py = ["py", "-3.11"] in list(run.candidates({"LORAKIT_PYTHON": ""}))
    assert python.parts[-3:] == (".venv", "Scripts", "python.exe")
    assert code == 7 and py and asked[0][0] == str(python) and asked[0][2:] == ["demo", "--class", "my dog"]
