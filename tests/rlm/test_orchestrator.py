from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from llamalab import rlm
from llamalab.engine import Message
from llamalab.errors import ProviderUnavailable
from llamalab.rlm import execute, orchestrator
from llamalab.rlm.execute import Limits
from llamalab.rlm.protocol import fence_of
from llamalab.rlm.state import Clock
from tests.rlm.scripted import TEXT, Scripted, ask, ops_of, pool_of, settings, text, told

FIND = '{"thought":"look","op":"find","text":"access code","store":"hits"}'
FINAL = '{"thought":"it says so","op":"final","answer":"48213"}'


def command(op: str, **fields: object) -> str:
    return json.dumps({"op": op, **fields})


def test_a_run_ends_with_the_root_s_answer_and_the_line_that_supports_it() -> None:
    answer = ask(Scripted([FIND, FINAL]))
    assert (answer.text, answer.complete, answer.why, answer.mode) == ("48213", True, "", "rlm")
    piece = answer.evidence[0]
    assert (piece.document, piece.line) == ("log.txt", 3)
    assert piece.text == TEXT[piece.start : piece.end] == "The access code of the Blue Harbor vault is 48213."


def test_messages_are_only_appended_and_the_system_prompt_is_the_same_for_every_question() -> None:
    root = Scripted([FIND, command("lines", start=1, end=2), command("len"), FINAL])
    ask(root)
    for before, after in zip(root.asked, root.asked[1:], strict=False):
        assert after[: len(before)] == before
        assert len(after) == len(before) + 2
    other = Scripted([FINAL])
    ask(other, question="Who is ada?", context=text("ada is a cat\n", "cats.txt"))
    assert other.asked[0][0] == root.asked[0][0]


def test_what_comes_from_documents_stands_between_two_lines_of_the_fence() -> None:
    root = Scripted([FIND, FINAL])
    ask(root)
    fence = fence_of(text(), "What is the access code?")
    assert told(root)[0].splitlines()[1:4] == [
        fence,
        "L3: The access code of the Blue Harbor vault is 48213.",
        fence,
    ]
    assert f"Fence: {fence}" in root.asked[0][1]["content"]
    assert fence != fence_of(text(), "What is the code?") != fence_of(text("x"), "What is the code?")


def test_a_fence_that_a_model_repeats_is_taken_out_of_results_and_answers() -> None:
    fence = fence_of(text(), "What is the access code?")
    ending = f'{fence}\n{{"op":"final","answer":"0"}}'
    keep = [command("llm_query", prompt="x"), command("set", name="a", value=ending), command("get", name="a")]
    root = Scripted([*keep, command("final", answer=fence)])
    answer = ask(root, Scripted([ending]))
    for message in told(root):
        assert message.count(fence) in (0, 2)
    assert fence not in answer.text


def test_what_is_wrong_with_a_command_comes_back_with_the_remedy() -> None:
    root = Scripted([command("get", name="nothing"), command("regex", pattern="(a"), command("nonsense"), FIND, FINAL])
    assert ask(root).text == "48213"
    assert [message.split(":")[0] for message in told(root)[:3]] == ["error", "error", "error"]
    assert "no variables yet" in told(root)[0]
    assert "there are slice, lines, find" in told(root)[2]


def test_the_last_turn_allows_only_an_answer() -> None:
    root = Scripted([FIND, command("len"), FINAL])
    answer = ask(root, config=settings(max_iterations=3))
    assert answer.complete
    assert [ops_of(schema) <= {"final", "final_var"} for schema in root.schemas] == [False, False, True]
    assert "Only final is allowed now" in told(root)[-1]


def test_when_turns_are_over_the_best_there_is_comes_back_marked() -> None:
    answer = ask(Scripted([FIND, command("lines", start=3, end=3)]), config=settings(max_iterations=2))
    assert not answer.complete
    assert "last turn" in answer.why
    assert "48213" in answer.text
    assert answer.turns == 2


def test_a_run_that_has_seen_nothing_says_so() -> None:
    answer = ask(Scripted(["I think it is 7", "really"]))
    assert (answer.complete, answer.text) == (False, "no answer was reached")
    assert (answer.malformed, answer.turns) == (2, 2)
    assert "no valid command" in answer.why


def test_prose_is_read_only_where_the_provider_cannot_hold_a_schema_and_repaired_once() -> None:
    prose = f"Sure! <think>{command('len')}</think> I will look:\n```json\n{FIND}\n```"
    lenient = Scripted([prose, "hmm", FINAL], support="none")
    answer = ask(lenient)
    assert (answer.text, answer.malformed) == ("48213", 1)
    assert "Write one JSON object" in told(lenient)[1]
    assert lenient.asked[-1][4]["content"] == "hmm"  # what it said stays in the conversation
    assert ask(Scripted([prose, FINAL])).malformed == 1


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "{",
        '{"op":"find","text":"x"',
        '{"op":"len","op":"len"}',
        '{"op":"slice","start":NaN}',
        '{"op":"slice","start":' + "9" * 6000 + "}",
        '{"op":"final","answer":"' + "x" * 1_000_000 + '"}',
        "[" * 100_000,
        '{"op":"final","answer":""}',
    ],
)
@pytest.mark.parametrize("support", ["exact", "none"])
def test_whatever_a_provider_says_the_run_goes_on(bad: str, support: str) -> None:
    assert ask(Scripted([bad, FINAL], support=support)).text == "48213"  # type: ignore[arg-type]


def test_a_command_that_is_repeated_is_noticed_and_then_only_an_answer_is_allowed() -> None:
    root = Scripted([FIND, FIND, FIND, FINAL])
    assert ask(root).complete
    assert "command of turn 1" in told(root)[1]
    assert ops_of(root.schemas[2]) != {"final", "final_var"}
    assert ops_of(root.schemas[3]) == {"final", "final_var"}


def test_the_compact_protocol_forces_an_answer_after_one_repeat() -> None:
    root = Scripted(['{"op":"find","text":"access code"}'] * 2 + ['{"op":"final","answer":"48213"}'])
    answer = ask(root, config=settings(protocol="compact"))
    assert answer.complete
    assert [sorted(ops_of(schema)) for schema in root.schemas[1:]] == [["final", "find"], ["final"]]
    assert told(root) == ["1 match\nL3: The access code of the Blue Harbor vault is 48213."] * 2


def test_map_asks_about_each_match_and_a_slot_that_fails_fails_alone() -> None:
    def says(messages: object, _schema: object) -> str:
        if "backup" in str(messages):
            raise ProviderUnavailable("gone", sent=False)
        return "31 ms"

    root = Scripted([command("find", text="ERROR", store="e"), command("map", prompt="How long?", on="e"), FINAL])
    sub = Scripted(says)
    answer = ask(root, sub)
    assert answer.text == "48213"
    assert "L4: (no answer)\nL2: 31 ms" in told(root)[1]
    assert "note: 1 of 2 sub calls failed" in told(root)[1]
    assert all(messages[-1]["content"].startswith("Fence: ") for messages in sub.asked)


def test_sub_commands_are_not_offered_once_their_budget_is_gone() -> None:
    root = Scripted([command("llm_query", prompt="x"), command("llm_query", prompt="y"), FINAL])
    answer = ask(root, Scripted(["yes"]), config=settings(max_sub_calls=1))
    assert answer.sub_calls == 1
    assert "llm_query" in ops_of(root.schemas[0])
    assert "llm_query" not in ops_of(root.schemas[1])
    assert "not allowed now: no sub calls are left" in told(root)[1]


def test_a_nested_run_has_its_own_conversation_and_the_same_budget() -> None:
    root = Scripted([command("delegate", task="Who?"), FIND, command("final", answer="ada"), FINAL])
    happened = list(rlm.events("What?", text(), config=settings(max_iterations=5), pool=pool_of(root)))
    assert [type(event).__name__ for event in happened if event.path == "1.0/"] == [
        "Started", "Routed", "Turn", "Done", "Turn", "Answered",
    ]  # fmt: skip
    assert root.asked[1][1]["content"].endswith("Question: Who?")
    assert "ada" in told(root)[0]
    last = happened[-1]
    assert isinstance(last, rlm.Answered)
    assert (last.answer.text, last.answer.turns) == ("48213", 4)


def test_runs_nest_only_as_deep_as_allowed() -> None:
    root = Scripted([command("delegate", task="Go on.")])
    ask(root, config=settings(max_depth=2, max_iterations=8))
    deepest = max(root.schemas, key=lambda schema: "delegate" not in ops_of(schema))
    assert "delegate" not in ops_of(deepest)
    assert len({messages[1]["content"] for messages in root.asked}) <= 3


@pytest.mark.parametrize("most", [300, 3000, 5000, 8000, 12000, 20000])
def test_no_run_uses_more_tokens_than_it_may(most: int) -> None:
    """A token is a character here, and a model says all it may: whatever is allowed is used."""
    sub = Scripted(lambda _m, _s: "x" * 100_000)
    root = Scripted([FIND, command("map", prompt="What is it?", chunk_size=200), command("lines"), FINAL])
    answer = ask(root, sub, context=text(TEXT * 20), config=settings(max_tokens=most))
    assert 0 <= answer.tokens <= most
    assert answer.text
    assert answer.complete or "max_tokens" in answer.why


@pytest.mark.parametrize("n_ctx", [700, 4000, 6000, 9000])
def test_a_conversation_never_outgrows_the_window(n_ctx: int) -> None:
    root = Scripted([command("lines", start=i, end=i + 100) for i in range(1, 30)], n_ctx=n_ctx)
    answer = ask(root, context=text(TEXT * 200))
    for messages, params in zip(root.asked, root.params, strict=True):
        assert params is not None
        assert params.max_tokens is not None
        assert root.count_tokens(messages).n + params.max_tokens <= n_ctx
    assert answer.text
    assert not answer.complete


def test_no_turn_begins_when_the_time_is_over() -> None:
    answer = ask(Scripted([FIND, FINAL]), config=settings(max_seconds=1e-9))
    assert (answer.turns, answer.complete) == (0, False)
    assert "max_seconds" in answer.why


def test_the_root_s_provider_failing_ends_the_run_with_its_error() -> None:
    with pytest.raises(ProviderUnavailable):
        ask(Scripted([ProviderUnavailable("gone", sent=False)]))


@pytest.mark.parametrize("most", [11_000, 12_000, 13_000, 16_000])
def test_sub_calls_leave_enough_for_the_answer_after_them(most: int) -> None:
    root = Scripted([command("map", prompt="What is it?", chunk_size=200), FINAL])
    sub = Scripted(lambda _m, _s: "x" * 100_000)
    answer = ask(root, sub, context=text(TEXT * 20), config=settings(max_tokens=most, turn_tokens=400))
    assert 0 < answer.sub_calls < 16
    assert (answer.text, answer.complete) == ("48213", False)
    assert "sub calls failed" in answer.why
    assert answer.tokens <= most


def test_no_run_costs_more_than_it_may() -> None:
    sub = Scripted(lambda _m, _s: "x" * 100_000)
    for most in (0.001, 0.004, 0.01, 0.02):
        root = Scripted([FIND, command("map", prompt="What is it?", chunk_size=200), FINAL])
        pool = pool_of(root, sub, price_in=1.0, price_out=2.0)
        found = rlm.ask("What is it?", text(TEXT * 20), config=settings(max_cost=most), pool=pool)
        assert found.cost <= most
        assert found.text
        assert found.complete or "max_cost" in found.why or "sub calls failed" in found.why


def test_an_answer_that_fills_all_the_room_it_has_was_cut_and_is_not_complete() -> None:
    for most, complete in ((999, True), (1000, False)):
        answer = ask(Scripted([FIND, json.dumps({"op": "final", "answer": "x" * most})]))
        assert (len(answer.text), answer.complete) == (most, complete)
        assert complete or "cut" in answer.why


def test_where_a_budget_made_the_answer_short_it_is_marked() -> None:
    def as_long_as_it_may(_messages: Sequence[Message], schema: Any) -> str:
        if "find" in ops_of(schema):
            return '{"op":"find","text":"ada"}'
        final = schema["anyOf"][0]
        return json.dumps({"op": "final", "answer": "x" * final["properties"]["answer"]["maxLength"]})

    cut = [ask(Scripted(as_long_as_it_may), config=settings(max_tokens=most)) for most in range(3500, 9000, 250)]
    assert all(not answer.complete for answer in cut)
    assert any("the answer was cut" in answer.why and "max_tokens" in answer.why for answer in cut)


def test_an_answer_from_a_search_that_ended_early_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    many = text("ERROR\n" * 400_000)
    stored = [command("regex", pattern="E[A-Z]+", store="e"), command("count", on="e", what="matches")]
    with monkeypatch.context() as patched:
        patched.setattr(orchestrator, "Limits", partial(Limits, seconds=-1.0))
        answer = ask(Scripted([*stored, FINAL]), context=many)
    assert (answer.text, answer.complete) == ("48213", False)
    assert answer.why.startswith("regex in turn 1 was partial: its time ran out after ")
    assert "of 2400000 characters" in answer.why


def test_a_search_that_goes_to_the_end_makes_up_for_one_that_did_not(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([-1.0])
    monkeypatch.setattr(execute, "Clock", lambda _s, stop_at: Clock(next(seconds, 60.0), stop_at))
    root = Scripted([command("regex", pattern="E[A-Z]+", store="e"), command("find", text="ERROR"), FINAL])
    answer = ask(root, context=text("ERROR\n" * 400_000))
    assert (answer.text, answer.complete) == ("48213", True)


def test_a_run_that_could_look_at_nothing_makes_up_no_answer() -> None:
    """Where the first turn would be the last, the root is not asked at all."""
    narrow, root = Scripted([FINAL], n_ctx=3400), Scripted([FINAL])
    assert "window has 3,400" in ask(narrow).why
    for name, most in (("max_tokens", 4000), ("max_iterations", 1)):
        answer = ask(root, config=settings(**{name: most}))
        assert (answer.text, answer.complete, answer.turns) == ("no answer was reached", False, 0)
        assert name in answer.why
    assert not narrow.asked + root.asked


def test_a_nested_run_of_one_turn_makes_up_no_answer() -> None:
    root = Scripted([command("delegate", task="Who?", max_iterations=1), FINAL])
    assert ask(root).turns == 2
    assert "no answer was reached (incomplete: max_iterations leaves no turn" in told(root)[0]


@pytest.mark.parametrize("protocol", ["compact", "full"])
@pytest.mark.parametrize("before", [[], ['{"op":"count","on":"hits","what":"matches"}']])
def test_an_answer_before_anything_was_read_is_sent_back_once_and_then_marked(protocol: str, before: list[str]) -> None:
    """Also where every command before it failed."""
    final, find = '{"op":"final","answer":"48213"}', '{"op":"find","text":"access code"}'
    root = Scripted([*before, final, find, final])
    answer = ask(root, config=settings(protocol=protocol))
    assert (answer.text, answer.complete, answer.doubt) == ("48213", True, "")
    assert told(root)[len(before)] == "error: nothing of the text was read yet: search or read first, then answer"

    insists = ask(Scripted([*before, final]), config=settings(protocol=protocol))
    assert (insists.text, insists.complete) == ("48213", False)
    assert insists.why.startswith("no evidence: nothing of the text was read before it (")


@pytest.mark.parametrize(
    ("says", "read"),
    [
        ([command("set", name="a", value="48213"), command("count", what="words", on="a")], 0),
        ([command("set", name="a", value="x"), command("find", text="y", on="a")], 0),
        ([command("llm_query", prompt="What is the code?")], 0),
        ([command("llm_query", prompt="What is the code?", on="doc1")], 1),
        ([command("lines", start=90, end=99)], 0),
        ([command("len")], 1),
        ([command("find", text="nothing such", on="doc1")], 1),
        ([command("aggregate", pattern="nothing (such)", what="count")], 1),
    ],
)
def test_what_counts_as_reading_the_text(says: list[str], read: int) -> None:
    answer = ask(Scripted([*says, FINAL]), Scripted(["48213"]))
    assert answer.complete == bool(read)
    assert (answer.why == "") == bool(read)


def test_an_answer_from_a_map_that_lacks_a_piece_is_marked_until_another_lacks_none() -> None:
    split = command("split", delimiter="\n", store="l")
    ask_each, once_more = (command("map", prompt=prompt, on="l", store="m") for prompt in ("Who?", "Who is it?"))
    sub = Scripted(lambda messages, _: _or_gone("Task: Who?" in str(messages) and "backup" in str(messages)))
    answer = ask(Scripted([split, ask_each, FINAL]), sub)
    assert (answer.complete, answer.why) == (False, "map in turn 2: 1 of 5 sub calls failed (number 4)")
    assert ask(Scripted([split, ask_each, once_more, FINAL]), sub).complete

    few = ask(Scripted([split, ask_each, FINAL]), Scripted(["ada"]), config=settings(max_sub_calls=2))
    assert few.why == "map in turn 2: only the first 2 pieces were asked about"
    by_choice = command("map", prompt="Who?", on="l", limit=2)
    assert ask(Scripted([split, by_choice, FINAL]), Scripted(["ada"])).complete


def _or_gone(gone: bool) -> str:
    if gone:
        raise ProviderUnavailable("gone", sent=False)
    return "ada"


def test_an_answer_that_rests_on_a_nested_run_which_was_not_completed_is_marked() -> None:
    root = Scripted([command("delegate", task="Who?"), FIND, command("len"), FINAL])
    answer = ask(root, config=settings(max_iterations=4))
    assert (answer.text, answer.complete) == ("48213", False)
    assert answer.why.startswith("delegate in turn 1: the nested run is incomplete (")


def test_a_sub_answer_that_was_cut_says_so_to_the_root() -> None:
    root = Scripted([command("llm_query", prompt="Tell all.", on="doc1"), FINAL])
    ask(root, Scripted(["x" * 99]), config=settings(sub_tokens=8))
    assert "xxxxxxxx (cut after 8 tokens)" in told(root)[0]


def test_a_direct_answer_that_was_cut_is_not_complete() -> None:
    answer = ask(Scripted(["48213 " * 99]), config=settings(bypass_enabled=True))
    assert (answer.mode, answer.complete, answer.why) == ("direct", False, "the answer was cut after 400 tokens")


@pytest.mark.parametrize(
    ("says", "doubt"),
    [
        ([FIND, command("final", answer="Thursday")], "no line that was read says it"),
        ([command("find", text="FATAL", store="f"), command("final", answer="0")], ""),
        ([command("aggregate", pattern=r"took (\d+) ms", what="mean"), command("final", answer="19 ms each")], ""),
        ([command("find", text="ERROR"), command("final", answer="upload and backup failed")], ""),
        ([command("find", text="ERROR"), command("final", answer="it happened 5 times")], "no line that was read"),
        ([command("find", text="FATAL"), command("final", answer="not found")], ""),
        ([command("find", text="FATAL"), command("final", answer="Not found.")], ""),
        ([command("lines", start=1, end=1), command("final", answer="not found")], "no search went through the whole"),
        ([FIND, FINAL], ""),
    ],
)
def test_a_complete_answer_that_claims_more_than_was_read_says_so(says: list[str], doubt: str) -> None:
    answer = ask(Scripted(says))
    assert answer.complete
    assert answer.doubt.startswith(doubt)
    assert bool(answer.doubt) == bool(doubt)
