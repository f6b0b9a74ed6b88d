"""transformers in a process of its own, started and asked by jax_decode.py and jax_gpu.py.

One JSON object per line: the shape first, then what to do; one answer each. It imports torch and transformers and
nothing of llamalab, so any Python that has the two will do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROMPT = 16


class TransformersArm:
    """The other side of this file: starts `python`, sends what to do, reads what it says.

    Raises:
        RuntimeError: torch or transformers cannot be imported there, or the process failed; with its last line.
    """

    def __init__(self, python: str, shape: dict[str, Any]) -> None:
        # Threads that wait for work must not take the core from the arm whose turn it is.
        env = os.environ | {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [python, str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        self.about = self.ask(shape)

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """One question, one answer."""
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            self.close()
            raise RuntimeError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _last_words(self) -> str:
        lines = (self._process.stderr.read() if self._process.stderr else "").strip().splitlines()
        return lines[-1] if lines else "it ended without a word"


def serve() -> None:
    """The child: a model of the shape in the first line, then decoding or prefill as asked."""
    shape = json.loads(sys.stdin.readline())
    try:
        import torch
        import transformers

        if shape["device"] == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("this torch has no CUDA device")
    except (ImportError, RuntimeError) as error:
        say({"error": str(error)})
        return
    torch.set_num_threads(shape["threads"])
    transformers.logging.set_verbosity_error()
    dtype = getattr(torch, shape["dtype"])
    torch.set_default_dtype(dtype)
    with torch.device(shape["device"]):
        config = transformers.LlamaConfig(**shape["config"], attn_implementation="sdpa")
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    say({"torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads()})
    work = Work(model, shape)
    with torch.inference_mode():
        for line in sys.stdin:
            say(work.answer(json.loads(line)))


class Work:
    """What the child does: steps of a text in progress, greedy, on a cache of transformers' own."""

    def __init__(self, model: Any, shape: dict[str, Any]) -> None:
        self.model, self.device, self.static = model, shape["device"], shape["device"] == "cuda"
        self.forward = model.forward
        self.token: Any = None

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """Seconds of what was asked."""
        import torch

        if "begin" in question:
            try:
                self._begin(question["begin"], question["slots"])
            except torch.cuda.OutOfMemoryError:
                return {"memory": True}
            return {}
        begin = time.perf_counter()
        for _ in range(question["steps"]):
            self._step()
        if self.static:
            torch.cuda.synchronize()
        return {"seconds": time.perf_counter() - begin}

    def _begin(self, batch: int, slots: int) -> None:
        import torch
        import transformers

        torch.manual_seed(0)
        ids = torch.randint(0, self.model.config.vocab_size, (batch, PROMPT), device=self.device)
        if self.static:
            self.cache = transformers.StaticCache(config=self.model.config, max_cache_len=slots)
            self.position = torch.tensor([PROMPT], device=self.device)
        else:
            self.cache = transformers.DynamicCache()
        logits = self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits
        self.token = logits[:, -1].argmax(-1, keepdim=True)
        if self.static:
            self.forward = torch.compile(self.model.forward, mode="reduce-overhead", fullgraph=True)
            for _ in range(3):  # compiles, and records the graph
                self._step()
            torch.cuda.synchronize()

    def _step(self) -> None:
        extra = {"cache_position": self.position} if self.static else {}
        out = self.forward(input_ids=self.token, past_key_values=self.cache, use_cache=True, **extra)
        self.token = out.logits[:, -1].argmax(-1, keepdim=True).clone()
        if self.static:
            self.position = self.position + 1


def say(answer: dict[str, Any]) -> None:
    """One line to the parent."""
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
