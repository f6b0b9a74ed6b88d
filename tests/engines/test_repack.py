"""Which form of the weights is computed with, and that scores have one form however the engine was opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from llamalab.checkpoints.gguf_file import read_gguf_file
from llamalab.engine import GenerateRequest, SamplingParams
from llamalab.engines import repack as module
from llamalab.engines.gguf_header import Header, read_header
from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.engines.options import Options, parse_options
from llamalab.engines.repack import repacks
from llamalab.engines.weights import checked_header
from llamalab.errors import ConfigError
from llamalab.scored import ScoreRequest
from llamalab.scoring.fingerprint import fingerprint
from tests.scoring.test_fingerprint import Setup

Q4_0, Q2_K, Q4_K, Q6_K = 2, 10, 12, 14
REQUEST = ScoreRequest(range(5, 40), range(40, 90))


@pytest.fixture
def xeon(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(module, "vendor", lambda: "GenuineIntel")
    monkeypatch.setattr(module, "instruction_sets", lambda: frozenset({"avx2", "avx512_vnni"}))
    return monkeypatch


@pytest.mark.parametrize(
    ("held", "rearranged"),
    [({Q4_K: 7, Q6_K: 9}, False), ({Q2_K: 7}, False), ({Q4_0: 9, Q4_K: 1}, True), ({Q6_K: 9}, True), ({}, True)],
)
def test_on_such_a_processor_the_types_of_the_file_decide(
    tiny_gguf: Path, xeon: pytest.MonkeyPatch, held: Mapping[int, int], rearranged: bool
) -> None:
    header = _holding(tiny_gguf, held)
    assert repacks(header, Options(), scoring=True) is rearranged
    assert repacks(header, Options(), scoring=False)


@pytest.mark.parametrize(
    ("vendor", "sets"),
    [("AuthenticAMD", {"avx512_vnni"}), ("GenuineIntel", {"avx2"}), ("", set())],
)
def test_what_was_not_measured_stays_as_llama_cpp_has_it(
    tiny_gguf: Path, xeon: pytest.MonkeyPatch, vendor: str, sets: set[str]
) -> None:
    xeon.setattr(module, "vendor", lambda: vendor)
    xeon.setattr(module, "instruction_sets", lambda: frozenset(sets))
    assert repacks(_holding(tiny_gguf, {Q4_K: 1}), Options(), scoring=True)


@pytest.mark.parametrize("asked", [True, False])
def test_the_option_has_the_last_word(tiny_gguf: Path, xeon: pytest.MonkeyPatch, asked: bool) -> None:
    header = _holding(tiny_gguf, {Q4_K: 1})
    options = parse_options({"repack": asked})
    assert repacks(header, options, scoring=True) is repacks(header, options, scoring=False) is asked
    with pytest.raises(ConfigError, match="repack must be True, False or 'auto'"):
        parse_options({"repack": 1})


def test_the_header_counts_the_bytes_of_each_type(tiny_gguf: Path) -> None:
    tensors = read_gguf_file(tiny_gguf).tensors
    assert sum(read_header(tiny_gguf).tensor_bytes.values()) == sum(each.nbytes for each in tensors.values())


def test_an_engine_scores_alike_whether_it_generates_or_not(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where both forms are wanted the engine holds both, and what it generates comes from the first."""
    monkeypatch.setattr("llamalab.engines.llama_cpp.repacks", lambda *_, scoring: not scoring)
    with LlamaCppEngine(tiny_gguf, n_ctx=128, n_seq=0, n_threads=1) as engine:
        (alone,) = engine.score([REQUEST])
        assert engine._scored_model() is engine._model
    with LlamaCppEngine(tiny_gguf, n_ctx=128, n_seq=1, n_threads=1) as engine:
        (beside,) = engine.score([REQUEST])
        assert engine._scored_model() is not engine._model
        list(engine.generate([GenerateRequest([5, 6, 7], SamplingParams(max_tokens=3))]))
    assert alone == beside


def test_the_form_is_part_of_a_fingerprint(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keys = {
        fingerprint(Setup(str(tiny_gguf), options={"repack": asked}), "strict").key for asked in ("auto", True, False)
    }
    assert len(keys) == 2


def _holding(path: Path, held: Mapping[int, int]) -> Header:
    return replace(checked_header(path, vocab_only=False), tensor_bytes=held)
