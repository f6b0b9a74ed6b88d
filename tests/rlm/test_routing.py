from __future__ import annotations

import pytest

from tests.rlm.scripted import TEXT, Scripted, ask, settings, text


def answer(n_ctx: int = 100_000, content: str = TEXT, **config: object):  # type: ignore[no-untyped-def]
    final = '{"op":"final","answer":"48213"}'
    root = Scripted(lambda _messages, schema: "48213" if schema is None else final, n_ctx=n_ctx)
    return ask(root, context=text(content), config=settings(**config))


@pytest.mark.parametrize(
    ("config", "mode", "why"),
    [
        ({"bypass_enabled": False, "bypass_threshold": 4000}, "rlm", "bypass_enabled is false"),
        ({"bypass_enabled": True, "bypass_threshold": 4000}, "direct", "below bypass_threshold, 4,000"),
        ({"bypass_enabled": True, "bypass_threshold": 100}, "rlm", "not below bypass_threshold, 100"),
        ({"bypass_enabled": True, "bypass_threshold": "auto"}, "direct", "a run would cost about"),
    ],
)
def test_the_configured_bypass_is_honoured(config: dict[str, object], mode: str, why: str) -> None:
    found = answer(**config)
    assert found.mode == mode
    assert why in found.route.why
    assert found.text == "48213"


def test_a_text_that_does_not_fit_the_window_is_never_asked_about_directly() -> None:
    found = answer(n_ctx=4800, content=TEXT * 40, bypass_enabled=True, bypass_threshold=10**9)
    assert found.mode == "rlm"
    assert "do not fit the window of 4,800" in found.route.why


def test_auto_takes_what_is_predicted_to_cost_less() -> None:
    """Both predictions are in the result, and they decide."""
    for size in (1, 10, 60, 100, 200, 400):
        route = answer(content=TEXT * size, bypass_enabled=True).route
        assert route.direct_tokens is not None
        assert route.run_tokens is not None
        assert (route.mode == "direct") == (route.direct_tokens <= route.run_tokens)
    assert route.mode == "rlm"


def test_a_direct_answer_is_found_again_in_the_text() -> None:
    found = answer(bypass_enabled=True)
    assert [piece.line for piece in found.evidence] == [3]
    assert (found.turns, found.tokens > 0) == (1, True)


def test_an_empty_direct_answer_is_marked() -> None:
    found = ask(Scripted(["  "]), config=settings(bypass_enabled=True))
    assert (found.complete, found.text) == (False, "no answer was reached")
