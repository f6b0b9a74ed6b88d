"""The matrix: what a root writes, whether it finishes, whether it is right; and what is drawn of outcomes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from llamalab.engine import Message
from llamalab.rlm.bench import Plan, plot, run
from llamalab.rlm.bench.matrix import HEADERS, Listened, Steering, capability, is_json_object, rows
from llamalab.rlm.config import default_config
from llamalab.rlm.providers import Pool, Provider
from tests.rlm.bench.roots import Scripted, pool_of, steer, steer_or_say

CONFIG = replace(default_config(), protocol="compact")
SMALL = Plan(("find", "count"), (4_000,), 2, modes=("rlm",))


def test_a_root_that_steers_is_viable() -> None:
    told: list[tuple[str, int]] = []
    found = capability(pool_of(steer), CONFIG, plan=SMALL, told=lambda how, n: told.append((how, n)))
    assert told == [("free" if n <= 4 else "held to the schema", n) for n in range(1, 9)]
    for steering in (found.free, found.constrained):
        assert (steering.json, steering.valid, steering.finished, steering.right) == (1, 1, 1, 1)
        assert steering.viable == "yes"
    assert [row[0:2] for row in rows([found])] == [("scripted", "free"), ("scripted", "schema (exact)")]
    assert all(len(row) == len(HEADERS) for row in rows([found]))


def test_a_root_that_writes_prose_is_not() -> None:
    found = capability(pool_of(lambda _: "Let me look for that first."), CONFIG, plan=SMALL)
    assert (found.free.json, found.free.valid, found.free.finished, found.free.right) == (0, 0, 0, 0)
    assert found.free.viable == "no"


def test_json_that_is_no_command_counts_as_json_alone() -> None:
    def wrong(messages: Sequence[Message]) -> str:
        return '{"op":"grep","text":"x"}'

    found = capability(pool_of(wrong), CONFIG, plan=SMALL).free
    assert (found.json, found.valid, found.viable) == (1, 0, "no")


def test_what_the_model_says_to_sub_questions_is_no_turn() -> None:
    """A root that is its own sub model: its answers in prose are not counted as broken JSON."""

    def ask_then_answer(messages: Sequence[Message]) -> str:
        if "op" not in str(messages[0]["content"]):
            return "Some prose."
        asked = any(message["role"] == "assistant" for message in messages)
        if asked:
            return '{"thought":"","op":"final","answer":"not found"}'
        return '{"thought":"","op":"llm_query","prompt":"What?","store":"said"}'

    model = Scripted(ask_then_answer, context=200_000)
    pool = Pool([Provider("scripted", model)])
    found = capability(pool, replace(CONFIG, protocol="full"), plan=SMALL)
    assert any("op" not in str(asked[0]["content"]) for asked in model.asked)
    assert found.constrained.json == found.constrained.valid == 1


def test_no_schema_reaches_a_root_that_writes_freely() -> None:
    seen = []

    class Watched(Scripted):
        def chat(self, messages, params=None, *, schema=None, **rest):
            seen.append(schema)
            return super().chat(messages, params, schema=schema, **rest)

    told: list[str] = []
    free, held = (Listened(Watched(lambda _: "hello"), told.append, free=free) for free in (True, False))
    for model in (free, held):
        model.chat([], schema={"type": "object"})
        list(model.stream([], schema={"type": "object"}))
    assert seen == [None, None, {"type": "object"}, {"type": "object"}]
    assert told == ["hello"] * 4
    assert (free.info.schema_support, held.info.schema_support) == ("none", "exact")


@pytest.mark.parametrize(
    ("finished", "right", "viable"),
    [(0.9, 0.8, "yes"), (0.89, 1, "unreliable"), (1, 0.79, "unreliable"), (0.5, 0.4, "unreliable"), (1, 0.3, "no")],
)
def test_viability_follows_its_bounds(finished: float, right: float, viable: str) -> None:
    assert Steering(10, 30, 1, 1, finished, right, 0).viable == viable


@pytest.mark.parametrize("text", ['{"op":"x"} and more', "[1]", "1", "", '```json\n{"a":1}\n```', "[" * 100_000])
def test_only_one_object_alone_is_consistent_json(text: str) -> None:
    assert not is_json_object(text)
    assert is_json_object(' {"op":"x"}\n')


def test_the_picture_shows_every_mode_at_every_length(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    outcomes = list(run(Plan(("find",), (4_000, 8_000), 1), pool_of(steer_or_say), CONFIG))
    path = tmp_path / "bench.svg"
    plot(outcomes, path)
    svg = path.read_text()
    for words in ("right answers", "tokens of a question", "characters of the text", "rlm", "direct", "grep"):
        assert re.search(rf"<!-- {words} -->", svg), words
