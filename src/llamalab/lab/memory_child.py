"""The process in which a model is looked at: what it takes is its own, and what ends it ends nothing else.

`Child` starts it and asks; each request and each answer is one line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from llamalab import errors
from llamalab.errors import EngineError, LlamalabError, ModelFileError

_LAST_WORDS = 3
_CRASHES, _KILLED = (-6, -8, -11), -9  # SIGABRT, SIGFPE, SIGSEGV; SIGKILL


class Child:
    """A process of its own for one model file. A context manager: leaving it ends the process.

    Args:
        path: the model file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):  # a request that nobody has read
                    stream.close()
        self._process.wait()
        self._stderr.close()

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """One answer; see `JOBS` for what can be asked.

        Raises:
            LlamalabError: what the child raised, of the same class.
            ModelFileError: llama.cpp ended the child over the file.
            EngineError: the child ended otherwise.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps({"do": do, **request}) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise self._ended(filling=do == "fill")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise getattr(errors, answer["kind"], EngineError)(answer["error"])
        return answer

    def _ended(self, *, filling: bool) -> LlamalabError:
        code = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", "replace").split("\n")
        said = "; ".join([line.strip() for line in lines if line.strip()][-_LAST_WORDS:]) or "it said nothing"
        if code in _CRASHES and not filling:
            return ModelFileError(f"{self._path} is damaged: llama.cpp ends its process over it ({said}).")
        why = "it was killed, as for want of memory" if code == _KILLED else f"exit code {code}"
        return EngineError(f"The process that looked at {self._path} ended ({why}): {said}.")


def main() -> None:
    """Answer the requests on standard input until it ends."""
    # Whatever a runtime prints goes to standard error; standard output is for answers alone.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    path = Path(sys.argv[1])
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = JOBS[request.pop("do")](path, **request)
        except LlamalabError as error:
            answer = {"error": str(error), "kind": type(error).__name__}
        except MemoryError:
            answer = {"error": f"{path} does not fit in memory with these options.", "kind": "OutOfMemory"}
        print(json.dumps(answer), file=answers, flush=True)


# Imports stand inside the jobs: what one of them does not need is not in the memory it measures.


def _process(path: Path) -> Mapping[str, Any]:
    from llamalab.lab.memory_measure import measure_process

    return measure_process(path)


def _fill(path: Path, options: Mapping[str, Any]) -> Mapping[str, Any]:
    from llamalab.lab.memory_measure import measure_filled

    return measure_filled(path, options)


def _dry_run(path: Path, options: Mapping[str, Any]) -> Mapping[str, Any]:
    from llamalab.lab.memory_dry_run import dry_run

    return dry_run(path, options)


def _copied(_path: Path, kinds: list[tuple[str, int, bool]]) -> Mapping[str, Any]:
    from llamalab.lab.memory_copies import learn

    return {"shares": [learn(*kind) for kind in kinds]}


JOBS: Mapping[str, Callable[..., Mapping[str, Any]]] = {
    "process": _process,
    "fill": _fill,
    "dry_run": _dry_run,
    "copied": _copied,
}
"""What can be asked: the memory of a process that holds the vocabulary alone, of one that has filled its context; the
buffers of llama.cpp's dry run; which kinds of tensors it copies."""

if __name__ == "__main__":
    main()
