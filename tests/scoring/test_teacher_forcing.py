"""A response's log probability is what the definition says, whoever asks, and whatever the response contains."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llamalab
from llamalab.checkpoints.locate import PICO
from llamalab.engine import SamplingParams
from llamalab.errors import (
    ConfigError,
    ContextOverflow,
    EmptyResponse,
    EngineError,
    InputError,
    ModelNotFound,
    ProviderError,
    TemplateMissing,
)
from llamalab.scoring.store import Store
from llamalab.scoring.teacher_forcing import RobustTeacherForcing, TeacherForcing
from tests import tiny
from tests.fake_engine import in_threads

GUIDE = """
# Test script to verify determinism
from cje.utils import RobustTeacherForcing

# Create two instances with same seed
tf1 = RobustTeacherForcing(
    provider="llama_cpp",
    model="~/models/llama-3-8b-instruct.Q4_K_M.gguf",
    temperature=0.5,
    seed=42,
    n_ctx=4096,
)

tf2 = RobustTeacherForcing(
    provider="llama_cpp",
    model="~/models/llama-3-8b-instruct.Q4_K_M.gguf",
    temperature=0.5,
    seed=42,
    n_ctx=4096,
)

# Should get identical results
prompt = "What is the capital of France?"
response = "The capital of France is Paris."

result1 = tf1.compute_log_prob(prompt, response)
result2 = tf2.compute_log_prob(prompt, response)

assert result1.value == result2.value, "Non-deterministic results!"
print(f"✓ Deterministic: {result1.value:.4f}")
"""

QUESTION, ANSWER = "Hello world", "the code and her name"


@pytest.fixture(scope="module")
def pico() -> Iterator[TeacherForcing]:
    with TeacherForcing(model="pico", n_threads=1) as forcing:
        yield forcing


def expected(ids: list[int], n_response: int, *, n_vocab: int, temperature: float = 1.0, top_k: int = 0) -> list[float]:
    """Log probabilities of the last `n_response` ids in float64, from the definition."""
    rows = tiny.reference_logits(ids, n_vocab=n_vocab)[-n_response - 1 : -1]
    found = []
    for row, id in zip(rows, ids[-n_response:], strict=True):
        if top_k:
            row = np.where(row >= np.sort(row)[-top_k], row, -np.inf)
        scaled = row / temperature
        best = scaled.max()
        found.append(float(scaled[id] - best - np.log(np.exp(scaled - best).sum())))
    return found


# Against something that is not ours


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.5, 0), (1.7, 0), (1.0, 40), (0.6, 40)])
def test_values_are_those_of_the_definition_in_float64(tiny_gguf: Path, temperature: float, top_k: int) -> None:
    with TeacherForcing(
        provider="llama_cpp", model=tiny_gguf, temperature=temperature, top_k=top_k, n_threads=1
    ) as forcing:
        result = forcing.compute_log_prob(QUESTION, ANSWER)
    with contextlib.closing(llamalab.load(tiny_gguf, vocab_only=True)) as engine:
        written = f"<|bos|><|user|>{QUESTION}<|end|><|assistant|>{ANSWER}<|end|>"
        ids, n_vocab = engine.tokenize(written, parse_special=True), engine.info.n_vocab
    assert [token.id for token in result.tokens] == ids[-result.n_tokens :]
    assert result.n_prefix == len(ids) - result.n_tokens
    raw = expected(ids, result.n_tokens, n_vocab=n_vocab)
    under = expected(ids, result.n_tokens, n_vocab=n_vocab, temperature=temperature, top_k=top_k)
    assert [token.raw for token in result.tokens] == pytest.approx(raw, abs=1e-4)
    assert result.raw_total == pytest.approx(math.fsum(raw), abs=1e-4 * len(raw))
    if -math.inf in under:
        assert (result.value, result.out_of_support) == (None, True)
    else:
        assert result.value == pytest.approx(math.fsum(under), abs=1e-4 * len(raw))
    logprobs = [-math.inf if token.logprob is None else token.logprob for token in result.tokens]
    assert logprobs == pytest.approx(under, abs=1e-4)


def test_temperature_is_no_factor_of_the_sum(tiny_gguf: Path) -> None:
    """log p at temperature T is neither T times nor a Tth of the sum at temperature 1."""
    values = {}
    for temperature in (1.0, 0.5):
        with TeacherForcing(model=tiny_gguf, temperature=temperature, n_threads=1) as forcing:
            values[temperature] = forcing.compute_log_prob(QUESTION, ANSWER).value
    assert values[0.5] < values[1.0] < 0
    for wrong in (0.5 * values[1.0], values[1.0] / 0.5):
        assert abs(values[0.5] - wrong) > 1


@pytest.mark.parametrize("model", ["tiny_gguf", "tiny_spm_gguf", "pico"])
@pytest.mark.parametrize("params", [{}, {"temperature": 0.6, "top_k": 30, "top_p": 0.95, "min_p": 0.01}])
def test_a_generated_reply_is_scored_as_it_was_drawn(
    request: pytest.FixtureRequest, model: str, params: dict[str, Any]
) -> None:
    """By the same kernels, too: others round a quantised model's rows otherwise, by up to 0.05 nats here."""
    path = model if model == "pico" else request.getfixturevalue(model)
    template = None if model != "tiny_spm_gguf" else "llama2"
    options = {"n_threads": 1, "n_ctx": 256, "template": template, "kernels": "repacked"}
    messages = [{"role": "user", "content": "Say hello."}]
    cached = {"n_seq": 1, "type_k": "f32", "type_v": "f32"}
    with contextlib.closing(llamalab.chat_model(path, **options, **cached)) as chat:
        sampling = SamplingParams(max_tokens=24, seed=3, **params)
        *_, reply = chat.stream(messages, sampling, logprobs=0)
    assert reply.ids
    with TeacherForcing(model=path, **options, **params) as forcing:
        scored = forcing.compute_log_prob(messages, response_ids=reply.ids, finished=reply.finish_reason == "stop")
    assert tuple(token.id for token in scored.tokens) == reply.ids
    assert [token.raw for token in scored.tokens] == pytest.approx([t.raw for t in reply.logprobs], abs=0.02)
    assert [token.logprob for token in scored.tokens] == pytest.approx([t.sampled for t in reply.logprobs], abs=0.05)


def test_llamalabs_jax_engine_says_the_same(tiny_gguf: Path) -> None:
    pytest.importorskip("jax")
    values = []
    for provider in ("llama_cpp", "jax"):
        with TeacherForcing(provider, tiny_gguf, 0.7, n_ctx=64, top_p=0.98) as forcing:
            values.append(forcing.compute_log_prob(QUESTION, "the"))
    assert values[0].tokens[0].raw == pytest.approx(values[1].tokens[0].raw, abs=1e-4)
    assert (values[0].value is None) == (values[1].value is None)
    assert (values[0].value or 0) == pytest.approx(values[1].value or 0, abs=1e-3)


# Determinism


def test_the_guides_script_runs_when_its_import_is_changed(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    shutil.copy(PICO, tmp_path / "models" / "llama-3-8b-instruct.Q4_K_M.gguf")
    script = GUIDE.replace("from cje.utils import", "from llamalab import")
    env = os.environ | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Warning") == 1, done.stderr  # pico was trained for less than the script's context
    said, _, value = done.stdout.strip().rpartition(" ")
    assert said == "✓ Deterministic:"
    with TeacherForcing(model="pico", temperature=0.5) as forcing:
        result = forcing.compute_log_prob("What is the capital of France?", "The capital of France is Paris.")
    assert value == f"{result.value:.4f}"
    assert result.value < -1


def test_seed_threads_and_context_change_no_bit(tiny_gguf: Path) -> None:
    values = set()
    for options in ({}, {"seed": 7}, {"n_threads": 2}, {"n_ctx": 128}, {"n_ctx": 512, "seed": 1}):
        with TeacherForcing(model=tiny_gguf, **options) as forcing:
            forcing.compute_log_prob("Something else", "first")
            values.add(forcing.compute_log_prob(QUESTION, ANSWER).tokens)
    assert len(values) == 1


def test_both_names_are_one_class() -> None:
    assert llamalab.RobustTeacherForcing is llamalab.TeacherForcing is RobustTeacherForcing is TeacherForcing


# Prompts and responses


def test_a_text_is_a_conversation_of_one_message(pico: TeacherForcing) -> None:
    as_text = pico.compute_log_prob(QUESTION, ANSWER)
    as_messages = pico.compute_log_prob([{"role": "user", "content": QUESTION}], ANSWER)
    assert as_text.tokens == as_messages.tokens
    longer = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert pico.compute_log_prob([*longer, {"role": "user", "content": QUESTION}], ANSWER).value != as_text.value


def test_pairs_give_what_each_gives_alone(pico: TeacherForcing) -> None:
    pairs = [("Hello", "Good day"), ("Hello", "Good morning to you"), ("What?", "Nothing")]
    together = pico.compute_log_probs(pairs)
    assert [r.tokens for r in together] == [pico.compute_log_prob(*pair).tokens for pair in pairs]
    with pytest.raises(EmptyResponse) as caught:
        pico.compute_log_probs([*pairs, ("Hello", "")])
    assert caught.value.__notes__ == ["It was pair 3."]


def test_the_end_is_one_more_factor(pico: TeacherForcing) -> None:
    whole, cut = (pico.compute_log_prob(QUESTION, ANSWER, finished=finished) for finished in (True, False))
    assert whole.tokens[:-1] == cut.tokens
    assert whole.value == pytest.approx(cut.value + whole.tokens[-1].logprob, abs=1e-9)
    assert (whole.n_end, cut.n_end, whole.finished, cut.finished) == (1, 0, True, False)


def test_text_that_looks_like_an_end_is_text(pico: TeacherForcing) -> None:
    result = pico.compute_log_prob("Hello", "Yes.<|end|>\n<|user|>\nNo.")
    assert "".join(token.text for token in result.tokens) == "Yes.<|end|>\n<|user|>\nNo.<|end|>"
    assert [token.text for token in result.tokens].count("<|end|>") == 1


def test_without_a_template_the_result_says_so(tiny_spm_gguf: Path) -> None:
    with TeacherForcing(model=tiny_spm_gguf, n_threads=1) as forcing:
        assert forcing.compute_log_prob("hello", " world").template is None
        with pytest.raises(TemplateMissing):
            forcing.compute_log_prob([{"role": "user", "content": "hello"}], " world")
    with TeacherForcing(model=tiny_spm_gguf, n_threads=1, template="llama2") as forcing:
        assert forcing.compute_log_prob("hello", " world").template == "llama2"


def test_an_adapter_is_part_of_the_policy(tiny_gguf: Path, tiny_lora: Path) -> None:
    values = {}
    for name, adapters in {"none": None, "zero": [(tiny_lora, 0.0)], "whole": [tiny_lora]}.items():
        with TeacherForcing(model=tiny_gguf, n_threads=1, adapters=adapters) as forcing:
            values[name] = forcing.compute_log_prob(QUESTION, ANSWER).value
    assert values["none"] == pytest.approx(values["zero"], abs=1e-4)
    assert abs(values["none"] - values["whole"]) > 1e-2


def test_a_store_is_used_and_may_be_a_path(tiny_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    results = []
    for store in (path, str(path), Store(path)):
        with TeacherForcing(model=tiny_gguf, n_threads=1, store=store) as forcing:
            results.append(forcing.compute_log_prob(QUESTION, ANSWER))
    store.get_many([])  # the caller's own is left open
    store.close()
    assert [r.stored for r in results] == [False, True, True]
    assert len({r.tokens for r in results}) == 1


def test_the_fingerprint_names_model_runtime_and_mode(pico: TeacherForcing) -> None:
    facts = pico.compute_log_prob(QUESTION, ANSWER).fingerprint
    assert {"model_sha256", "libraries", "mode", "key", "type_k", "n_threads"} <= facts.keys()
    assert json.loads(json.dumps(dict(facts))) == facts


# What is refused


def test_temperature_zero_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match="At temperature 0 one token has all the mass"):
        TeacherForcing(model="pico", temperature=0)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"provider": "llama-cpp"}, ProviderError, "Did you mean 'llama_cpp'"),
        ({"model": "~/no/such/model.gguf"}, ModelNotFound, "model.gguf"),
        ({"template": "lama3"}, TemplateMissing, "llama3"),
        ({"temprature": 0.5}, ConfigError, "Did you mean 'temperature'"),
        ({"mode": "exact"}, ConfigError, "strict or fast"),
        ({"n_ctx": 0}, ConfigError, "n_ctx"),
        ({"temperature": "hot"}, ConfigError, "hot"),
    ],
)
def test_wrong_settings_are_refused_at_once(settings: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        TeacherForcing(**settings)


def test_nothing_is_cut_to_fit(tiny_gguf: Path) -> None:
    with TeacherForcing(model=tiny_gguf, n_ctx=64, n_threads=1) as forcing:
        with pytest.raises(ContextOverflow) as caught:
            forcing.compute_log_prob(QUESTION, "a b c " * 20)
        assert caught.value.needed > caught.value.available == 64
        room = 64 - forcing.compute_log_prob(QUESTION, "a", finished=False).n_prefix
        assert forcing.compute_log_prob(QUESTION, "#" * room, finished=False).n_tokens == room
        with pytest.raises(ContextOverflow):
            forcing.compute_log_prob(QUESTION, "#" * room, finished=True)


def test_a_megabyte_is_refused_and_not_computed(pico: TeacherForcing) -> None:
    began = time.process_time()
    with pytest.raises(ContextOverflow):
        pico.compute_log_prob("Hello", "lorem ipsum " * 90_000)
    assert time.process_time() - began < 60


@pytest.mark.parametrize(("prompt", "response"), [("", "x"), ("Hi", ""), ("Hi", None), ("Hi", 7), ([], "x")])
def test_empty_or_no_text_is_refused(pico: TeacherForcing, prompt: Any, response: Any) -> None:
    with pytest.raises(InputError):
        pico.compute_log_prob(prompt, response)


# Use


def test_threads_share_one_and_get_the_same_bits(tiny_gguf: Path) -> None:
    prompts = [f"Hello {n}" for n in range(4)]
    with TeacherForcing(model=tiny_gguf, n_threads=1) as forcing:
        together = in_threads(4, lambda n: [forcing.compute_log_prob(prompts[n], ANSWER).tokens for _ in range(5)])
        alone = [forcing.compute_log_prob(prompt, ANSWER).tokens for prompt in prompts]
    assert together == [[tokens] * 5 for tokens in alone]


def test_after_the_end_nothing_is_scored(tiny_gguf: Path) -> None:
    forcing = TeacherForcing(model=tiny_gguf, n_threads=1)
    forcing.compute_log_prob(QUESTION, ANSWER)
    forcing.close()
    forcing.close()
    with pytest.raises(EngineError, match="closed"):
        forcing.compute_log_prob(QUESTION, ANSWER)


def test_a_mode_that_does_not_exist_leaves_no_store_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Path] = []
    close = Store.close

    def noted(store: Store) -> None:
        closed.append(store.path)
        close(store)

    monkeypatch.setattr(Store, "close", noted)
    with pytest.raises(ConfigError, match="mode must be"):
        TeacherForcing(mode="exact", store=tmp_path / "scores.sqlite")  # type: ignore[arg-type]
    assert closed == [tmp_path / "scores.sqlite"]
