"""Strict scores against transformers in float32: what the two engines promise of an F32 file."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from llamalab.chat import EngineChat
from llamalab.checkpoints.convert import convert
from llamalab.checkpoints.locate import locate
from llamalab.engines import load
from llamalab.scored import ScoreRequest

CONVERSATIONS = {
    "The access code of the Blue Harbor vault is 48213. What is the access code of the Blue Harbor vault?": "48213",
    "Write a short story about a fox.": "Once there was a fox who lived near a river.",
    "Repeat after me: seven small boats": "seven small boats",
    "How much is 23 plus 45?": "68",
}


@pytest.mark.reference
def test_each_token_is_within_a_ten_thousandth_of_a_nat(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    wide, folder = tmp_path / "pico-F32.gguf", tmp_path / "huggingface"
    convert(locate("pico"), wide, to="gguf", dtype="F32")
    convert(wide, folder, to="safetensors")
    with contextlib.closing(load(f"llama_cpp:{wide}", n_seq=0, n_threads=1)) as engine:
        chat = EngineChat(engine)
        asked = [
            ScoreRequest(chat.piece_ids(chat.pieces([{"role": "user", "content": prompt}])), engine.tokenize(response))
            for prompt, response in CONVERSATIONS.items()
        ]
        found = {"llama.cpp": engine.score(asked)}
    with contextlib.closing(load(f"jax:{folder}", n_ctx=512, n_seq=1)) as engine:
        found["JAX"] = engine.score(asked)
        found["JAX, fast"] = engine.score(asked, mode="fast")
    with contextlib.closing(load(f"transformers:{folder}")) as engine:
        expected = engine.score(asked)
    for name, scores in found.items():
        for score, reference in zip(scores, expected, strict=True):
            assert score.logprobs == pytest.approx(reference.logprobs, abs=1e-4), name
