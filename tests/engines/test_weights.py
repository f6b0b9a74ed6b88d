"""What a loaded model says of itself, one copy of its weights, and everything freed."""

from __future__ import annotations

import gc
import shutil
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest

from llamalab.engine import GenerateRequest, SamplingParams
from llamalab.engines import sampling, weights
from llamalab.engines.kernels import kernels_for
from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.errors import EngineError, InputError, ModelFileError, SchemaError
from llamalab.scored import ScoreRequest
from tests import tiny


def test_info_is_what_the_file_was_written_with(tmp_path: Path):
    recommended = {"temp": 0.25, "top_k": 20, "top_p": 0.5, "min_p": 0.125, "penalty_repeat": 1.5}
    path = tiny.write_bpe(tmp_path / "model.gguf", sampling=recommended)
    with LlamaCppEngine(path, n_ctx=100, n_threads=1) as engine:
        info = engine.info
    tensors = list(tiny.llama_weights(info.n_vocab, seed=0))
    assert info.name == "tiny"
    assert info.provider == "llama_cpp"
    assert info.path == str(path)
    assert info.architecture == "llama"
    assert info.n_params == sum(value.size for _, value in tensors)
    assert info.size_bytes == sum(value.nbytes for _, value in tensors)
    assert (info.context_length, info.n_ctx) == (tiny.CONTEXT, 100)
    assert info.special_tokens == {text: info.n_vocab - 6 + i for i, text in enumerate(tiny.CONTROL)}
    assert info.bos_id == info.special_tokens["<|bos|>"]
    assert info.eos_id == info.special_tokens["<|eos|>"]
    assert info.stop_ids == {info.special_tokens["<|eos|>"], info.special_tokens["<|end|>"]}
    assert info.add_bos
    assert info.chat_template == tiny.TEMPLATE
    assert info.sampling == {"temperature": 0.25, "top_k": 20, "top_p": 0.5, "min_p": 0.125, "repeat_penalty": 1.5}


def test_a_file_without_template_or_recommendations(tmp_path: Path):
    path = tiny.write_bpe(tmp_path / "plain.gguf", template=None)
    with LlamaCppEngine(path, n_threads=1) as engine:
        assert engine.info.chat_template is None
        assert engine.info.sampling == {}
        assert engine.info.n_ctx == tiny.CONTEXT


def test_a_context_beyond_the_training_warns(tiny_gguf: Path):
    with pytest.warns(UserWarning, match="trained for 512 tokens of context, less than n_ctx=1024"):
        LlamaCppEngine(tiny_gguf, n_ctx=1024, n_threads=1).close()


@pytest.fixture
def own_gguf(tiny_gguf: Path, tmp_path: Path) -> Path:
    """A copy that no other test has loaded."""
    return Path(shutil.copy(tiny_gguf, tmp_path / "own.gguf"))


def loaded(path: Path) -> bool:
    return any(weights.file_states([path]) == key[0] for key in weights._loaded)


def test_engines_on_one_file_share_its_weights(own_gguf: Path, tmp_path: Path):
    link = tmp_path / "link.gguf"
    link.symlink_to(own_gguf)
    first = LlamaCppEngine(own_gguf, n_threads=1)
    second = LlamaCppEngine(link, n_ctx=64, n_threads=1)
    other = LlamaCppEngine(own_gguf, load_mode="read", n_threads=1)
    assert first._weights is second._weights
    assert first._weights is not other._weights
    first.close()
    assert second.score([ScoreRequest([1, 2], [3])])[0].total < 0
    second.close()
    other.close()
    assert not loaded(own_gguf)


def test_a_file_that_was_replaced_is_loaded_again(tiny_gguf: Path, tmp_path: Path):
    path = tmp_path / "model.gguf"
    shutil.copy(tiny_gguf, path)
    with LlamaCppEngine(path, n_threads=1) as before:
        newer = tiny.write_bpe(tmp_path / "newer.gguf", seed=9)
        newer.replace(path)
        with LlamaCppEngine(path, n_threads=1) as after:
            text = [5, 6, 7, 8]
            assert not np.array_equal(before.logits(text), after.logits(text))


def test_texts_and_scores_of_an_engine_are_of_one_file(tiny_q8_gguf: Path, tmp_path: Path):
    """Scores may need the weights in another form, and load them when the first score is asked for."""
    path = tmp_path / "model.gguf"
    shutil.copy(tiny_q8_gguf, path)
    with LlamaCppEngine(path, n_threads=1) as engine:
        if kernels_for(engine._weights.header, engine.options, scoring=True) == "repacked":
            pytest.skip("scores take the weights as texts do")
        tiny.write_bpe(tmp_path / "newer.gguf", seed=9).replace(path)
        with pytest.raises(ModelFileError, match="was replaced after this engine had loaded it"):
            engine.score([ScoreRequest([1, 2], [3])])


def test_an_adapter_for_another_model_is_refused_and_nothing_stays_loaded(own_gguf: Path, tmp_path: Path):
    adapter = tiny.write_lora(tmp_path / "wide.gguf", width=128)
    with pytest.raises(ModelFileError, match=r"The adapter .*wide\.gguf does not fit this model"):
        LlamaCppEngine(own_gguf, adapters=adapter, n_threads=1)
    with pytest.raises(ModelFileError, match="is not an adapter"):
        LlamaCppEngine(own_gguf, adapters=own_gguf, n_threads=1)
    assert not loaded(own_gguf)


def test_an_engine_left_to_the_collector_is_freed(own_gguf: Path):
    engine = LlamaCppEngine(own_gguf, n_threads=1)
    assert loaded(own_gguf)
    del engine
    gc.collect()
    assert not loaded(own_gguf)


def test_loading_and_freeing_does_not_grow(tiny_gguf: Path, tiny_lora: Path):
    """Fifty rounds of everything; a context alone has over a megabyte, so one leaked each time would show.

    In each half of them: the allocator takes some megabytes more now and then, a leak takes them every time.
    """

    def round_trip() -> None:
        with LlamaCppEngine(tiny_gguf, n_threads=1, adapters=tiny_lora, load_mode="read") as engine:
            free = GenerateRequest([1, 2, 3], SamplingParams(max_tokens=3), logprobs=2)
            bound = GenerateRequest([1, 2, 3], SamplingParams(max_tokens=3), schema={"type": "integer"})
            spelt = GenerateRequest([1, 2, 3], SamplingParams(max_tokens=3), grammar='root ::= "a"')
            list(engine.generate([free, bound, spelt]))
            next(engine.generate([free, free]))
            engine.score([ScoreRequest([1], [2, 3])])

    process = psutil.Process()
    for _ in range(10):
        round_trip()
    held = []
    for rounds in (25, 25, 0):
        gc.collect()
        held.append(process.memory_info().rss)
        for _ in range(rounds):
            round_trip()
    assert min(later - before for before, later in pairwise(held)) < 8 * 2**20


def test_every_sampler_is_freed(own_gguf: Path, monkeypatch: pytest.MonkeyPatch):
    """However a response ends: by itself, cut, refused, cancelled, unread, or with the engine."""
    made, freed = [], []
    make, free = sampling.api.llama_sampler_chain_init, sampling.api.llama_sampler_free
    monkeypatch.setattr(sampling.api, "llama_sampler_chain_init", lambda params: made.append(1) or make(params))
    monkeypatch.setattr(sampling.api, "llama_sampler_free", lambda chain: freed.append(1) or free(chain))
    asked = GenerateRequest([1, 2, 3], SamplingParams(max_tokens=30, ignore_eos=True))
    none = replace(asked, params=SamplingParams(max_tokens=0))
    cancel = threading.Event()
    cancel.set()
    with LlamaCppEngine(own_gguf, n_threads=1, n_seq=2) as engine:
        list(engine.generate([asked, asked, asked, none, replace(asked, cancel=cancel)]))
        with pytest.raises(InputError):
            engine.generate([asked, GenerateRequest([])])
        with pytest.raises(SchemaError):
            engine.generate([asked, replace(asked, grammar="root ::= (")])
        with pytest.raises(EngineError):
            list(engine.generate([replace(asked, grammar="root ::= <[99999]>")]))
        unread = engine.generate([asked] * 4)
        next(unread)
        del unread
        list(engine.generate([asked]))
        open_at_the_end = engine.generate([asked] * 4)
        next(open_at_the_end)
    assert len(made) == len(freed) > 15
