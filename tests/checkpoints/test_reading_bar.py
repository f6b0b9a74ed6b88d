"""Who waits at a terminal for a large file to be read sees how far that is; nobody else sees anything."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from llamalab.checkpoints import reading_bar
from llamalab.checkpoints.checksum import sha256
from llamalab.cli.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as large."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(reading_bar, "LARGE_BYTES", 1 << 20)
    file = tmp_path / "model[red].gguf"
    file.write_bytes(bytes(3 << 20))
    return file


def test_a_terminal_shows_what_is_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    sha256(model)
    assert "reading model[red].gguf" in sys.stderr.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("stderr", [io.StringIO(), None])
def test_elsewhere_nothing_is_shown(model: Path, stderr: io.StringIO | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stderr)
    sha256(model)
    assert stderr is None or stderr.getvalue() == ""


def test_a_small_file_is_not_worth_a_bar(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(reading_bar, "LARGE_BYTES", 4 << 20)
    sha256(model)
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


def test_a_bar_that_is_there_shows_it_and_there_is_no_second_one(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bar():
        sha256(model)
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "reading model[red].gguf" in shown
    assert "/3" not in shown  # the bar of its own counts megabytes
    assert reading_bar._shown_by == []
