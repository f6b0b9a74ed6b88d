"""The JAX engine: the model's own numbers, many requests at once, ends, limits, schemas, traces."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import llamalab
from llamalab.checkpoints.checkpoint import open_checkpoint
from llamalab.checkpoints.gguf import write_gguf_checkpoint
from llamalab.engine import Event, GenerateRequest, Generation, LogitsEngine, SamplingParams, Token
from llamalab.engines import provider_of
from llamalab.engines.jax import JaxEngine
from llamalab.engines.jax_device import keep_compilations
from llamalab.engines.jax_options import parse_jax_options
from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.errors import ConfigError, ContextOverflow, EngineError, InputError, OutOfMemory, SchemaError
from llamalab.llama.entropix import TokenTrace
from llamalab.llama.entropix_cases import CASES
from llamalab.scored import ScoreRequest
from tests.llama.compilations import compilations

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What XLA makes of tiny programs need not be fast, and is not kept in the user's folder."""
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="module")
def engine(tiny_gguf: Path) -> Iterator[JaxEngine]:
    with JaxEngine(tiny_gguf, n_seq=4, n_ctx=128) as engine:
        yield engine


def request(
    engine: LogitsEngine, text: str = "hello world", *, more: dict[str, Any] | None = None, **params: Any
) -> GenerateRequest:
    assert engine.info.bos_id is not None
    defaults = {"max_tokens": 20, "ignore_eos": True}
    prompt = [engine.info.bos_id, *engine.tokenize(text)]
    return GenerateRequest(prompt, SamplingParams(**(defaults | params)), **(more or {}))


def results(events: Iterator[Event]) -> dict[int, Generation]:
    return {e.request: e for e in events if isinstance(e, Generation)}


def one(engine: LogitsEngine, request: GenerateRequest) -> Generation:
    return results(engine.generate([request]))[0]


def test_its_numbers_are_llama_cpps(engine: JaxEngine, tiny_engine: LlamaCppEngine) -> None:
    ids = [int(id) for id in np.random.default_rng(0).integers(0, engine.info.n_vocab, 40)]
    expected = tiny_engine.logits(ids)
    np.testing.assert_allclose(engine.logits(ids), expected, atol=2e-4)
    np.testing.assert_allclose(engine.logits(ids, rows=slice(7, 9)), expected[7:9], atol=2e-4)
    np.testing.assert_allclose(engine.stepped_logits(ids, 30), expected[30:], atol=2e-4)
    np.testing.assert_allclose(engine.stepped_logits(ids[:3], 0), expected[:3], atol=2e-4)
    blocks = tiny_engine.hidden(ids)
    assert len(blocks) == len(engine.hidden(ids)) == 2
    for ours, theirs in zip(engine.hidden(ids), blocks, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_scores_are_llama_cpps(engine: JaxEngine, tiny_engine: LlamaCppEngine) -> None:
    ids = engine.tokenize("hello world, the code is true and her name is the code of the world")
    asked = [ScoreRequest(ids[:k], ids[k:]) for k in (0, 1, 5, len(ids))] + [ScoreRequest([], ids[:1])]
    for ours, theirs in zip(engine.score(asked), tiny_engine.score(asked), strict=True):
        assert [lp is None for lp in ours.logprobs] == [lp is None for lp in theirs.logprobs]
        assert ours.total == pytest.approx(theirs.total, abs=1e-3)


def test_it_says_of_itself_what_llama_cpp_says(engine: JaxEngine, tiny_engine: LlamaCppEngine) -> None:
    ours, theirs = engine.info, tiny_engine.info
    same = ("name", "path", "architecture", "n_params", "context_length", "n_vocab", "bos_id", "eos_id", "stop_ids")
    for field in (*same, "add_bos", "special_tokens", "chat_template", "sampling"):
        assert getattr(ours, field) == getattr(theirs, field), field
    assert (ours.provider, ours.n_ctx) == ("jax", 128)
    assert isinstance(engine, LogitsEngine)


def test_greedy_text_is_llama_cpps(engine: JaxEngine, tiny_engine: LlamaCppEngine) -> None:
    texts = ["hello world", "the code", "her name is", "true"]
    requests = [request(engine, text, temperature=0, max_tokens=24) for text in texts]
    ours, theirs = results(engine.generate(requests)), results(tiny_engine.generate(requests))
    for number in range(len(texts)):
        assert ours[number].ids == theirs[number].ids
        assert ours[number].text == theirs[number].text


@pytest.mark.parametrize("prompt", ["Repeat after me: seven small boats", "Write a short story about a fox."])
def test_pico_answers_as_it_does_in_llama_cpp(prompt: str, model_folder: Path) -> None:
    """Against pico in F32: with Q8_0 weights llama.cpp rounds the activations too."""
    path = model_folder / "pico-f32.gguf"
    if not path.exists():
        write_gguf_checkpoint(open_checkpoint(llamalab.locate("pico")), path, "F32")
    with llamalab.load("jax:pico", n_seq=1, n_ctx=256) as ours, LlamaCppEngine(path, n_seq=1, n_ctx=256) as theirs:
        ids = theirs.tokenize(f"<|user|>\n{prompt}<|end|>\n<|assistant|>\n", parse_special=True)
        asked = GenerateRequest(ids, SamplingParams(temperature=0, max_tokens=32))
        assert one(ours, asked).ids == one(theirs, asked).ids


def test_many_requests_over_few_rows(engine: JaxEngine) -> None:
    """Eleven requests of different lengths over four rows: the events of each in order, and as if it had been alone."""
    rng = random.Random(0)
    words = ["hello", "world", "the", "code", "access"]
    requests = [
        request(
            engine,
            " ".join(rng.choices(words, k=rng.randrange(1, 8))),
            max_tokens=rng.randrange(1, 20),
            temperature=rng.choice([0, 1.0]),
            seed=seed,
            more={"logprobs": 2 if seed % 2 else 1},
        )
        for seed in range(11)
    ]
    events = list(engine.generate(requests))
    for number, asked in enumerate(requests):
        *tokens, last = [e for e in events if e.request == number]
        assert isinstance(last, Generation)
        assert [e.id for e in tokens if isinstance(e, Token)] == list(last.ids)
        assert "".join(e.text for e in tokens if isinstance(e, Token)) == last.text
        assert len(last.ids) == asked.params.max_tokens
        assert last.finish_reason == "length"
        assert (last.usage.fresh, last.usage.output) == (len(asked.prompt_ids), len(last.ids))
        assert last.logprobs is not None
        (scored,) = engine.score([ScoreRequest(asked.prompt_ids, last.ids)])
        assert [lp.raw for lp in last.logprobs] == pytest.approx(list(scored.logprobs), abs=1e-3)
        assert all(len(lp.top) == asked.logprobs for lp in last.logprobs)
    for number in (3, 8):
        assert one(engine, requests[number]).ids == results(iter(events))[number].ids


def test_a_seed_gives_the_same_text_again(engine: JaxEngine) -> None:
    drawn = [one(engine, request(engine, seed=seed, temperature=2)).ids for seed in (5, 5, 6)]
    assert drawn[0] == drawn[1] != drawn[2]
    fresh = one(engine, request(engine, temperature=2))
    assert fresh.seed is not None
    assert one(engine, request(engine, temperature=2, seed=fresh.seed)).ids == fresh.ids


def test_a_stop_string_ends_the_text_where_it_begins(engine: JaxEngine) -> None:
    whole = one(engine, request(engine, temperature=0))
    stop = whole.text[5:8]
    cut = one(engine, request(engine, temperature=0, stop=(stop,)))
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert len(cut.ids) < len(whole.ids)


def test_a_prompt_may_fill_the_context(engine: JaxEngine) -> None:
    full = GenerateRequest([7] * 127, SamplingParams(temperature=0))
    assert len(one(engine, full).ids) == 1
    assert one(engine, GenerateRequest([7] * 128, SamplingParams(max_tokens=0))).ids == ()


def test_after_warm_up_nothing_is_compiled(engine: JaxEngine) -> None:
    """Other texts, lengths within the bucket, settings, seeds, stop strings and orders of coming and going."""

    def four(words: int, **params: Any) -> None:
        requests = [request(engine, " ".join(["code"] * words), seed=n, **params) for n in range(4)]
        results(engine.generate([*requests, request(engine, "the " * (words + 16), **params)]))

    four(2, temperature=0)
    with compilations() as seen:
        four(7, temperature=1.5, top_k=9, top_p=0.9, min_p=0.01, repeat_penalty=1.1, max_tokens=13)
        four(3, temperature=0, stop=("world",), max_tokens=30)
    assert seen == []


def test_compilations_are_kept_for_the_next_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the user's cache folder; where somebody has named a folder already, that one stays."""
    names = [
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    ]
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_compilations()
    assert jax.config.jax_compilation_cache_dir == before["jax_compilation_cache_dir"]
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        keep_compilations()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "llamalab" / "xla")
        compilation_cache.reset_cache()  # JAX looks at the setting once
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.jit(lambda x: x * 3 + 1)(np.ones(5)).block_until_ready()
        assert list((tmp_path / "llamalab" / "xla").iterdir())
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def test_a_schema_is_held(engine: JaxEngine) -> None:
    free = request(engine, temperature=0, max_tokens=8)
    asked = [request(engine, seed=seed, max_tokens=60, more={"schema": PERSON, "logprobs": 1}) for seed in range(2)]
    done = results(engine.generate([*asked, free]))
    for number in range(2):
        found = json.loads(done[number].text)
        assert set(found) == {"name", "age"}
        assert (done[number].finish_reason, done[number].schema_mode) == ("stop", "exact")
    assert done[2].ids == one(engine, free).ids  # whoever runs beside is not bound by it


def test_a_request_ends_at_its_deadline_or_when_cancelled(engine: JaxEngine) -> None:
    cancel = threading.Event()
    events = engine.generate([request(engine, max_tokens=100, more={"cancel": cancel})])
    next(events)
    cancel.set()
    *_, last = events
    assert isinstance(last, Generation)
    assert last.finish_reason == "cancelled"
    late = one(engine, request(engine, more={"deadline": time.monotonic() - 1}))
    assert (late.finish_reason, late.ids) == ("deadline", ())


def test_threads_share_the_rows(engine: JaxEngine) -> None:
    asked = [request(engine, text, temperature=0) for text in ("hello", "world", "the", "code", "name", "age")]
    alone = [one(engine, each).ids for each in asked]
    found: dict[int, tuple[int, ...]] = {}

    def work(number: int) -> None:
        found[number] = one(engine, asked[number]).ids

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(len(asked))] == alone


def test_what_is_wrong_is_said_before_any_work(engine: JaxEngine) -> None:
    with pytest.raises(InputError, match="at least one token"):
        engine.generate([GenerateRequest([])])
    with pytest.raises(InputError, match="position 1 is outside the vocabulary"):
        engine.generate([GenerateRequest([1, 99_999])])
    with pytest.raises(ContextOverflow, match="128 tokens, the context 128"):
        engine.generate([GenerateRequest([1] * 128)])
    with pytest.raises(ContextOverflow):
        engine.logits([1] * 129)
    with pytest.raises(SchemaError, match="llama_cpp"):
        engine.generate([GenerateRequest([1], grammar='root ::= "a"')])
    with pytest.raises(InputError, match="from 0 to 2, not 3"):
        engine.stepped_logits([1, 2, 3], 3)


def test_entropix_says_what_decided_each_token(tiny_gguf: Path) -> None:
    traced: dict[int, list[TokenTrace]] = {0: [], 1: []}
    options = {"sampler": "entropix", "thresholds": "fractional", "clarify": 9}
    with JaxEngine(tiny_gguf, n_seq=2, n_ctx=64, trace=lambda n, t: traced[n].append(t), **options) as engine:
        asked = [request(engine, text, seed=3, max_tokens=12) for text in ("hello", "world the code")]
        done = results(engine.generate(asked))
        again = one(engine, asked[0])
        logits = engine.logits([*asked[1].prompt_ids, *done[1].ids])[len(asked[1].prompt_ids) - 1 : -1]
    assert again.ids == done[0].ids
    assert [trace.token for trace in traced[1]] == list(done[1].ids)
    assert {trace.case for trace in traced[1]} <= set(CASES)
    p = np.exp(logits - logits.max(-1, keepdims=True)).astype(np.float64)
    p /= p.sum(-1, keepdims=True)
    model = np.log(p[np.arange(len(p)), list(done[1].ids)])
    assert [trace.logprob for trace in traced[1]] == pytest.approx(list(model), abs=1e-3)
    assert [trace.entropy for trace in traced[1]] == pytest.approx(list(-(p * np.log2(p)).sum(-1)), abs=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_cxt": 1}, "no option 'n_cxt'.*Did you mean 'n_ctx'"),
        ({"n_ctx": 0}, "n_ctx must be a whole number from 1"),
        ({"n_batch": 100}, "n_batch must be a power of two"),
        ({"dtype": "float64"}, "dtype must be one of float32, bfloat16, float16, not 'float64'"),
        ({"sampler": "greedy"}, "sampler must be one of plain, entropix"),
        ({"thresholds": "fractional"}, "say sampler='entropix' as well"),
        ({"rope_factor": 0.5}, "rope_factor must be a number of at least 1"),
        ({"int8": 1}, "int8 must be True or False"),
        ({"widen": "no"}, "widen must be True or False"),
        ({"sampler": "entropix", "clarify": "..."}, "clarify must be a token id"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_jax_options(options)


def test_what_does_not_fit_is_refused_with_both_numbers(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamalab.engines.jax_device.available_memory", lambda: 2**20)
    with pytest.raises(OutOfMemory, match=r"the KV cache of 64 x 512 tokens 0\.0\d GiB\) and 0\.00 GiB are free"):
        JaxEngine(tiny_gguf, n_seq=64, n_ctx=512)


def test_a_closed_engine_says_so(tiny_gguf: Path) -> None:
    engine = JaxEngine(tiny_gguf, n_seq=1, n_ctx=32)
    engine.close()
    engine.close()
    for call in (lambda: engine.tokenize("a"), lambda: engine.generate([]), lambda: engine.logits([1])):
        with pytest.raises(EngineError, match="closed"):
            call()


def test_folders_are_run_by_jax(tmp_path: Path) -> None:
    assert provider_of(tmp_path) == "jax"
