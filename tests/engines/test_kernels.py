"""Which kernels multiply with the weights, and that scores have the same ones however the engine was opened."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llamalab.checkpoints.convert import convert as write
from llamalab.checkpoints.gguf_file import read_gguf_file
from llamalab.checkpoints.locate import locate
from llamalab.engine import GenerateRequest, Generation, SamplingParams
from llamalab.engines import kernels as module
from llamalab.engines.gguf_header import Header, read_header
from llamalab.engines.kernels import available, identity, kernels_for, offered
from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.engines.options import Options, parse_options
from llamalab.engines.weights import checked_header
from llamalab.errors import ConfigError, ModelFileError, OutOfMemory
from llamalab.scored import ScoreRequest
from llamalab.scoring.fingerprint import _ggml_devices, fingerprint
from tests.scoring.test_fingerprint import Setup

F32, F16, Q4_0, Q8_0, Q2_K, Q4_K, Q6_K, IQ3_S = 0, 1, 2, 8, 10, 12, 14, 21
REQUEST = ScoreRequest(range(5, 40), range(40, 90))

needs_ours = pytest.mark.skipif(not available(), reason="kernels='llamalab' cannot be had here")


@pytest.fixture
def xeon(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A processor with AVX-512 and no compiler beside it."""
    monkeypatch.setattr(module, "_device", lambda: None)
    monkeypatch.setattr(module, "vendor", lambda: "GenuineIntel")
    monkeypatch.setattr(module, "instruction_sets", lambda: frozenset({"avx2", "avx512_vnni"}))
    return monkeypatch


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ({Q4_K: 7, Q6_K: 9}, "plain"),
        ({Q2_K: 7}, "plain"),
        ({Q4_0: 9, Q4_K: 1}, "repacked"),
        ({Q6_K: 9}, "repacked"),
        ({}, "repacked"),
    ],
)
def test_on_such_a_processor_the_types_of_the_file_decide(
    tiny_gguf: Path, xeon: pytest.MonkeyPatch, held: Mapping[int, int], expected: str
) -> None:
    header = _holding(tiny_gguf, held)
    assert kernels_for(header, Options(), scoring=True) == expected
    assert kernels_for(header, Options(), scoring=False) == "repacked"


@needs_ours
@pytest.mark.parametrize(
    ("held", "ours"),
    [({Q4_K: 7, F32: 1}, True), ({Q8_0: 5, IQ3_S: 4}, True), ({Q8_0: 4, IQ3_S: 5}, False), ({F16: 9}, True)],
)
def test_ours_score_files_that_they_mostly_understand(tiny_gguf: Path, held: Mapping[int, int], ours: bool) -> None:
    header = _holding(tiny_gguf, held)
    assert (kernels_for(header, Options(), scoring=True) == "llamalab") is ours
    assert kernels_for(header, Options(), scoring=False) == "repacked"


def test_kernels_that_cannot_be_had_are_refused_where_they_are_asked_for(
    tiny_gguf: Path, xeon: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"kernels='llamalab' needs a processor with AVX-512 VNNI, a C\+\+ compiler"):
        LlamaCppEngine(tiny_gguf, kernels="llamalab")


@needs_ours
def test_ours_are_as_near_to_the_weights_as_llama_cpps(tmp_path: Path) -> None:
    """Both round the rows that they multiply to eight bits; in float32 nothing is rounded so."""
    exact = tmp_path / "exact.gguf"
    write(locate("pico"), exact, to="gguf", dtype="F32")
    rng = np.random.default_rng(0)
    requests = [ScoreRequest(rng.integers(5, 1000, 20).tolist(), rng.integers(5, 1000, 100).tolist()) for _ in range(3)]

    def scores(path: Path, kernels: str) -> np.ndarray[Any, Any]:
        with LlamaCppEngine(path, n_ctx=256, n_seq=0, n_threads=1, kernels=kernels) as engine:
            return np.concatenate([scored.logprobs for scored in engine.score(requests)])

    truth = scores(exact, "auto")
    ours, theirs = (np.abs(scores(locate("pico"), kernels) - truth).mean() for kernels in ("llamalab", "plain"))
    assert 0 < ours < 1.2 * theirs


@needs_ours
def test_only_contexts_that_score_multiply_by_ours(tiny_q8_gguf: Path) -> None:
    def written(*, after_scores: bool) -> Generation:
        request = GenerateRequest(list(range(5, 45)), SamplingParams(max_tokens=8, temperature=0), logprobs=1)
        with LlamaCppEngine(tiny_q8_gguf, n_ctx=128, n_seq=1, n_threads=1) as engine:
            if after_scores:
                engine.score([REQUEST])
            return next(event for event in engine.generate([request]) if isinstance(event, Generation))

    before = _ggml_devices()
    assert written(after_scores=True).logprobs == written(after_scores=False).logprobs
    assert _ggml_devices() == before


@needs_ours
def test_a_device_that_llama_cpp_refuses_is_not_to_be_had(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it refuses one that is made for another version of its interface."""
    monkeypatch.setattr(module._Device, "enter", _refused)
    fresh = module._device.__wrapped__
    monkeypatch.setattr(module, "_device", fresh)
    assert not available()
    assert kernels_for(_holding(tiny_gguf, {Q8_0: 1}), Options(), scoring=True) != "llamalab"


@needs_ours
def test_a_second_copy_that_does_not_fit_is_refused(tiny_q8_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LlamaCppEngine(tiny_q8_gguf, n_ctx=128, n_seq=1, n_threads=1, load_mode="read") as engine:
        monkeypatch.setattr("llamalab.engines.machine.available_memory", lambda: 1000)
        with pytest.raises(OutOfMemory, match=r"beside those that texts are written with, .*n_seq=0"):
            engine.score([REQUEST])


@needs_ours
def test_an_adapter_that_was_replaced_is_not_scored_in_its_place(
    tiny_gguf: Path, tiny_lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(tiny_lora, tmp_path / "lora.gguf")
    monkeypatch.chdir(tmp_path)
    options = {"n_ctx": 128, "n_seq": 1, "n_threads": 1, "adapters": ["lora.gguf"]}
    with LlamaCppEngine(tiny_gguf, **options) as first, LlamaCppEngine(tiny_gguf, **options) as second:
        monkeypatch.chdir("/")
        assert first.score([REQUEST])
        shutil.copy(tiny_lora, tmp_path / "newer.gguf")
        os.utime(tmp_path / "newer.gguf", (1, 1))
        (tmp_path / "newer.gguf").replace(tmp_path / "lora.gguf")
        with pytest.raises(ModelFileError, match="An adapter was replaced"):
            second.score([REQUEST])


@needs_ours
def test_models_load_while_contexts_are_offered_ours(tiny_gguf: Path, tmp_path: Path) -> None:
    """ggml's list of devices is no place for two threads."""
    other = tmp_path / "other.gguf"
    shutil.copy(tiny_gguf, other)
    done = threading.Event()

    def offer() -> None:
        while not done.is_set():
            with offered("llamalab"):
                pass

    threads = [threading.Thread(target=offer) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(30):
            LlamaCppEngine(other, n_ctx=64, n_seq=0, n_threads=1).close()
    finally:
        done.set()
        for thread in threads:
            thread.join()


@needs_ours
@pytest.mark.parametrize(("prompt", "same"), [(3, True), (40, False)])
def test_texts_take_ours_for_many_rows_alone(tiny_q8_gguf: Path, prompt: int, same: bool) -> None:
    """A short prompt and every token after it are llama.cpp's; a long prompt is not."""

    def written(kernels: str) -> object:
        request = GenerateRequest(list(range(5, 5 + prompt)), SamplingParams(max_tokens=6, temperature=0), logprobs=1)
        with LlamaCppEngine(tiny_q8_gguf, n_ctx=128, n_seq=1, n_threads=1, kernels=kernels) as engine:
            return next(each for each in engine.generate([request]) if isinstance(each, Generation)).logprobs

    assert (written("llamalab") == written("plain")) is same


@pytest.mark.parametrize(
    ("vendor", "sets"),
    [("AuthenticAMD", {"avx512_vnni"}), ("GenuineIntel", {"avx2"}), ("", set())],
)
def test_what_was_not_measured_stays_as_llama_cpp_has_it(
    tiny_gguf: Path, xeon: pytest.MonkeyPatch, vendor: str, sets: set[str]
) -> None:
    xeon.setattr(module, "vendor", lambda: vendor)
    xeon.setattr(module, "instruction_sets", lambda: frozenset(sets))
    assert kernels_for(_holding(tiny_gguf, {Q4_K: 1}), Options(), scoring=True) == "repacked"


@pytest.mark.parametrize("asked", ["plain", "repacked"])
def test_the_option_has_the_last_word(tiny_gguf: Path, asked: str) -> None:
    options = parse_options({"kernels": asked})
    for held in ({Q4_K: 1}, {Q8_0: 1}):
        header = _holding(tiny_gguf, held)
        assert kernels_for(header, options, scoring=True) == kernels_for(header, options, scoring=False) == asked
    with pytest.raises(ConfigError, match="kernels must be one of"):
        parse_options({"kernels": "fast"})


def test_the_header_counts_the_bytes_of_each_type(tiny_gguf: Path) -> None:
    tensors = read_gguf_file(tiny_gguf).tensors
    assert sum(read_header(tiny_gguf).tensor_bytes.values()) == sum(each.nbytes for each in tensors.values())


def test_an_engine_scores_alike_whether_it_generates_or_not(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where both kernels are wanted the engine holds both forms, and what it generates comes from the first."""
    chosen = {True: "plain", False: "repacked"}
    monkeypatch.setattr("llamalab.engines.llama_cpp.kernels_for", lambda *_, scoring: chosen[scoring])
    with LlamaCppEngine(tiny_gguf, n_ctx=128, n_seq=0, n_threads=1) as engine:
        (alone,) = engine.score([REQUEST])
        assert engine._scored_model() is engine._model
    with LlamaCppEngine(tiny_gguf, n_ctx=128, n_seq=1, n_threads=1) as engine:
        (beside,) = engine.score([REQUEST])
        assert engine._scored_model() is not engine._model
        list(engine.generate([GenerateRequest([5, 6, 7], SamplingParams(max_tokens=3))]))
    assert alone == beside


def test_the_kernels_are_part_of_a_fingerprint(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keys = {
        fingerprint(Setup(str(tiny_gguf), options={"kernels": asked}), "strict").key
        for asked in ("auto", "plain", "repacked")
    }
    assert len(keys) == (3 if available() else 2)


@needs_ours
def test_another_build_of_ours_is_another_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    assert identity("plain") == "plain"
    first = identity("llamalab")
    monkeypatch.setattr(module, "_device", lambda: SimpleNamespace(name="matmul-other"))
    assert first.startswith("matmul-")
    assert identity("llamalab") == "matmul-other"


def _refused(_: object) -> int:
    raise OSError("llama.cpp refused it")


def _holding(path: Path, held: Mapping[int, int]) -> Header:
    return replace(checked_header(path, vocab_only=False), tensor_bytes=held)
