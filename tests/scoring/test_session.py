"""Sessions open each model once, share passes, keep order, and let no item spoil another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.errors import (
    ConfigError,
    ContextOverflow,
    EmptyResponse,
    EngineError,
    InputError,
    LlamalabError,
    ModelNotFound,
    NonFinite,
    TemplateMissing,
)
from llamalab.scored import DecodedScore, Decoding, Scored, ScoreRequest
from llamalab.scoring import session as module
from llamalab.scoring.policy import Policy, make_policy
from llamalab.scoring.result import LogProbResult
from llamalab.scoring.session import Item, Session
from llamalab.scoring.store import Store


@pytest.fixture
def base(tiny_gguf: Path) -> Policy:
    return make_policy("base", {"model": str(tiny_gguf), "n_threads": 1, "n_ctx": 256})


def unchanged(requests: Sequence[ScoreRequest], answers: list[Scored]) -> list[Scored]:
    return answers


class Spy:
    """Opens engines as ever, and keeps what they are asked; `fail` may raise instead of an answer."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, dict[str, Any]]] = []
        self.calls: list[list[ScoreRequest]] = []
        self.change: Any = unchanged

    def load(self, spec: str, **options: Any) -> Any:
        self.opened.append((spec, options))
        spy, path = self, spec.partition(":")[2]

        class Spied(LlamaCppEngine):
            def score(self, requests: Sequence[ScoreRequest], **options: Any) -> list[Scored]:
                spy.calls.append(list(requests))
                return spy.change(requests, super().score(requests, **options))

        return Spied(path, **options)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    found = Spy()
    monkeypatch.setattr(module, "load", found.load)
    return found


def scores(policies: Sequence[Policy], items: Sequence[Item], **options: Any) -> list[Any]:
    with Session(policies, **options) as session:
        found = list(session.score(items))
    assert [item for item, _ in found] == list(items)
    return [outcome for _, outcome in found]


def bits(outcomes: Sequence[LogProbResult]) -> list[Any]:
    return [(o.value, o.raw_total, o.tokens) for o in outcomes]


def test_policies_of_one_model_cost_one_pass_and_one_engine(spy: Spy, base: Policy) -> None:
    cold = replace(base, name="cold", decoding=Decoding(temperature=0.5))
    again = replace(cold, name="again")
    cut = replace(base, name="cut", decoding=Decoding(temperature=0.5, top_k=5))
    policies = [base, cold, again, cut]
    found = scores(policies, [Item(policy, "Hello", " the world") for policy in policies])
    assert [(spec, options["n_seq"]) for spec, options in spy.opened] == [(base.spec, 0)]
    ((request,),) = spy.calls
    assert request.decodings == (cold.decoding, cut.decoding)
    assert found[1].value == found[2].value != found[0].value == found[0].raw_total
    assert bits(found) == bits([scores([policy], [Item(policy, "Hello", " the world")])[0] for policy in policies])


def test_a_system_prompt_is_another_prefix_of_the_same_engine(spy: Spy, base: Policy) -> None:
    rude = replace(base, name="rude", system_prompt="Be rude.")
    polite, impolite = scores([base, rude], [Item(base, "Hello", "the"), Item(rude, "Hello", "the")])
    assert len(spy.opened) == 1
    assert impolite.n_prefix > polite.n_prefix
    assert impolite.value != polite.value


def test_values_do_not_depend_on_order_or_company(base: Policy) -> None:
    cold = replace(base, decoding=Decoding(temperature=0.7))
    items = [
        Item(policy, prompt, response)
        for prompt in ("Hello", "Hello world", "code")
        for response in ("the", " the world and the rest of it", "access true")
        for policy in (base, cold)
    ]
    together = scores([base, cold], items)
    backwards = scores([base, cold], items[::-1])[::-1]
    alone = [outcome for item in items for outcome in scores([item.policy], [item])]
    assert bits(together) == bits(backwards) == bits(alone)
    assert len({outcome.value for outcome in together}) == len(items)


def test_responses_to_one_prompt_are_computed_one_after_the_other(spy: Spy, base: Policy) -> None:
    rude = replace(base, name="rude", system_prompt="Be rude.")
    items = [
        Item(policy, prompt, response)
        for response in ("the", "and")
        for prompt in ("Hello", "Bye")
        for policy in (base, rude)
    ]
    scores([base, rude], items)
    prefixes = [tuple(request.prefix_ids) for (request,) in spy.calls]
    assert len(prefixes) == 8
    assert prefixes[::2] == prefixes[1::2]
    assert len(set(prefixes)) == 4
    assert [len(prefix) > len(prefixes[0]) for prefix in prefixes] == [False] * 4 + [True] * 4


def test_an_outcome_does_not_wait_for_those_behind_it(spy: Spy, base: Policy) -> None:
    with Session([base]) as session:
        outcomes = session.score([Item(base, prompt, "the") for prompt in ("z", "y", "x", "w")])
        for done in (1, 2, 3, 4):
            next(outcomes)
            assert len(spy.calls) == done


def test_one_bad_item_leaves_the_others_alone(base: Policy) -> None:
    bare = replace(base, template="no such template")
    items = [
        Item(base, "Hello", "the"),
        Item(base, "Hello", ""),
        Item(base, "", "the"),
        Item(base, "Hello", "the " * 300),
        Item(bare, "Hello", "the"),
        Item(base, "Hello", None, response_ids=[10**7]),
        Item(base, "Hello", "world"),
    ]
    first, *bad, last = scores([base, bare], items)
    expected = [EmptyResponse, InputError, ContextOverflow, TemplateMissing, InputError]
    assert [type(error) for error in bad] == expected
    assert first.value < 0
    assert last.value < 0
    assert bad[2].available == 256 < bad[2].needed
    assert "policy 'base'" in str(bad[2])


def test_a_failure_of_the_engine_is_the_failed_items_alone(spy: Spy, base: Policy) -> None:
    def failing(requests: Sequence[ScoreRequest], answers: list[Scored]) -> list[Scored]:
        if any(len(request.response_ids) > 5 for request in requests):
            raise EngineError("llama_decode failed")
        return answers

    spy.change = failing
    items = [Item(base, "Hello", text) for text in ("the", "a much longer one", "and")]
    for mode in ("strict", "fast"):
        good, bad, other = scores([base], items, mode=mode)
        assert isinstance(bad, EngineError)
        assert good.value < 0
        assert other.value < 0


@pytest.mark.parametrize("number", [math.nan, -math.inf, None])
def test_a_number_that_is_none_is_an_error_and_not_a_score(spy: Spy, base: Policy, number: float | None) -> None:
    cold = replace(base, decoding=Decoding(temperature=0.5))

    def broken(requests: Sequence[ScoreRequest], answers: list[Scored]) -> list[Scored]:
        (answer,) = answers
        decoded = tuple(DecodedScore((number, *d.logprobs[1:]), d.total) for d in answer.decoded)
        raw = answer.logprobs if decoded else (number, *answer.logprobs[1:])
        return [replace(answer, logprobs=raw, decoded=decoded)]

    spy.change = broken
    for policy in (base, cold):
        (outcome,) = scores([policy], [Item(policy, "Hello", "the")])
        assert isinstance(outcome, NonFinite)
        assert "policy 'base'" in str(outcome).lower()


def test_a_token_outside_a_truncated_policys_support_is_a_value(base: Policy) -> None:
    narrow = replace(base, decoding=Decoding(top_k=1))
    (outcome,) = scores([narrow], [Item(narrow, "Hello", "zqxj")])
    assert (outcome.value, outcome.out_of_support) == (None, True)
    assert outcome.raw_total < 0
    for token in outcome.tokens:
        assert (token.logprob == 0) if token.rank == 1 else (token.logprob is None)


# The store


def test_what_is_stored_is_read_and_no_model_is_loaded(spy: Spy, base: Policy, tmp_path: Path) -> None:
    cold = replace(base, decoding=Decoding(temperature=0.5, top_k=3))
    items = [Item(p, "Hello", text) for p in (base, cold) for text in ("the", "and then", "zqxj")]
    with Store(tmp_path / "s.sqlite") as store:
        first = scores([base, cold], items, store=store)
        assert len(spy.calls) == 3
        spy.opened.clear()
        second = scores([base, cold], items, store=store)
    assert spy.opened == []
    assert bits(first) == bits(second)
    assert [o.stored for o in first + second] == [False] * 6 + [True] * 6
    assert second[-1].out_of_support


def test_each_response_is_stored_as_soon_as_it_is_computed(spy: Spy, base: Policy, tmp_path: Path) -> None:
    """So that a run that is killed has lost the one in flight."""

    def third_kills(requests: Sequence[ScoreRequest], answers: list[Scored]) -> list[Scored]:
        if len(spy.calls) == 3:
            raise KeyboardInterrupt
        return answers

    spy.change = third_kills
    items = [Item(base, "Hello", text) for text in ("the", "and", "world", "code")]
    with Store(tmp_path / "s.sqlite") as store:
        with pytest.raises(KeyboardInterrupt):
            scores([base], items, store=store)
        spy.change = unchanged
        assert sum(outcome.stored for outcome in scores([base], items, store=store)) == 2


def test_what_failed_is_not_stored(spy: Spy, base: Policy, tmp_path: Path) -> None:
    def broken(requests: Sequence[ScoreRequest], answers: list[Scored]) -> list[Scored]:
        return [replace(answer, logprobs=(math.nan, *answer.logprobs[1:])) for answer in answers]

    spy.change = broken
    items = [Item(base, "Hello", "the")]
    with Store(tmp_path / "s.sqlite") as store:
        scores([base], items, store=store)
        spy.change = unchanged
        (outcome,) = scores([base], items, store=store)
    assert (outcome.stored, outcome.value < 0) == (False, True)


# What ends a session


def test_a_model_that_is_not_there_ends_the_session(tmp_path: Path) -> None:
    missing = make_policy("p", {"provider": "llama_cpp", "model": str(tmp_path / "none.gguf")})
    with Session([missing]) as session, pytest.raises(ModelNotFound):
        list(session.score([Item(missing, "Hello", "the")]))


def test_another_mode_is_refused(base: Policy) -> None:
    with pytest.raises(ConfigError, match="mode must be strict or fast"):
        Session([base], mode="exact")  # type: ignore[arg-type]


def test_a_long_list_of_items_is_scored_while_it_is_read(base: Policy) -> None:
    read = 0

    def items() -> Iterator[Item]:
        nonlocal read
        for _ in range(1000):
            read += 1
            yield Item(base, "Hello", "")

    with Session([base]) as session:
        outcome = next(session.score(items()))[1]
    assert isinstance(outcome, LlamalabError)
    assert read < 200


def test_an_endpoint_takes_text_alone() -> None:
    remote = make_policy("r", {"provider": "openai", "model": "x", "base_url": "http://localhost:1/v1"})
    (outcome,) = scores([remote], [Item(remote, "Hello", "the", response_ids=[1])])
    assert isinstance(outcome, InputError)
    assert "response_ids" in str(outcome)


def test_fast_scores_say_how_far_they_moved(base: Policy) -> None:
    """From strict ones, in the first responses; values in the model's own float16 cache move a little."""
    items = [Item(base, "hello world", f"the code is {n}") for n in range(3)]
    with Session([base], mode="fast") as session:
        fast = [outcome for _, outcome in session.score(items)]
    with Session([base]) as session:
        strict = [outcome for _, outcome in session.score(items)]
    moves = [
        abs(a.raw - b.raw)
        for one, other in zip(fast, strict, strict=True)
        if isinstance(one, LogProbResult) and isinstance(other, LogProbResult)
        for a, b in zip(one.tokens, other.tokens, strict=True)
        if a.raw is not None and b.raw is not None
    ]
    assert max(moves) > 0
    assert [one.drift for one in fast if isinstance(one, LogProbResult)] == [max(moves)] * 3
    assert [one.drift for one in strict if isinstance(one, LogProbResult)] == [None] * 3
