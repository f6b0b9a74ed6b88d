"""Endpoints that fail, and the shapes in which those that work answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamalab.errors import ProviderError, TokenBoundaryError
from llamalab.scoring.completion import Completion, parse_completion
from llamalab.scoring.echo import logprobs_at, response_tokens
from llamalab.scoring.endpoint import Endpoint
from llamalab.scoring.policy import make_policy
from llamalab.scoring.remote import RemoteScorer
from tests.scoring.endpoints import Answer, LetterModel, small_endpoint

RECORDED = Path(__file__).parent / "recorded"


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def scorer(url: str, **settings: Any) -> RemoteScorer:
    return RemoteScorer(make_policy("p", {"provider": "openai", "model": "m", "base_url": url, **settings}))


def endpoint(url: str, **settings: Any) -> Endpoint:
    return Endpoint("openai", "m", base_url=url, **{"retries": 2, "backoff": 0.01, **settings})


def recorded(name: str) -> Completion:
    return parse_completion(json.loads((RECORDED / name).read_text()), where="there")


@pytest.mark.parametrize("method", ["echo", "continuation"])
def test_a_sound_endpoint_gives_the_models_values(method: str) -> None:
    model = LetterModel()
    with small_endpoint(model) as url, scorer(url, method=method) as remote:
        result = remote.score("abc", "dead", finished=False)
        checked = len(model.asked)
        again = remote.score("abc", "dead", finished=False)

    assert result.value == again.value == pytest.approx(sum(model.values("abcdead")[3:]), abs=1e-9)
    assert result.n_prefix == 4
    assert all(asked["max_tokens"] >= 1 for asked in model.asked)
    assert len(model.asked) - checked == (1 if method == "echo" else 2)


@pytest.mark.parametrize("method", ["echo", "continuation"])
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("shifted", "shifted by one token"),
        ("unrelated", "not those of its own generation"),
        ("zero", "cannot be checked"),
        ("deaf", "does not repeat the prompt"),
        ("silent", "no log probabilities"),
    ],
)
def test_an_endpoint_with_a_fault_is_refused_before_it_scores(fault: str, says: str, method: str) -> None:
    with small_endpoint(LetterModel(fault)) as url, scorer(url, method=method) as remote:
        for _ in range(2):
            with pytest.raises(ProviderError, match=says):
                remote.score("abc", "dead", finished=False)


def in_turn(answers: list[Answer]) -> tuple[Callable[[dict[str, Any]], Answer], list[dict[str, Any]]]:
    asked: list[dict[str, Any]] = []

    def answer(body: dict[str, Any]) -> Answer:
        asked.append(body)
        return answers[min(len(asked), len(answers)) - 1]

    return answer, asked


GOOD = LetterModel()({"prompt": "ab", "max_tokens": 1, "echo": True})


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failure_that_may_pass_is_tried_again(status: int) -> None:
    answer, asked = in_turn([Answer({"error": {"message": "busy"}}, status, Retry_After="0"), GOOD])
    with small_endpoint(answer) as url, endpoint(url) as there:
        assert there.complete("ab", echo=True).tokens[:3] == ("<bos>", "a", "b")
    assert len(asked) == 2


def test_a_failure_that_lasts_says_how_often_it_was_tried() -> None:
    answer, asked = in_turn([Answer({"error": {"message": "over capacity"}}, 503)])
    says = r"answers 503 \(over capacity\), tried 3 times"
    with small_endpoint(answer) as url, endpoint(url) as there, pytest.raises(ProviderError, match=says):
        there.complete("ab", echo=True)
    assert len(asked) == 3


def test_a_wait_beyond_the_deadline_is_not_waited_for() -> None:
    answer, asked = in_turn([Answer({"error": "later"}, 429, Retry_After="3600")])
    with small_endpoint(answer) as url, endpoint(url) as there, pytest.raises(ProviderError, match="answers 429"):
        there.complete("ab", echo=True)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Answer({"detail": "logprobs is too large"}, 422), "refuses the request .status 422: logprobs is too large"),
        (Answer({"error": {"message": "no such model"}}, 404), "no such model or address"),
        (Answer(b"", 307, Location="https://elsewhere"), "sends on to https://elsewhere"),
        (Answer(b"<html>hello</html>"), "does not answer with JSON"),
        (Answer({"choices": []}), "shape"),
        (
            Answer({"choices": [{"text": "", "logprobs": {"tokens": ["a"], "token_logprobs": []}}], "usage": {}}),
            "shape",
        ),
    ],
)
def test_a_refusal_is_not_tried_again(answer: Answer, says: str) -> None:
    give, asked = in_turn([answer])
    with small_endpoint(give) as url, endpoint(url) as there, pytest.raises(ProviderError, match=says):
        there.complete("ab", echo=True)
    assert len(asked) == 1


@pytest.mark.parametrize("pause", [0.4, 0.2])
def test_an_endpoint_slower_than_the_deadline_is_one_message(pause: float) -> None:
    """Also one that always sends something before the library's own time is up."""
    slow = Answer(GOOD.content, pause=pause)
    says = r"no answer within 0\.3 seconds"
    with (
        small_endpoint(lambda _: slow) as url,
        endpoint(url, deadline=0.3) as there,
        pytest.raises(ProviderError, match=says),
    ):
        there.complete("ab", echo=True)


def test_a_key_that_an_endpoint_repeats_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_KEY", "sk-secret")
    said = Answer({"error": {"message": "Incorrect API key provided: sk-secret"}}, 401)
    with (
        small_endpoint(lambda _: said) as url,
        endpoint(url, api_key_env="OTHER_KEY") as there,
        pytest.raises(ProviderError, match="refuses the key in OTHER_KEY") as caught,
    ):
        there.complete("ab", echo=True)
    assert "sk-secret" not in str(caught.value)


PROMPT, RESPONSE = "The capital of France is", " Paris."


@pytest.mark.parametrize("name", ["vllm.json", "fireworks_number.json", "fireworks_true.json"])
def test_recorded_shapes_are_read_alike(name: str) -> None:
    completion = recorded(name)
    positions = response_tokens(completion, PROMPT, RESPONSE, where="there")
    assert [completion.tokens[position] for position in positions] == [" Paris", "."]
    assert logprobs_at(completion, positions, where="there") == [-0.4375, -1.625]
    assert completion.ids is None or [completion.ids[position] for position in positions] == [12366, 13]


def test_fireworks_values_are_those_of_the_model_not_of_the_sampler() -> None:
    """It gives both for each token; greedy sampling would make every one of the latter 0."""
    completion = recorded("fireworks_true.json")
    assert completion.logprobs[-1] == -0.8125


def test_an_end_token_is_the_last_position() -> None:
    completion = recorded("vllm_chat.json")
    positions = response_tokens(completion, "<|user|>hi<|assistant|>", "yes", "<|end|>", where="there")
    assert [completion.tokens[position] for position in positions] == ["yes", "<|end|>"]


def test_an_end_token_that_the_endpoint_does_not_know_is_refused() -> None:
    completion = recorded("vllm_chat.json")
    with pytest.raises(ProviderError, match="as ordinary text"):
        response_tokens(completion, "<|user|>hi<|assistant|>", "yes<|", "end|>", where="there")


def test_a_token_over_the_border_is_named() -> None:
    with pytest.raises(TokenBoundaryError, match="' Paris' spans both"):
        response_tokens(recorded("vllm.json"), PROMPT + " Pa", "ris.", where="there")


@pytest.mark.parametrize("value", [None, -9999.0, 0.5, float("nan")])
def test_a_value_that_is_none_is_refused(value: float | None) -> None:
    answer = json.loads((RECORDED / "vllm.json").read_text())
    answer["choices"][0]["logprobs"]["token_logprobs"][6] = value
    completion = parse_completion(answer, where="there")
    with pytest.raises(ProviderError, match="as the log probability of the token ' Paris'"):
        logprobs_at(completion, response_tokens(completion, PROMPT, RESPONSE, where="there"), where="there")


def test_tokens_that_do_not_spell_the_response_are_refused() -> None:
    answer = json.loads((RECORDED / "vllm.json").read_text())
    answer["choices"][0]["logprobs"]["tokens"][6] = " Parma"
    with pytest.raises(ProviderError, match="other tokens than its text: ' Parma' where ' Paris' stands"):
        response_tokens(parse_completion(answer, where="there"), PROMPT, RESPONSE, where="there")
