"""What this process really has in memory. Runs in a process of its own, which `memory_child.py` starts."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamalab.engine import GenerateRequest, SamplingParams
from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.engines.machine import peak_memory

_STATUS = Path("/proc/self/status")
_FIELDS = {"VmHWM": "peak", "RssAnon": "anonymous", "RssFile": "file"}


def measure_process(path: Path) -> dict[str, int]:
    """Memory with the vocabulary open and no weights: {"peak", "anonymous", "file"}, bytes."""
    with LlamaCppEngine(path, vocab_only=True):
        return resident()


def measure_filled(path: Path, options: Mapping[str, Any]) -> dict[str, int]:
    """Memory once every sequence is full: {"peak", "anonymous", "file", "seconds"}, bytes.

    Args:
        path: of the model.
        options: of the engine; `n_ctx` and `n_seq` among them.
    """
    draw = random.Random(0)
    with LlamaCppEngine(path, **options) as engine:
        n_vocab, n_ctx = engine.info.n_vocab, engine.info.n_ctx
        params = SamplingParams(max_tokens=1, temperature=0)
        requests = [
            GenerateRequest([draw.randrange(n_vocab) for _ in range(n_ctx - 1)] or [0], params)
            for _ in range(options["n_seq"])
        ]
        for _ in engine.generate(requests):
            pass
        return resident()


def resident() -> dict[str, int]:
    """{"peak", "anonymous", "file"} of this process, bytes; only "peak" where the system does not split it."""
    if not sys.platform.startswith("linux"):
        return {"peak": peak_memory() or 0, "anonymous": 0, "file": 0}
    lines = (line.split() for line in _STATUS.read_text().splitlines())
    return {_FIELDS[words[0][:-1]]: int(words[1]) * 1024 for words in lines if words[0][:-1] in _FIELDS}
