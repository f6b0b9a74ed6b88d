"""Generation: many at once, ends, limits, schemas, interruptions."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamalab.engine import Event, GenerateRequest, Generation, SamplingParams, Token
from llamalab.engines import schedule
from llamalab.engines.events import EventStream
from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.errors import ConfigError, ContextOverflow, EngineError, InputError, SchemaError
from llamalab.scored import ScoreRequest

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def request(engine: LlamaCppEngine, text: str = "hello world", *, more: dict[str, Any] | None = None, **params: Any):
    assert engine.info.bos_id is not None
    defaults = {"max_tokens": 20, "ignore_eos": True}
    prompt = [engine.info.bos_id, *engine.tokenize(text)]
    return GenerateRequest(prompt, SamplingParams(**(defaults | params)), **(more or {}))


def stream(engine: LlamaCppEngine, requests: list[GenerateRequest]) -> EventStream:
    events = engine.generate(requests)
    assert isinstance(events, EventStream)
    return events


def results(events: Iterator[Event]) -> dict[int, Generation]:
    return {e.request: e for e in events if isinstance(e, Generation)}


def one(engine: LlamaCppEngine, request: GenerateRequest) -> Generation:
    return results(engine.generate([request]))[0]


def logprobs_hold(engine: LlamaCppEngine, asked: GenerateRequest, got: Generation) -> None:
    """The reported log probabilities are those that scoring the response alone gives: nothing got mixed up."""
    assert got.logprobs is not None
    (scored,) = engine.score([ScoreRequest(asked.prompt_ids, got.ids)])
    assert [lp.raw for lp in got.logprobs] == pytest.approx(list(scored.logprobs), abs=1e-3)


def forced(text: str) -> dict[str, str]:
    """A grammar that leaves the model no choice of characters."""
    return {"grammar": f"root ::= {json.dumps(text, ensure_ascii=False)}"}


def test_many_requests_over_few_sequences(tiny_engine: LlamaCppEngine):
    """Thirteen requests of different lengths over four sequences: each as if it had been alone."""
    rng = random.Random(0)
    words = ["hello", "world", "the", "code", "access"]
    requests = [
        request(
            tiny_engine,
            " ".join(rng.choices(words, k=rng.randrange(1, 60))),
            max_tokens=rng.randrange(1, 30),
            seed=seed,
            more={"logprobs": 0},
        )
        for seed in range(13)
    ]
    events = list(tiny_engine.generate(requests))
    for number, asked in enumerate(requests):
        mine = [e for e in events if e.request == number]
        *tokens, last = mine
        assert isinstance(last, Generation)
        assert all(isinstance(e, Token) for e in tokens)
        assert [e.id for e in tokens if isinstance(e, Token)] == list(last.ids)
        assert "".join(e.text for e in tokens if isinstance(e, Token)) == last.text
        assert len(last.ids) == asked.params.max_tokens
        assert last.finish_reason == "length"
        assert last.usage.fresh == len(asked.prompt_ids)
        assert last.usage.output == len(last.ids)
        logprobs_hold(tiny_engine, asked, last)
    ends = [e.request for e in events if isinstance(e, Generation)]
    assert ends.index(0) < ends.index(12)


def test_a_sequence_that_ends_makes_room_for_the_next(tiny_engine: LlamaCppEngine):
    """With four long responses running, a fifth starts only when one ends, and before the others end."""
    lengths = [5, 40, 40, 40, 3]
    order = [
        e.request
        for e in tiny_engine.generate([request(tiny_engine, max_tokens=n, seed=1) for n in lengths])
        if isinstance(e, Generation)
    ]
    assert order[:2] == [0, 4]


@pytest.mark.parametrize("file", ["tiny_gguf", "tiny_q8_gguf"])
def test_the_same_seed_gives_the_same_text_whatever_ran_before(file: str, request_: Any, tmp_path: Path):
    with LlamaCppEngine(request_(file), n_threads=1, n_seq=4) as engine:
        asked = request(engine, "hello " * 30, seed=5, max_tokens=40, more={"logprobs": 1})
        first = one(engine, asked)
        results(engine.generate([request(engine, "code " * (7 * n), seed=n, max_tokens=9 * n) for n in range(1, 9)]))
        second = one(engine, asked)
        unfinished = stream(engine, [request(engine, "world", max_tokens=50) for _ in range(3)])
        next(unfinished)
        unfinished.close()
        third = one(engine, asked)
    with LlamaCppEngine(request_(file), n_threads=1, n_seq=4) as engine:
        fourth = one(engine, asked)
    for other in (second, third, fourth):
        assert other.ids == first.ids
        assert other.logprobs == first.logprobs  # bit for bit


@pytest.fixture
def request_(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue


def test_company_leaves_the_numbers_of_a_quantised_model_as_they_are(tiny_q8_gguf: Path):
    """Without flash attention, which "auto" leaves off here, eight at once are computed like one alone."""
    with LlamaCppEngine(tiny_q8_gguf, n_threads=1, n_seq=8) as engine:
        requests = [request(engine, "hello " * 20, seed=n, max_tokens=30, more={"logprobs": 0}) for n in range(8)]
        together = results(engine.generate(requests))
        for number, asked in enumerate(requests):
            alone = one(engine, asked)
            assert alone.ids == together[number].ids
            assert alone.logprobs is not None
            beside = [lp.raw for lp in together[number].logprobs or ()]
            assert [lp.raw for lp in alone.logprobs] == pytest.approx(beside, abs=1e-3)


def test_long_prompts_go_in_chunks_and_mix_with_others(tiny_gguf: Path):
    with LlamaCppEngine(tiny_gguf, n_threads=1, n_seq=3, n_batch=16, n_ubatch=8, type_k="f32", type_v="f32") as engine:
        texts = ["hello " * 100, "the", "code " * 50, "world " * 120, "x"]
        requests = [request(engine, text, seed=1, max_tokens=15, more={"logprobs": 0}) for text in texts]
        for number, got in results(engine.generate(requests)).items():
            logprobs_hold(engine, requests[number], got)


def test_without_a_limit_the_context_is_filled(tiny_engine: LlamaCppEngine):
    asked = request(tiny_engine, "hello " * 240, max_tokens=None)
    got = one(tiny_engine, asked)
    assert got.finish_reason == "length"
    assert len(asked.prompt_ids) + len(got.ids) == tiny_engine.info.n_ctx


def test_no_tokens_asked_none_given(tiny_engine: LlamaCppEngine):
    got = one(tiny_engine, request(tiny_engine, max_tokens=0))
    assert (got.text, got.ids, got.finish_reason) == ("", (), "length")


def test_nothing_asked_nothing_done(tiny_engine: LlamaCppEngine):
    assert list(tiny_engine.generate([])) == []
    assert tiny_engine.score([]) == []


def test_the_end_token_ends_a_response_and_is_in_its_ids(tiny_engine: LlamaCppEngine):
    got = one(tiny_engine, request(tiny_engine, ignore_eos=False, more=forced("hello")))
    assert got.text == "hello"
    assert got.finish_reason == "stop"
    assert got.ids[-1] in tiny_engine.info.stop_ids
    assert got.usage.output == len(got.ids)


@pytest.mark.parametrize("stop", ["rld", "lo wor", " w", "d é"])
def test_a_stop_string_ends_a_response_before_it(tiny_engine: LlamaCppEngine, stop: str):
    text = "hello world é and more"
    events = list(tiny_engine.generate([request(tiny_engine, stop=(stop,), max_tokens=60, more=forced(text))]))
    *tokens, last = events
    assert isinstance(last, Generation)
    assert last.text == text[: text.index(stop)]
    assert last.finish_reason == "stop"
    assert "".join(e.text for e in tokens if isinstance(e, Token)) == last.text


def test_text_held_back_for_a_stop_string_is_released_at_the_end(tiny_engine: LlamaCppEngine):
    got = one(tiny_engine, request(tiny_engine, stop=("world!",), max_tokens=60, more=forced("hello world")))
    assert got.text == "hello world"


def test_text_held_back_is_released_when_a_response_is_cancelled(
    tiny_engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch
):
    cancel, native, decodes = threading.Event(), schedule.decode, []

    def cancelling(context: int, batch: Any) -> int:
        decodes.append(1)
        if len(decodes) == 3:
            cancel.set()
        return native(context, batch)

    monkeypatch.setattr(schedule, "decode", cancelling)
    more = {**forced("hello world"), "cancel": cancel}
    asked = request(tiny_engine, stop=("hello world!",), max_tokens=60, more=more)
    *tokens, last = tiny_engine.generate([asked])
    assert isinstance(last, Generation)
    assert last.finish_reason == "cancelled"
    assert len(last.ids) == 3
    assert "".join(e.text for e in tokens if isinstance(e, Token)) == last.text == tiny_engine.detokenize(last.ids)


def test_characters_arrive_whole(tiny_engine: LlamaCppEngine):
    text = "é😀鯼"
    events = list(tiny_engine.generate([request(tiny_engine, max_tokens=60, more=forced(text))]))
    pieces = [e.text for e in events if isinstance(e, Token)]
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)
    assert len(pieces) > 3


def test_a_character_cut_in_half_is_replaced(tiny_engine: LlamaCppEngine):
    got = one(tiny_engine, request(tiny_engine, max_tokens=2, more=forced("😀")))
    assert len(got.ids) == 2
    assert (got.text, got.finish_reason) == ("\ufffd", "length")


# Schemas and grammars


@pytest.mark.parametrize("seed", range(8))
def test_a_response_under_a_schema_obeys_it(tiny_engine: LlamaCppEngine, seed: int):
    got = one(tiny_engine, request(tiny_engine, max_tokens=200, seed=seed, ignore_eos=False, more={"schema": PERSON}))
    assert got.finish_reason == "stop"
    assert got.schema_mode == "exact"
    value = json.loads(got.text)
    assert list(value) == ["name", "age"]
    assert len(value["name"]) <= 6
    assert 0 <= value["age"] <= 99
    assert got.text == json.dumps(value, ensure_ascii=False, separators=(",", ":")) or "\\" in got.text


def test_a_finished_document_ends_without_an_end_token(tiny_engine: LlamaCppEngine):
    got = one(tiny_engine, request(tiny_engine, seed=0, more={"schema": {"const": "hello"}}))
    assert (got.text, got.finish_reason) == ('"hello"', "stop")
    assert not set(got.ids) & tiny_engine.info.stop_ids


def test_a_document_cut_by_the_limit_is_reported_as_cut(tiny_engine: LlamaCppEngine):
    got = one(tiny_engine, request(tiny_engine, max_tokens=5, seed=0, more={"schema": PERSON}))
    assert got.finish_reason == "length"
    with pytest.raises(ValueError, match=r".*"):
        json.loads(got.text)


def test_a_schema_and_its_log_probabilities(tiny_engine: LlamaCppEngine):
    """`raw` is the model's own; `sampled` is of what the schema left: where one token was left, certainty."""
    asked = request(tiny_engine, max_tokens=80, seed=1, more={"schema": PERSON, "logprobs": 2})
    got = one(tiny_engine, asked)
    logprobs_hold(tiny_engine, asked, got)
    assert got.logprobs is not None
    assert got.logprobs[0].sampled == pytest.approx(0, abs=1e-6)
    assert all(lp.sampled >= lp.raw - 1e-9 for lp in got.logprobs)
    plain = one(tiny_engine, request(tiny_engine, max_tokens=80, seed=1, more={"schema": PERSON}))
    assert plain.ids == got.ids


def test_schemas_and_free_text_share_a_batch(tiny_engine: LlamaCppEngine):
    more = [{"schema": PERSON}, {}, forced("hello world"), {"schema": {"type": "boolean"}}, {"schema": PERSON}]
    requests = [
        request(tiny_engine, seed=n, max_tokens=100, more={**m, "logprobs": 0}, ignore_eos=False)
        for n, m in enumerate(more)
    ]
    got = results(tiny_engine.generate(requests))
    json.loads(got[0].text)
    json.loads(got[4].text)
    assert got[2].text == "hello world"
    assert got[3].text in ("true", "false")
    for number in got:
        logprobs_hold(tiny_engine, requests[number], got[number])


def test_a_schema_may_be_json_text(tiny_engine: LlamaCppEngine):
    got = one(tiny_engine, request(tiny_engine, more={"schema": '{"enum": ["yes", "no"]}'}))
    assert got.text in ('"yes"', '"no"')


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "objekt"}, "objekt"),
        ({"type": "string", "pattern": "(?<a"}, "regex"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ("{", "not valid JSON.*line 1 column 2"),
        ("[1]", "an object, not list"),
        ({"const": object()}, "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_a_schema_that_cannot_be_compiled_is_refused_at_once(tiny_engine: LlamaCppEngine, schema: Any, message: str):
    with pytest.raises(SchemaError, match=message):
        tiny_engine.generate([request(tiny_engine, more={"schema": schema})])


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("", "root"),
        ('start ::= "a"', "'root'"),
        ("root ::= (", "cannot be compiled: "),
        ('root ::= root "a"', "left recursion"),
        ("root ::= other", "Undefined rule"),
        ("root ::= [", "unexpected end"),
    ],
)
def test_a_grammar_that_cannot_be_compiled_is_refused_at_once(tiny_engine: LlamaCppEngine, grammar: str, message: str):
    with pytest.raises(SchemaError, match=message):
        tiny_engine.generate([request(tiny_engine, more={"grammar": grammar})])


def test_a_grammar_at_its_end_stops_even_if_end_tokens_are_ignored(tiny_engine: LlamaCppEngine):
    got = one(tiny_engine, request(tiny_engine, ignore_eos=True, max_tokens=50, more=forced("hello")))
    assert (got.text, got.finish_reason) == ("hello", "stop")


def test_a_constraint_no_token_can_meet_is_an_error_of_that_response_alone(tiny_engine: LlamaCppEngine):
    dead = request(tiny_engine, more={"grammar": "root ::= <[99999]>"})
    fine = stream(tiny_engine, [request(tiny_engine, max_tokens=10, seed=1)])
    next(fine)
    with pytest.raises(EngineError, match="allows none of the model's tokens"):
        list(tiny_engine.generate([dead]))
    assert len(results(fine)[0].ids) == 10


# Bad input


def test_an_empty_prompt_is_refused(tiny_engine: LlamaCppEngine):
    with pytest.raises(InputError, match="Request 1, prompt: a prompt needs at least one token"):
        tiny_engine.generate([request(tiny_engine), GenerateRequest([])])


@pytest.mark.parametrize("ids", [[1, 349], [1, -1], [1, 2**40], [[1], [2]], [1.5], ["a"]])
def test_wrong_ids_are_refused(tiny_engine: LlamaCppEngine, ids: Any):
    with pytest.raises(InputError, match="Request 0, prompt: token id"):
        tiny_engine.generate([GenerateRequest(ids)])


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(tiny_engine: LlamaCppEngine):
    with pytest.raises(ContextOverflow, match="The prompt has 600 tokens, the context 512") as caught:
        tiny_engine.generate([request(tiny_engine), GenerateRequest([5] * 600)])
    assert (caught.value.needed, caught.value.available) == (600, 512)
    with pytest.raises(ContextOverflow, match="512 tokens"):
        tiny_engine.generate([GenerateRequest([5] * 512)])


def test_a_prompt_of_ten_megabytes_is_refused(tiny_engine: LlamaCppEngine):
    with pytest.raises(ContextOverflow, match="10000000 tokens"):
        tiny_engine.generate([GenerateRequest([5] * 10_000_000)])


def test_a_schema_and_a_grammar_together_are_refused(tiny_engine: LlamaCppEngine):
    with pytest.raises(ConfigError, match="not both"):
        tiny_engine.generate([request(tiny_engine, more={"schema": PERSON, **forced("a")})])


@pytest.mark.parametrize("logprobs", [-1, 1.5, True])
def test_a_wrong_number_of_log_probabilities_is_refused(tiny_engine: LlamaCppEngine, logprobs: Any):
    with pytest.raises(ConfigError, match="logprobs must be"):
        tiny_engine.generate([request(tiny_engine, more={"logprobs": logprobs})])


# Ends from outside


def test_a_deadline_ends_responses_in_progress_and_in_the_queue(tiny_engine: LlamaCppEngine):
    deadline = time.monotonic() + 0.05
    requests = [request(tiny_engine, max_tokens=None, more={"deadline": deadline}) for _ in range(30)]
    got = results(tiny_engine.generate(requests))
    assert len(got) == 30
    assert "deadline" in {g.finish_reason for g in got.values()}
    past = one(tiny_engine, request(tiny_engine, more={"deadline": time.monotonic() - 1}))
    assert (past.finish_reason, past.ids) == ("deadline", ())


def test_cancelling_ends_one_response_and_no_other(tiny_engine: LlamaCppEngine):
    cancel = threading.Event()
    requests = [request(tiny_engine, max_tokens=40, seed=1, more={"cancel": cancel}), request(tiny_engine, seed=2)]
    events = []
    for event in tiny_engine.generate(requests):
        events.append(event)
        if sum(e.request == 0 for e in events) == 3:
            cancel.set()
    got = results(iter(events))
    assert got[0].finish_reason == "cancelled"
    assert 3 <= len(got[0].ids) < 40
    assert len(got[1].ids) == 20


@pytest.mark.parametrize("how", ["close", "forget", "never read"])
def test_a_response_nobody_reads_frees_its_sequence(tiny_gguf: Path, how: str):
    with LlamaCppEngine(tiny_gguf, n_threads=1, n_seq=1) as engine:
        unread = stream(engine, [request(engine, max_tokens=400) for _ in range(3)])
        if how != "never read":
            next(unread)
        if how == "close":
            unread.close()
            assert list(unread) == []
        del unread
        started = time.monotonic()
        got = one(engine, request(engine, max_tokens=5))
        assert len(got.ids) == 5
        assert got.timings.queued <= time.monotonic() - started


def test_an_interrupt_in_the_middle_of_a_step_leaves_the_engine_usable(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
):
    with LlamaCppEngine(tiny_gguf, n_threads=1, n_seq=2) as engine:
        expected = one(engine, request(engine, seed=1))
        other = stream(engine, [request(engine, max_tokens=50, seed=3)])
        next(other)
        mine = stream(engine, [request(engine, max_tokens=50, seed=4)])
        next(mine)
        list_of_calls = []

        def interrupted(context: int, batch: Any) -> int:
            list_of_calls.append(1)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(schedule, "decode", interrupted)
            with pytest.raises(KeyboardInterrupt):
                list(mine)
        assert list_of_calls == [1]
        assert list(mine) == []
        with pytest.raises(EngineError, match="interrupted: KeyboardInterrupt in another request"):
            list(other)
        assert one(engine, request(engine, seed=1)).ids == expected.ids


def test_a_failing_decode_is_an_error_and_the_engine_goes_on(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch):
    with LlamaCppEngine(tiny_gguf, n_threads=1, n_seq=2) as engine:
        expected = one(engine, request(engine, seed=1))
        with monkeypatch.context() as patch:
            patch.setattr(schedule, "decode", lambda _context, _batch: -3)
            with pytest.raises(EngineError, match="llama_decode failed with status -3"):
                one(engine, request(engine, seed=1))
        assert one(engine, request(engine, seed=1)).ids == expected.ids


def test_closing_the_engine_ends_its_streams(tiny_gguf: Path):
    engine = LlamaCppEngine(tiny_gguf, n_threads=1)
    events = stream(engine, [request(engine, max_tokens=100)])
    next(events)
    engine.close()
    with pytest.raises(EngineError, match="was closed while"):
        list(events)
    events.close()


# Threads


def test_threads_share_batches_and_each_gets_its_own(tiny_engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch):
    """Six threads at once over four sequences: each gets its response, in fewer decodes than one by one."""
    decodes = []
    native = schedule.decode

    def counted(context: int, batch: Any) -> int:
        decodes.append(batch.n_tokens)
        time.sleep(0.001)  # let the others come in
        return native(context, batch)

    monkeypatch.setattr(schedule, "decode", counted)
    asked = [request(tiny_engine, "code " * n, seed=n, max_tokens=40, more={"logprobs": 0}) for n in range(6)]
    got: dict[int, Generation] = {}
    barrier = threading.Barrier(6)

    def run(number: int) -> None:
        barrier.wait()
        got[number] = one(tiny_engine, asked[number])

    threads = [threading.Thread(target=run, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(got) == 6
    assert len(decodes) < 6 * 40
    for number in got:
        assert len(got[number].ids) == 40
        logprobs_hold(tiny_engine, asked[number], got[number])


def test_who_stops_reading_holds_nobody_up(tiny_gguf: Path):
    """A stream that is read once and left alone; another thread's request goes through."""
    with LlamaCppEngine(tiny_gguf, n_threads=1, n_seq=2) as engine:
        stalled = stream(engine, [request(engine, max_tokens=30, seed=1)])
        first = next(stalled)
        got: list[Generation] = []
        thread = threading.Thread(target=lambda: got.append(one(engine, request(engine, max_tokens=60, seed=2))))
        thread.start()
        thread.join(60)
        assert len(got[0].ids) == 60
        assert len([first, *stalled]) == 31


def test_closing_while_another_thread_generates(tiny_gguf: Path):
    engine = LlamaCppEngine(tiny_gguf, n_threads=1)
    started, failure = threading.Event(), []

    def run() -> None:
        try:
            while True:
                for _ in engine.generate([request(engine, max_tokens=400)]):
                    started.set()
        except EngineError as error:
            failure.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    started.wait(60)
    engine.close()
    thread.join(60)
    assert len(failure) == 1
    assert "closed" in failure[0]


# Prompt cache


def test_a_cached_prefix_is_computed_once(tiny_gguf: Path):
    with LlamaCppEngine(tiny_gguf, n_threads=1, n_seq=2, cache_prompts=True, type_k="f32", type_v="f32") as engine:
        first = request(engine, "hello world " * 20, seed=1, more={"logprobs": 0})
        got = one(engine, first)
        assert got.usage.cached == 0
        turn = GenerateRequest([*first.prompt_ids, *got.ids, *engine.tokenize(" the code")], first.params, logprobs=0)
        reply = one(engine, turn)
        # The last token of a response was drawn but never computed.
        assert reply.usage.cached == len(first.prompt_ids) + len(got.ids) - 1
        assert reply.usage.cached + reply.usage.fresh == len(turn.prompt_ids)
        logprobs_hold(engine, turn, reply)
        again = one(engine, first)
        assert again.usage.cached == len(first.prompt_ids) - 1
        assert again.ids == got.ids


def test_a_prompt_that_shares_nothing_starts_afresh(tiny_gguf: Path):
    with LlamaCppEngine(tiny_gguf, n_threads=1, n_seq=1, cache_prompts=True) as engine:
        params = SamplingParams(max_tokens=5, seed=1)
        first = one(engine, GenerateRequest([5, 6, 7], params, logprobs=0))
        asked = GenerateRequest([8, 6, 7], params, logprobs=0)
        second = one(engine, asked)
        assert (first.usage.cached, second.usage.cached) == (0, 0)
        logprobs_hold(engine, asked, second)


def test_a_short_question_takes_no_long_conversation_s_place(tiny_gguf: Path):
    """They begin with the same token, as the turns of all conversations do."""
    with LlamaCppEngine(tiny_gguf, n_threads=1, n_seq=2, cache_prompts=True) as engine:
        talk = "A long conversation about the weather, the sea and the ships that come in at night."
        one(engine, request(engine, talk, seed=1))
        one(engine, request(engine, "A", seed=1))
        assert one(engine, request(engine, talk, seed=2)).usage.cached > 30


def test_without_the_option_nothing_is_cached(tiny_engine: LlamaCppEngine):
    asked = request(tiny_engine, "hello world " * 20, seed=1)
    one(tiny_engine, asked)
    assert one(tiny_engine, asked).usage.cached == 0


def test_the_cache_prefers_the_sequence_with_the_longest_prefix(tiny_gguf: Path):
    with LlamaCppEngine(tiny_gguf, n_threads=1, n_seq=3, cache_prompts=True) as engine:
        texts = ["hello world " * 20, "the code " * 20]
        results(engine.generate([request(engine, text, seed=1) for text in texts]))
        assert one(engine, request(engine, texts[1], seed=2)).usage.cached > 30
        assert one(engine, request(engine, texts[0], seed=2)).usage.cached > 30


# Adapters and options


def test_an_adapter_changes_the_numbers_and_scale_zero_does_not(tiny_gguf: Path, tiny_lora: Path):
    def scores(**options: Any) -> list[float | None]:
        with LlamaCppEngine(tiny_gguf, n_threads=1, **options) as engine:
            ids = engine.tokenize("hello world the code")
            generated = one(engine, request(engine, temperature=0, more={"logprobs": 0}))
            assert generated.logprobs is not None
            (scored,) = engine.score([ScoreRequest([1], ids)])
            return [*scored.logprobs, *(lp.raw for lp in generated.logprobs)]

    plain = scores()
    assert scores(adapters=[(tiny_lora, 0.0)]) == plain
    assert scores(adapters=tiny_lora) != pytest.approx(plain, abs=0.01)
    assert scores(adapters=[(tiny_lora, 0.5), (tiny_lora, 0.5)]) == pytest.approx(scores(adapters=tiny_lora), abs=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"load_mode": "read"},
        {"load_mode": "mlock"},
        {"flash_attn": False},
        {"flash_attn": True},
        {"n_ubatch": 4},
        {"n_seq": 16},
        {"n_outputs_max": 32, "n_seq": 2},
        {"n_ctx": 100},
        {"n_threads": 2},
    ],
)
def test_every_option_runs(tiny_gguf: Path, options: dict[str, Any]):
    with LlamaCppEngine(tiny_gguf, **({"n_threads": 1} | options)) as engine:
        assert engine.info.n_ctx == options.get("n_ctx", 512)
        got = results(engine.generate([request(engine, "hello " * 12, seed=n) for n in range(3)]))
        assert [len(g.ids) for g in got.values()] == [20, 20, 20]
        engine.score([ScoreRequest([1], engine.tokenize("hello " * 20))])
