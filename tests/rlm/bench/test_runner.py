"""The runner: a root without a fault gets every answer right, costs are those of the calls, errors are told."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest

from llamalab.engine import Message
from llamalab.errors import ConfigError, ProviderError
from llamalab.rlm.bench import QUICK, Plan, cells, make_case, plan, read_sizes, row, run
from llamalab.rlm.bench.baselines import matching_lines, reading_tokens
from llamalab.rlm.bench.cells import HEADERS, on_screen
from llamalab.rlm.bench.interval import wilson
from llamalab.rlm.config import default_config
from tests.rlm.bench.roots import Scripted, pool_of, steer, steer_or_say

CONFIG = replace(default_config(), protocol="compact")
PICO = ("find", "count", "absent")


def test_a_root_without_a_fault_gets_all_of_it_right() -> None:
    pool = pool_of(steer)
    outcomes = list(run(Plan(PICO, (8_000,), 3, modes=("rlm",)), pool, CONFIG))
    assert [outcome.task for outcome in outcomes] == [task for task in PICO for _ in range(3)]
    assert [(outcome.answer, outcome.gold) for outcome in outcomes if not outcome.right] == []
    assert all(outcome.complete and outcome.malformed == 0 and not outcome.error for outcome in outcomes)
    model = pool.providers[0].model
    assert sum(outcome.turns for outcome in outcomes) == len(model.asked)
    sent = sum(len(str(message["content"])) for asked in model.asked for message in asked)
    assert sum(outcome.usage["root"].fresh for outcome in outcomes) == sent


def test_what_does_not_fit_is_cut_in_its_middle() -> None:
    pool = pool_of(lambda _: "48213", context=2000)
    (whole,) = run(Plan(("find",), (4_000,), 1, modes=("direct",)), pool_of(lambda _: "48213"), CONFIG)
    (cut,) = run(Plan(("find",), (50_000,), 1, modes=("direct",)), pool, CONFIG)
    assert (whole.cut, cut.cut) == (False, True)
    text = make_case("find", 50_000, 0).text
    (asked,) = pool.providers[0].model.asked
    said = str(asked[0]["content"])
    assert 1000 < len(said) <= 1800
    assert said.startswith(f"Text:\n{text[:500]}")
    assert text[-500:] in said
    assert cut.reading == pytest.approx(len(text), abs=20)


def test_one_call_after_grep_is_shown_the_lines_with_the_rarest_words() -> None:
    def read(messages: Sequence[Message]) -> str:
        said = str(messages[0]["content"])
        attribute, thing = re.search(r"Question: What is the (.*) of the (.*)\?", said).groups()
        return re.search(rf"The {attribute} of the {thing} is (.*)\.", said).group(1)

    pool = pool_of(read, context=2000)
    outcomes = list(run(Plan(("find",), (30_000,), 4, modes=("grep",)), pool, CONFIG))
    assert all(outcome.right for outcome in outcomes)
    assert all(outcome.tokens < 2000 < outcome.reading for outcome in outcomes)


@pytest.mark.parametrize("context", [1_500, 20_000])
def test_of_many_lines_that_match_as_many_are_shown_as_fit(context: int) -> None:
    pool = pool_of(lambda _: "many", context=context)
    (outcome,) = run(Plan(("count",), (60_000,), 1, modes=("grep",)), pool, CONFIG)
    (asked,) = pool.providers[0].model.asked
    most = min(context - 200, 4_000)
    assert most - 250 < len(str(asked[0]["content"])) <= most + 100
    assert outcome.complete


def test_lines_are_ranked_by_the_rarity_of_their_words() -> None:
    text = "the vault is old\nthe code of the vault\nZorp vault\ncode code code\nnothing"
    assert matching_lines("What is the code of the Zorp vault?", text) == [
        (3, "Zorp vault"),
        (2, "the code of the vault"),
        (4, "code code code"),
        (1, "the vault is old"),
    ]
    assert matching_lines("What is it?", text) == []


def test_reading_is_counted_by_the_model_that_is_asked() -> None:
    assert reading_tokens(Scripted(steer), "x" * 123_456) == 123_456
    assert reading_tokens(Scripted(steer, exact=False), "x" * 3000) == pytest.approx(1000, abs=2)


def test_a_provider_that_refuses_is_a_wrong_answer_and_the_next_question_is_asked() -> None:
    def refuse(messages: Sequence[Message]) -> str:
        raise ProviderError("It does not want to.")

    outcomes = list(run(Plan(("find",), (4_000,), 2), pool_of(refuse), CONFIG))
    assert len(outcomes) == 6
    assert all(not outcome.right and "It does not want to." in outcome.error for outcome in outcomes)


def test_cells_add_up_what_happened() -> None:
    outcomes = list(run(Plan(PICO, (4_000, 8_000), 2, modes=("rlm", "grep")), pool_of(steer_or_say), CONFIG))
    found = cells(outcomes)
    assert [(cell.mode, cell.task, cell.size, cell.n) for cell in found[:3]] == [
        ("rlm", "find", 4_000, 2),
        ("grep", "find", 4_000, 2),
        ("rlm", "count", 4_000, 2),
    ]
    (rlm,) = [cell for cell in cells(outcomes, by_task=False, by_size=False) if cell.mode == "rlm"]
    mine = [outcome for outcome in outcomes if outcome.mode == "rlm"]
    assert (rlm.n, rlm.right, rlm.accuracy) == (12, 12, 1.0)
    assert (rlm.low, rlm.high) == wilson(12, 12)
    assert rlm.root_tokens * 12 == pytest.approx(sum(outcome.tokens for outcome in mine))
    assert rlm.share == pytest.approx(sum(o.tokens for o in mine) / sum(o.reading for o in mine))
    assert rlm.sub_tokens == rlm.malformed == rlm.errors == 0
    assert len(row(rlm)) == len(HEADERS)
    assert row(rlm)[2:6] == ("all", "all", "12", "100%")


def test_on_a_screen_a_table_is_short_and_leaves_out_what_tells_nothing() -> None:
    """What differs between rows is never left out."""
    outcomes = list(run(Plan(("find", "count"), (4_000,), 2, modes=("rlm", "grep")), pool_of(steer_or_say), CONFIG))
    caption, headers, rows = on_screen(cells(outcomes))
    assert caption == "scripted, 2 questions of each kind and length"
    assert [header.replace("\n", " ") for header in headers] == [
        "mode", "kind", "chars", "right", "95%", "root tokens", "of reading", "turns", "s",
    ]  # fmt: skip
    assert rows[0][:5] == ("rlm", "find", "4k", "100%", "34-100%")
    worse = [replace(outcome, model="other", score=0.3, malformed=1) for outcome in outcomes[:1]]
    _, headers, rows = on_screen(cells([*outcomes, *worse]))
    assert {"model", "n", "score", "mal-\nformed"} <= set(headers)
    assert all(len(each) == len(headers) for each in rows)


@pytest.mark.parametrize(
    ("typed", "sizes"), [("8k", (8_000,)), ("8k, 64k,1M", (8_000, 64_000, 1_000_000)), ("500", (500,))]
)
def test_sizes_are_read_as_they_are_typed(typed: str, sizes: tuple[int, ...]) -> None:
    assert read_sizes(typed) == sizes


@pytest.mark.parametrize("typed", ["", "8K", "k", "1.5M", "-8k", "8k,", "²", "9" * 5000])
def test_other_sizes_are_refused(typed: str) -> None:
    with pytest.raises(ConfigError, match="is no size"):
        read_sizes(typed)


@pytest.mark.parametrize(
    "wrong",
    [{"tasks": ["nothing"]}, {"sizes": [100]}, {"sizes": [10**9]}, {"n": 0}, {"modes": ["guess"]}],
)
def test_a_plan_that_cannot_be_done_is_refused_before_it_begins(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        plan(**wrong)


def test_a_plan_names_each_question_once() -> None:
    made = plan(tasks=["pico", "find", "labels"], sizes=[8_000, 4_000, 8_000], n=2, modes=["grep", "rlm"])
    assert made.tasks == ("find", "count", "absent", "labels-counting", "labels-users", "labels-timeline")
    assert made.sizes == (4_000, 8_000)
    assert made.modes == ("rlm", "grep")
    assert len(made) == 48 == 2 * len(list(made.cases()))
    assert len(QUICK) == 72
