"""What this process really has in memory. Runs in a process of its own, which `memory_child.py` starts."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamalab.checkpoints.locate import PICO
from llamalab.engine import GenerateRequest, SamplingParams
from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.engines.machine import peak_memory

_STATUS = Path("/proc/self/status")
_FIELDS = {"VmHWM": "peak", "RssAnon": "anonymous", "RssFile": "file"}


def measure_process(path: Path) -> dict[str, int]:
    """Memory with the vocabulary open and no weights: {"peak", "anonymous", "file"}, bytes.

    The built-in model has run before, so that the code that computes is in memory; its weights and context are gone.
    """
    with LlamaCppEngine(path, vocab_only=True):
        peak = resident()["peak"]
        with LlamaCppEngine(PICO, n_ctx=256, n_seq=1, n_gpu_layers=0) as other:
            _run(other, n_seq=1, n_tokens=32)
        return resident() | {"peak": peak}


def measure_filled(path: Path, options: Mapping[str, Any]) -> dict[str, int]:
    """Memory once every sequence is full: {"peak", "anonymous", "file"}, bytes.

    Args:
        path: of the model.
        options: of the engine; `n_ctx` and `n_seq` among them.
    """
    with LlamaCppEngine(path, n_gpu_layers=0, **options) as engine:
        _run(engine, n_seq=options["n_seq"], n_tokens=max(1, engine.info.n_ctx - 1))
        return resident()


def _run(engine: LlamaCppEngine, *, n_seq: int, n_tokens: int) -> None:
    """Prompts of random tokens, and one token after each."""
    draw = random.Random(0)
    prompts = [[draw.randrange(engine.info.n_vocab) for _ in range(n_tokens)] for _ in range(n_seq)]
    params = SamplingParams(max_tokens=1, temperature=0)
    for _ in engine.generate([GenerateRequest(prompt, params) for prompt in prompts]):
        pass


def resident() -> dict[str, int]:
    """{"peak", "anonymous", "file"} of this process, bytes; only "peak" where the system does not split it."""
    if not sys.platform.startswith("linux"):
        return {"peak": peak_memory() or 0, "anonymous": 0, "file": 0}
    lines = (line.split() for line in _STATUS.read_text().splitlines())
    return {_FIELDS[words[0][:-1]]: int(words[1]) * 1024 for words in lines if words[0][:-1] in _FIELDS}
