"""How fast is a model here?

Each setup (see `bench_setup.py`) runs in a process of its own, so its peak memory is its own, and what it leaves behind
disturbs nobody.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from llamalab.checkpoints.locate import locate
from llamalab.engines import machine, split_spec
from llamalab.errors import EngineError, LlamalabError
from llamalab.lab.bench_setup import Result, Setup, Test, plan

__all__ = ["RUNTIMES", "Result", "Setup", "Test", "plan", "run"]

RUNTIMES = {"llama_cpp": "llama-cpp-python", "jax": "jaxlib", "transformers": "torch", "meta": "torch"}
"""Provider to the package whose version decides how fast it is."""


def run(setups: Sequence[Setup], progress: Callable[[str], None] = lambda _: None) -> Iterator[Result]:
    """Measure one setup after another; results come as each setup ends.

    Raises:
        LlamalabError: what stopped a setup; results of those before it have been given out.
    """
    for setup in setups:
        yield from _results(setup, progress)


def _results(setup: Setup, progress: Callable[[str], None]) -> list[Result]:
    estimate = _estimate(setup)
    threads = "" if setup.n_threads is None else f", {setup.n_threads} threads"
    what = f"{setup.spec}{threads}" + (f", {setup.n_seq} requests at once" if setup.n_seq > 1 else "")
    progress(f"{what}: loading")
    loaded: dict[str, Any] = {}
    peak: int | None = None
    measured: list[tuple[Test, dict[str, Any]]] = []
    for record in _records(setup):
        if "loaded" in record:
            loaded = record
        elif "test" in record:
            measured.append((setup.tests[record["test"]], record))
        else:
            peak = record["peak_bytes"]
        if len(measured) < len(setup.tests):
            progress(f"{what}: {setup.tests[len(measured)]}")
    n_threads = setup.n_threads or (machine.physical_cores() if setup.provider == "llama_cpp" else None)
    return [
        Result(
            model=loaded["name"],
            spec=setup.spec,
            provider=setup.provider,
            n_params=loaded["n_params"],
            size_bytes=loaded["size_bytes"],
            n_threads=n_threads,
            n_seq=setup.n_seq,
            n_ctx=setup.n_ctx,
            test=str(test),
            kind=test.kind,
            tokens=test.tokens,
            depth=test.depth,
            rates=tuple(record["rates"]),
            first_token=tuple(record["first_token"]),
            load_seconds=loaded["loaded"],
            peak_bytes=peak,
            estimate_bytes=estimate,
            extrapolated="",
            options=dict(setup.options),
            runtime=_runtime(setup.provider),
            processor=machine.processor(),
            cores=machine.physical_cores(),
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        for test, record in measured
    ]


def _records(setup: Setup) -> Iterator[dict[str, Any]]:
    """What the child says, line by line."""
    request = {
        "spec": setup.spec,
        "options": setup.engine_options,
        "n_seq": setup.n_seq,
        "caches": setup.provider == "llama_cpp",
        "repetitions": setup.repetitions,
        "tests": [{"kind": test.kind, "tokens": test.tokens, "depth": test.depth} for test in setup.tests],
    }
    command = [sys.executable, "-m", "llamalab.lab.bench_child"]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True, encoding="utf-8"
        ) as child,
    ):
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # it ended before it read: why, it has written elsewhere
                child.stdin.write(json.dumps(request))
                child.stdin.close()
            ended = False
            for line in child.stdout:
                record = json.loads(line)
                if "error" in record:
                    raise _error(record["kind"], record["error"])
                ended = ended or "peak_bytes" in record
                yield record
            if not ended:
                status = child.wait()
                complaints.seek(0)
                last = complaints.read().strip().splitlines()[-1:] or ["it gave no reason"]
                raise EngineError(
                    f"The process that ran {setup.spec} ended with status {status}: {last[0]}. "
                    "A process that the system kills (-9) has usually taken more memory than there is."
                )
        finally:
            child.kill()


def _error(kind: str, message: str) -> LlamalabError:
    from llamalab import errors

    found = getattr(errors, kind, EngineError)
    try:
        error = found(message)
    except TypeError:  # one that takes more than a message
        return EngineError(message)
    return error if isinstance(error, LlamalabError) else EngineError(message)


def _estimate(setup: Setup) -> int | None:
    """What `llamalab memory` says of a setup; None where that does not know the engine or one of its options."""
    from llamalab.lab.memory import estimate

    options = dict(setup.options)
    kinds = {options.pop("type_k", "f16"), options.pop("type_v", "f16")}
    known = {key: options.pop(key) for key in ("n_batch", "n_ubatch", "flash_attn") if key in options}
    gpu_layers = options.pop("n_gpu_layers", 0)
    options.pop("n_ctx", None)
    if setup.provider != "llama_cpp" or options or len(kinds) > 1:
        return None
    path = locate(split_spec(setup.spec)[1])
    (kind,) = kinds
    try:
        found = estimate(path, n_ctx=setup.n_ctx, n_seq=setup.n_seq, kv_type=kind, gpu_layers=gpu_layers or 0, **known)
    except LlamalabError:  # what is wrong will be said by the engine itself
        return None
    return found.total


def _runtime(provider: str) -> str:
    package = RUNTIMES[provider]
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package
