"""Writing a large file whole, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llamalab.errors import ConfigError, ModelFileError


def check_target(target: Path, *, force: bool, sources: Sequence[Path] = ()) -> None:
    """Refuse a target that is in the way of something.

    Args:
        target: file to be written.
        force: a file there may be replaced.
        sources: files that are read meanwhile.

    Raises:
        ConfigError: it is a folder or a device, one of the sources, or exists without `force`.
    """
    if target.is_dir():
        raise ConfigError(f"{target} is a folder; name the file to write.")
    if not target.exists():
        return
    if not target.is_file():
        raise ConfigError(f"{target} is no regular file; name another target.")
    if any(source.exists() and target.samefile(source) for source in sources):
        raise ConfigError(f"{target} is the model to be read; name another target.")
    if not force:
        raise ConfigError(f"{target} exists already; --force replaces it.")


@contextmanager
def whole_file(target: Path, needed: int) -> Iterator[Path]:
    """An empty file beside `target` to write to, put in its place if the block ends well and removed if not.

    Args:
        target: where it will be.
        needed: bytes that will be written.

    Raises:
        ModelFileError: no room for it, or the folder or disk cannot be written.
    """
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if needed > free:
            raise ModelFileError(
                f"{target} needs {needed:,} bytes; {target.parent} has {free:,} free. Nothing was written."
            )
        part.touch()
        yield part
        part.replace(target)
    except OSError as error:
        raise ModelFileError(not_written(target, error)) from error
    finally:
        _remove(part)


def not_written(target: Path, error: OSError) -> str:
    """Why a file cannot be written, for people."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{target} cannot be written: the disk is full. Nothing was left behind."
    if error.errno == errno.EFBIG:
        return (
            f"{target} cannot be written: it is larger than the file system or the limits of this process allow "
            "(ulimit -f). Nothing was left behind."
        )
    return f"{target} cannot be written: {error.strerror or error}."


def _remove(part: Path) -> None:
    try:
        part.unlink(missing_ok=True)
    except OSError:  # a folder that cannot be written, or that is none: nothing of ours is there
        return
