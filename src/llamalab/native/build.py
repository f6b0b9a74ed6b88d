"""A C++ file of this package as a shared library, compiled once for the processor at hand.

Nothing depends on it: where there is no compiler, or `LLAMALAB_NATIVE=0` is in the environment, whoever asks gets None
and computes by other means. Any other value of that variable is the folder for what is compiled.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from llamalab.checkpoints.folders import cache_folder

FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared")
"""Of every library."""

_SOURCES = Path(__file__).parent
_COMPILERS = ("c++", "g++", "clang++")
_SECONDS = 120
_log = logging.getLogger(__name__)


def library(source: str, *, flags: Sequence[str] = (), version: str = "") -> Path | None:
    """The shared library that `source` makes; compiled if that was not done before.

    What is compiled lies in the user's cache folder. It is compiled anew where the source, a header of this package,
    the flags, `version`, the compiler or what the processor can do is another. Many processes may ask at once: one
    compiles.

    Args:
        source: name of a file of this package, without `.cc`.
        flags: for the compiler besides `FLAGS`: include folders, `-fopenmp`.
        version: of what is included from elsewhere.

    Returns:
        None where there is no compiler (`$CXX`, c++, g++, clang++), where it refuses (with a warning in the log), on
        Windows, and where the environment says `LLAMALAB_NATIVE=0`.
    """
    said = os.environ.get("LLAMALAB_NATIVE", "")
    if said == "0" or sys.platform == "win32":
        return None
    file = _SOURCES / f"{source}.cc"
    try:
        compiler = _compiler()
        if compiler is None:
            _log.debug("There is no C++ compiler: %s.cc is not used.", source)
            return None
        command = [*compiler, *FLAGS, *flags]
        # The macros that a compiler defines say its version and every instruction set it may use.
        macros = _run([*command, "-dM", "-E", "-x", "c++", os.devnull])
        headers = [header.read_bytes() for header in sorted(_SOURCES.glob("*.h"))]
        parts = (file.read_bytes(), *headers, repr(command).encode(), version.encode(), macros)
        digest = hashlib.sha256(b"\0".join(parts)).hexdigest()
        made = _folder(said) / f"{source}-{digest[:32]}.so"
        if not made.exists():
            _compile([*command, str(file)], made)
    except (OSError, ValueError, RuntimeError, subprocess.SubprocessError) as error:
        # Not to be passed over in silence: what is computed by other means has other last bits.
        _log.warning("%s.cc cannot be compiled and is done without: %s", source, _reason(error))
        return None
    return made


def compiler() -> str | None:
    """The C++ compiler that `library` takes; None where it would compile nothing."""
    if os.environ.get("LLAMALAB_NATIVE") == "0" or sys.platform == "win32":
        return None
    try:
        command = _compiler()
    except ValueError:  # a quote in $CXX that nothing closes
        return None
    return None if command is None else shlex.join(command)


def load_library(source: str, *, flags: Sequence[str] = (), version: str = "") -> ctypes.CDLL | None:
    """`library`, loaded; None also where the system does not let it be loaded."""
    path = library(source, flags=flags, version=version)
    if path is None:
        return None
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        _log.warning("%s cannot be loaded and is done without: %s. Remove it, and it is compiled anew.", path, error)
        return None


def _folder(said: str) -> Path:
    if not said:
        return cache_folder("native")
    folder = Path(said).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _compiler() -> list[str] | None:
    """The command of the user's C++ compiler, by its full path."""
    named = os.environ.get("CXX")
    for command in [shlex.split(named)] if named else [[name] for name in _COMPILERS]:
        if command and (path := shutil.which(command[0])) is not None:
            return [path, *command[1:]]
    return None


def _compile(command: list[str], made: Path) -> None:
    """Run `command` into `made`: whole or not at all, and not twice at the same time."""
    from filelock import FileLock

    with FileLock(made.with_suffix(".lock"), timeout=_SECONDS, mode=0o666):
        if made.exists():
            return
        with tempfile.TemporaryDirectory(dir=made.parent) as folder:
            fresh = Path(folder) / made.name
            _run([*command, "-o", str(fresh)])
            with fresh.open("rb") as written:
                os.fsync(written.fileno())
            fresh.replace(made)


def _run(command: list[str]) -> bytes:
    """What a command writes; one that takes too long is ended with all that it started."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, start_new_session=True) as process:  # type: ignore[call-overload]
        try:
            out, err = process.communicate(timeout=_SECONDS)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, out, err)
    return bytes(out)


def _reason(error: Exception) -> str:
    said = error.stderr if isinstance(error, subprocess.CalledProcessError) else b""
    return f"{error} {said.decode('utf-8', 'replace').strip()}"
