"""Judges: a number of their range or a row that says why there is none; never a zero in its place."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from llamalab.arena.judges import Judged, JudgeError, Judgement, ToJudge, fingerprint, open_judge
from llamalab.arena.llm_judge import LlmJudge
from llamalab.arena.settings import JudgeSettings
from llamalab.chat import EngineChat
from llamalab.errors import ConfigError, ProviderError
from llamalab.scoring.policy import make_policy
from llamalab.scoring.teacher_forcing import TeacherForcing
from tests.chat_servers import Answer, chat_server, ollama
from tests.fake_engine import FakeEngine

ITEM = ToJudge("r1", "What is 2 + 2?", "4", "4", {"prompt_id": "p1", "answer": "four"})


def one(settings: JudgeSettings, item: ToJudge = ITEM) -> Judgement:
    with closing(open_judge(settings)) as judge:
        ((id, found),) = judge.judge([item])
    assert id == item.id
    return found


def saying(answer: str, **settings: Any) -> tuple[Judgement, FakeEngine]:
    engine = FakeEngine(answer=answer)
    given = JudgeSettings("llm", settings.pop("range", (0.0, 10.0)), **settings)
    with closing(LlmJudge(EngineChat(engine, "chatml"), given)) as judge:
        ((_, found),) = judge.judge([ITEM])
    return found, engine


def by_function(folder: Path, body: str, *, range: tuple[float, float] = (0.0, 1.0)) -> JudgeSettings:
    (folder / "mine.py").write_text(f"def score(prompt, response, row):\n    {body}\n")
    return JudgeSettings("python", range, function="mine.score", folder=folder)


def test_a_random_model_gives_a_score_of_the_range_whatever_it_would_say(tiny_gguf: Path) -> None:
    """The answer is held to reason and score, token by token, and ends."""
    found = one(JudgeSettings("llm", (1.0, 5.0), model=make_policy("judge", {"model": str(tiny_gguf)})))
    assert isinstance(found, Judged)
    assert 1 <= found.score <= 5


def test_a_chat_model_is_asked_once_at_temperature_zero() -> None:
    found, engine = saying('{"reason": "right", "score": 7}')
    assert found == Judged(7.0, "right")
    assert [request.params.temperature for request in engine.requests] == [0.0]


def test_repeats_are_drawn_and_their_mean_is_the_score() -> None:
    found, engine = saying('{"reason": "right", "score": 7}', repeats=3)
    assert found == Judged(7.0, "right")
    assert [(r.params.temperature, r.params.seed) for r in engine.requests] == [(1.0, 0), (1.0, 1), (1.0, 2)]


def test_prompt_response_and_reference_are_in_the_question_and_the_rubric_before_it() -> None:
    _, engine = saying('{"reason": "", "score": 1}', rubric="Only brevity counts.")
    text = engine.detokenize(engine.requests[0].prompt_ids)
    places = [text.index(part) for part in ("Only brevity counts.", "What is 2 + 2?", "<response>\n4\n</response>")]
    assert places == sorted(places)
    assert "<reference>\n4\n</reference>" in text


@pytest.mark.parametrize("answer", ["I would say 7.", '{"reason": "none"}', '{"reason": "", "score": "high"}', "[7]"])
def test_an_answer_without_a_score_is_an_error(answer: str) -> None:
    found, _ = saying(answer)
    assert isinstance(found, JudgeError)
    assert found.error == "no_answer"


@pytest.mark.parametrize("score", ["11", "-1", "NaN"])
def test_a_score_outside_the_range_is_an_error(score: str) -> None:
    found, _ = saying(f'{{"reason": "", "score": {score}}}')
    assert isinstance(found, JudgeError)
    assert found.error == "out_of_range"


def test_an_endless_answer_is_an_error() -> None:
    found, _ = saying("x" * 2000)
    assert isinstance(found, JudgeError)
    assert "512 tokens" in found.message


def test_a_prompt_too_long_for_the_judge_is_an_error_of_that_row_alone() -> None:
    engine = FakeEngine(answer='{"reason": "", "score": 1}')
    items = [ToJudge("long", "x" * 5000, "4"), ITEM]
    with closing(LlmJudge(EngineChat(engine, "chatml"), JudgeSettings("llm", (0.0, 10.0)))) as judge:
        found = dict(judge.judge(items))
    assert found["r1"] == Judged(1.0, "")
    assert isinstance(found["long"], JudgeError)
    assert found["long"].error == "context_overflow"


def test_a_chat_model_that_runs_elsewhere_judges() -> None:
    """As a server does that holds no schema and has a fence around its answer."""
    said = '```json\n{"reason": "right", "score": 7}\n```'
    with chat_server(ollama(said, held=False)) as (url, asked):
        model = make_policy("judge", {"model": "ollama:llama3.2:3b", "base_url": url})
        assert one(JudgeSettings("llm", (0.0, 10.0), model=model)) == Judged(7.0, "right")
    assert "What is 2 + 2?" in asked[-1].body["messages"][-1]["content"]


def test_a_key_that_is_refused_ends_the_run_and_not_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-wrong")
    with chat_server(lambda _: Answer({"error": {"message": "no such key"}}, 401)) as (url, _):
        model = make_policy("judge", {"model": "deepseek:deepseek-chat", "base_url": url})
        with pytest.raises(ProviderError, match="refuses the key in DEEPSEEK_API_KEY"):
            one(JudgeSettings("llm", (0.0, 10.0), model=model))


def test_logprob_is_the_mean_that_teacher_forcing_gives(tiny_gguf: Path) -> None:
    policy = make_policy("judge", {"model": str(tiny_gguf)})
    found = one(JudgeSettings("logprob", (-50.0, 0.0), model=policy))
    with TeacherForcing(model=str(tiny_gguf)) as forcing:
        expected = forcing.compute_log_prob("What is 2 + 2?", "4")
    assert isinstance(found, Judged)
    assert expected.value is not None
    assert found.score == expected.value / expected.n_tokens


def test_an_empty_response_has_no_log_probability_and_no_zero(tiny_gguf: Path) -> None:
    policy = make_policy("judge", {"model": str(tiny_gguf)})
    found = one(JudgeSettings("logprob", (-50.0, 0.0), model=policy), ToJudge("r", "Hello", ""))
    assert isinstance(found, JudgeError)
    assert found.error == "empty_response"


def test_exact_match_forgives_white_space_at_the_ends_and_nothing_else() -> None:
    settings = JudgeSettings("exact_match", (0.0, 1.0))
    scores = [one(settings, ToJudge("r", "?", said, "Blue Harbor")) for said in (" Blue Harbor\n", "blue harbor", "")]
    assert scores == [Judged(1.0), Judged(0.0), Judged(0.0)]


def test_exact_match_takes_the_field_that_is_named() -> None:
    assert one(JudgeSettings("exact_match", (0.0, 1.0), reference="answer")) == Judged(0.0)


def test_a_row_without_a_reference_is_an_error() -> None:
    found = one(JudgeSettings("exact_match", (0.0, 1.0)), ToJudge("r", "?", "4"))
    assert isinstance(found, JudgeError)
    assert "'reference'" in found.message


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return 0.25", Judged(0.25)),
        ("return response == '4'", Judged(1.0)),
        ("return len(row['answer']) / 4, 'as long as four'", Judged(1.0, "as long as four")),
    ],
)
def test_a_function_gets_prompt_response_and_row(tmp_path: Path, body: str, expected: Judged) -> None:
    assert one(by_function(tmp_path, body)) == expected


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("return 1 / 0", "function"),
        ("return None", "function"),
        ("raise SystemExit(0)", "function"),
        ("return 'good'", "function"),
        ("return float('nan')", "out_of_range"),
        ("return 1.5", "out_of_range"),
    ],
)
def test_a_function_that_fails_leaves_an_error_and_the_others_go_on(tmp_path: Path, body: str, error: str) -> None:
    with closing(open_judge(by_function(tmp_path, body))) as judge:
        found = list(judge.judge([ITEM, ITEM]))
    assert [getattr(judgement, "error", None) for _, judgement in found] == [error, error]


@pytest.mark.parametrize(
    ("function", "message"),
    [("absent.score", "absent"), ("mine.other", "no function 'other'"), ("broken.score", "cannot be imported")],
)
def test_a_function_that_cannot_be_had_is_refused_at_once(tmp_path: Path, function: str, message: str) -> None:
    by_function(tmp_path, "return 1")
    (tmp_path / "broken.py").write_text("def score(:\n")
    with pytest.raises(ConfigError, match=message):
        open_judge(JudgeSettings("python", (0.0, 1.0), function=function, folder=tmp_path))


def test_two_folders_may_have_modules_of_one_name(tmp_path: Path) -> None:
    found = []
    for value in ("0.25", "0.75"):
        folder = tmp_path / value
        folder.mkdir()
        found.append(one(by_function(folder, f"return {value}")))
    assert found == [Judged(0.25), Judged(0.75)]


def test_a_changed_function_is_another_judge(tmp_path: Path) -> None:
    first = fingerprint(by_function(tmp_path, "return 0.25"))
    assert fingerprint(by_function(tmp_path, "return 0.5")) != first


@pytest.mark.parametrize("answer", [lambda: math.inf, lambda: -math.inf])
def test_infinity_is_no_score(tmp_path: Path, answer: Callable[[], float]) -> None:
    found = one(by_function(tmp_path, f"return float('{answer()}')"))
    assert isinstance(found, JudgeError)
