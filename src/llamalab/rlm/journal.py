"""The journal of a run: JSON lines, from which it can be replayed without any model, and resumed after a crash."""

from __future__ import annotations

from pathlib import Path


def default_journal() -> Path:
    """A new file for the journal of a run, in the user's state folder; the folder is made, the file is not."""
    raise NotImplementedError
