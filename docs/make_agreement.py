"""Draw how near each way of scoring comes to transformers in float32: `python docs/make_agreement.py`.

It scores the same responses with pico through llama.cpp and JAX, strictly and fast, and with each quantisation, and
draws |difference| of each token's log probability. It needs torch and transformers (the [reference] extra).
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from llamalab.chat import EngineChat
from llamalab.checkpoints.convert import convert
from llamalab.checkpoints.locate import locate
from llamalab.engine import GenerateRequest, Generation, SamplingParams
from llamalab.engines import load
from llamalab.lab.quantize import quantize
from llamalab.scored import Scored, ScoreMode, ScoreRequest

PICTURE = Path(__file__).parent / "pictures" / "agreement.svg"
PROMPTS = (
    "The access code of the Blue Harbor vault is 48213. What is the access code of the Blue Harbor vault?",
    "Write a short story about a fox.",
    "Repeat after me: seven small boats",
    "How much is 23 plus 45?",
    "List three colours.",
)
QUANTISATIONS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")
FLOOR = 1e-9


def asked(path: Path) -> list[ScoreRequest]:
    """Three responses of pico to each prompt, as it writes them."""
    found = []
    with contextlib.closing(load(f"llama_cpp:{path}", n_threads=1)) as engine:
        chat = EngineChat(engine)
        for prompt in PROMPTS:
            ids = chat.piece_ids(chat.pieces([{"role": "user", "content": prompt}]))
            params = [SamplingParams(max_tokens=80, seed=seed, temperature=0.7) for seed in range(3)]
            events = engine.generate([GenerateRequest(ids, each) for each in params])
            found += [ScoreRequest(ids, event.ids) for event in events if isinstance(event, Generation)]
    return found


def scores(spec: str, requests: list[ScoreRequest], mode: ScoreMode = "strict", **options: Any) -> np.ndarray:
    """Log probabilities of all tokens, one after the other."""
    with contextlib.closing(load(spec, **options)) as engine:
        answers: list[Scored] = engine.score(requests, mode=mode)
    return np.array([value for answer in answers for value in answer.logprobs])


def main() -> None:
    """Score, print and draw."""
    from matplotlib.figure import Figure

    with tempfile.TemporaryDirectory() as folder:
        wide, files = Path(folder) / "pico-F32.gguf", Path(folder) / "huggingface"
        convert(locate("pico"), wide, to="gguf", dtype="F32")
        convert(wide, files, to="safetensors")
        requests = asked(wide)
        truth = scores(f"transformers:{files}", requests)
        alone = {"n_seq": 0, "n_threads": 1}
        found = {
            "JAX, strict": scores(f"jax:{files}", requests, n_ctx=512, n_seq=1),
            "JAX, fast": scores(f"jax:{files}", requests, "fast", n_ctx=512, n_seq=1),
            "llama.cpp F32, strict": scores(f"llama_cpp:{wide}", requests, **alone),
            "llama.cpp F32, fast (F16 cache)": scores(f"llama_cpp:{wide}", requests, "fast", **alone),
            "the same with flash attention": scores(f"llama_cpp:{wide}", requests, "fast", flash_attn=True, **alone),
        }
        for kind in QUANTISATIONS:
            path = Path(folder) / f"pico-{kind}.gguf"
            quantize(wide, path, kind)
            found[f"llama.cpp {kind}, strict"] = scores(f"llama_cpp:{path}", requests, **alone)
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for row, (name, values) in enumerate(found.items()):
        delta = np.abs(values - truth)
        print(f"{name:36s} largest {delta.max():.1e}, median {np.median(delta):.1e}, mean {delta.mean():.1e} nats")
        spread = row + np.linspace(-0.25, 0.25, len(delta))
        axes.plot(np.maximum(delta, FLOOR), spread, ".", markersize=3, alpha=0.5)
        axes.plot([delta.max()] * 2, [row - 0.35, row + 0.35], color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.set_xlabel("|difference| of a token's log probability from transformers in float32, nats (bar: the largest)")
    axes.axvline(1e-4, color="grey", linestyle="--", linewidth=1)
    axes.grid(alpha=0.3, axis="x")
    figure.savefig(PICTURE)


if __name__ == "__main__":
    main()
