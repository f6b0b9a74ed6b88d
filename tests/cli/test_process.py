"""The command line as a process: exit codes, signals, pipes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import tiny

LLAMALAB = [sys.executable, "-m", "llamalab"]


@pytest.fixture
def endless(model_folder: Path, tmp_path: Path) -> list[str]:
    """A command whose output ends after minutes: a long context, and a grammar that never does."""
    model = tiny.once(model_folder, "long.gguf", lambda path: tiny.write_bpe(path, context=1 << 18))
    (tmp_path / "endless.gbnf").write_text('root ::= "a" root')
    return [*LLAMALAB, "generate", str(model), "hi", "--grammar", "endless.gbnf", "--n-ctx", str(1 << 18)]


def start(command: list[str]) -> subprocess.Popen[str]:
    """With a buffered pipe, as a shell starts it."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, stdin=subprocess.DEVNULL, text=True, env=env)


def test_errors_leave_the_process_with_their_exit_code() -> None:
    done = subprocess.run([*LLAMALAB, "generate", "/no/such.gguf", "hi"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_version_and_help() -> None:
    import llamalab

    def printed(*arguments: str) -> str:
        return subprocess.run([*LLAMALAB, *arguments], capture_output=True, text=True, check=True).stdout

    assert printed("--version") == f"llamalab {llamalab.__version__}\n"
    assert printed() == printed("--help") == printed("-h")


def test_ctrl_c_keeps_what_was_said(endless: list[str]) -> None:
    child = start(endless)
    assert child.stdout is not None
    begun = child.stdout.read(3)
    child.send_signal(signal.SIGINT)
    rest, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert begun + rest == "a" * len(begun + rest[:-1]) + "\n"
    assert errors == ""


def test_closed_pipe_ends_the_process_silently(endless: list[str]) -> None:
    child = start(endless)
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.read(3)
    child.stdout.close()
    assert child.wait(timeout=60) == 1
    assert child.stderr.read() == ""


@pytest.mark.parametrize("arguments", [["--help"], ["models", "--json"]])
def test_pipe_that_is_closed_before_the_output(arguments: list[str]) -> None:
    child = start([*LLAMALAB, *arguments])
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    child.wait(timeout=60)
    assert child.stderr.read() == ""


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["generate", "rlm"])
def test_ctrl_c_at_any_moment_ends_a_command_without_a_traceback(verb: str, tmp_path: Path) -> None:
    """From the moment when our code begins: before it, Python is starting."""
    text = tmp_path / "big.log"
    text.write_text("".join(f"INFO request {n} took {n % 97} ms\n" for n in range(200_000)))
    ask = ["rlm", "ask", "How many lines say 96 ms?", str(text), "--no-journal", "--turns"]
    command = [*LLAMALAB, *(ask if verb == "rlm" else ["--debug", "generate", "Write a story.", "-n", "200"])]
    ends = set()
    for wait in range(100, 1600, 60):
        child = start(command)
        time.sleep(wait / 1000)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=60)
        assert "Traceback" not in errors
        assert "ignored" not in errors
        ends.add(child.returncode)
    assert ends <= {0, 130, -signal.SIGINT}
    assert 130 in ends
