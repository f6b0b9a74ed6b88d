"""C++ compiled on the user's machine: once, by whoever comes first, and nobody needs it."""

from __future__ import annotations

import ctypes
import logging
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from llamalab.native import build

SOURCE = 'extern "C" int answer() { return ANSWER; }\n'
FLAGS = ("-DANSWER=42",)
ASK = """
import sys
from pathlib import Path
from llamalab.native import build
build._SOURCES = Path(sys.argv[1])
print(build.library("answer", flags=("-DANSWER=42",)))
"""


@pytest.fixture(autouse=True)
def _sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source of the test's own, and an empty cache folder."""
    (tmp_path / "answer.cc").write_text(SOURCE)
    monkeypatch.setattr(build, "_SOURCES", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("LLAMALAB_NATIVE", "CXX"):
        monkeypatch.delenv(name, raising=False)


needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in build._COMPILERS), reason="no C++ compiler is here"
)


@needs_compiler
def test_what_is_compiled_runs() -> None:
    loaded = build.load_library("answer", flags=FLAGS)
    assert loaded is not None
    assert loaded.answer() == 42


@needs_compiler
def test_it_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = build.library("answer", flags=FLAGS)
    monkeypatch.setattr(build, "_compile", lambda *_: pytest.fail("compiled again"))
    assert first is not None
    assert build.library("answer", flags=FLAGS) == first


@needs_compiler
def test_another_source_flag_or_version_is_another_library(tmp_path: Path) -> None:
    made = [
        build.library("answer", flags=FLAGS),
        build.library("answer", flags=("-DANSWER=43",)),
        build.library("answer", flags=FLAGS, version="2"),
    ]
    (tmp_path / "answer.cc").write_text(SOURCE.replace("ANSWER;", "ANSWER + 2;"))
    made.append(build.library("answer", flags=FLAGS))
    assert None not in made
    assert len(set(made)) == 4
    assert [ctypes.CDLL(str(path)).answer() for path in made] == [42, 43, 42, 44]


@needs_compiler
def test_two_processes_at_once_get_the_same_library(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ASK, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate(timeout=120)[0].strip() for process in both}
    assert len(paths) == 1
    assert ctypes.CDLL(paths.pop()).answer() == 42
    left = {path.suffix for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert left <= {".so", ".lock"}  # nothing half made


@needs_compiler
def test_a_source_that_does_not_compile_gives_none_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "answer.cc").write_text("int answer( { }\n")
    with caplog.at_level(logging.DEBUG, "llamalab.native.build"):
        assert build.library("answer") is None
    assert "answer.cc cannot be compiled" in caplog.text
    assert "error" in caplog.text
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_without_a_compiler_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert build.library("answer", flags=FLAGS) is None


def test_a_compiler_that_cannot_be_found_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who names one means that one."""
    monkeypatch.setenv("CXX", "no-such-compiler -O0")
    assert build.library("answer", flags=FLAGS) is None


@needs_compiler
def test_the_environment_names_the_compiler_and_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    named = next(name for name in build._COMPILERS if shutil.which(name))
    monkeypatch.setenv("CXX", f"{named} -DANSWER=7")
    loaded = build.load_library("answer")
    assert loaded is not None
    assert loaded.answer() == 7


@pytest.mark.parametrize("how", ["environment", "Windows"])
def test_it_can_be_switched_off(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "Windows":
        monkeypatch.setattr(sys, "platform", "win32")
    else:
        monkeypatch.setenv("LLAMALAB_NATIVE", "0")
    assert build.load_library("answer", flags=FLAGS) is None


@needs_compiler
def test_what_cannot_be_loaded_is_none(tmp_path: Path) -> None:
    made = build.library("answer", flags=FLAGS)
    assert made is not None
    made.write_bytes(b"no library")
    assert build.load_library("answer", flags=FLAGS) is None


@needs_compiler
def test_a_home_that_cannot_be_written_to_gives_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert build.library("answer", flags=FLAGS) is None


@needs_compiler
def test_a_changed_header_is_compiled_anew(tmp_path: Path) -> None:
    first = build.library("answer", flags=FLAGS)
    (tmp_path / "parts.h").write_text("// another\n")
    assert build.library("answer", flags=FLAGS) != first


@needs_compiler
def test_the_environment_may_name_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMALAB_NATIVE", str(tmp_path / "a" / "b"))
    made = build.library("answer", flags=FLAGS)
    assert made is not None
    assert made.parent == tmp_path / "a" / "b"


@needs_compiler
@pytest.mark.parametrize("named", ["g++ '", "false"])
def test_a_compiler_that_fails_is_said_once_and_done_without(
    named: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", named)
    assert build.library("answer", flags=FLAGS) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    build.compiler()


def test_a_folder_that_nobody_has_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMALAB_NATIVE", "~nobody-of-that-name/native")
    assert build.library("answer", flags=FLAGS) is None


def test_a_compiler_that_hangs_is_ended_with_all_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child"
    slow = tmp_path / "slow"
    slow.write_text(f"#!/bin/sh\nsleep 600 & echo $! > {child}; wait\n")
    slow.chmod(0o755)
    monkeypatch.setenv("CXX", str(slow))
    monkeypatch.setattr(build, "_SECONDS", 1)
    assert build.library("answer", flags=FLAGS) is None
    pid = int(child.read_text())
    for _ in range(500):  # a signal takes a moment
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.01)
    pytest.fail("the compiler's child runs on")
