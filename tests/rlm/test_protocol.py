from __future__ import annotations

import pytest

from llamalab.rlm import compact, grammar, protocol
from llamalab.rlm.commands import COMMANDS
from llamalab.rlm.execute import SubCall
from tests.rlm.scripted import TEXT, Scripted, ask, settings, text
from training import evaluate

COMPACT_RUNS = [
    ['{"op":"find","text":"access code of the Blue Harbor vault"}', '{"op":"final","answer":"48213"}'],
    [
        '{"op":"find","text":"ERROR","store":"hits"}',
        '{"op":"count","on":"hits","what":"matches"}',
        '{"op":"final","answer":"2"}',
    ],
    [
        '{"op":"find","text":"access code of the Red Lion vault"}',
        '{"op":"find","text":"ada login","store":"a"}',
        '{"op":"find","text":"ADA"}',
        '{"op":"final","answer":"not found"}',
    ],
]


@pytest.mark.parametrize("says", COMPACT_RUNS)
def test_a_compact_run_says_byte_for_byte_what_pico_was_measured_with(says: list[str]) -> None:
    """The loop in training/evaluate.py holds the same conversation over the same lines."""
    root = Scripted(says)
    ask(root, question="Where?", context=text(TEXT + "\n"), config=settings(protocol="compact"))
    lines = [evaluate.Line(number, line) for number, line in enumerate(TEXT.split("\n"), 1)]
    dialogue = evaluate.root_dialogue(lines, "Where?", "")
    for said in says[:-1]:
        evaluate.take(dialogue, said)
    assert root.asked[-1] == dialogue.messages
    stored = set()
    for n, schema in enumerate(root.schemas):
        assert schema == compact.command_schema(variables=stored)
        stored |= {"hits"} if "hits" in says[n] else {"a"} if '"a"' in says[n] else set()


def test_the_full_prompt_tells_every_operation_that_may_come_and_no_other() -> None:
    def told(ops: tuple[str, ...]) -> str:
        return str(protocol.opening("full", "q", text(), "f" * 32, ops=ops)[0]["content"])

    everything = told(tuple(COMMANDS))
    assert all(f"\n{op}(" in everything for op in COMMANDS)
    assert grammar.describe_commands() in everything
    assert "\nmap(" not in told(grammar.allowed_ops(sub_calls=False))


def test_the_system_prompt_s_examples_are_commands() -> None:
    system = protocol.opening("full", "q", text(), "f" * 32)[0]["content"]
    examples = [line for line in system.splitlines() if line.startswith('{"thought"')]
    assert len(examples) == 2
    for line in examples:
        assert protocol.written(protocol.read_turn("full", line, tolerant=False)) == line


def test_a_sub_call_has_its_task_first_so_that_calls_of_one_map_share_a_prefix() -> None:
    fence = protocol.sub_fence("f" * 32)
    one, other = (protocol.sub_messages(SubCall(n, "Who?", f"text {n}"), fence) for n in (1, 2))
    assert one[0] == other[0]
    assert one[1]["content"].split("text 1")[0] == other[1]["content"].split("text 2")[0]
    assert fence != "f" * 32
    assert protocol.sub_messages(SubCall(0, "Who?", f"a {fence} b"), fence)[1]["content"].count(fence) == 3


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ('{"op":"len"}', '{"op":"len"}'),
        ('I say {so} and {"a":1} then {"op":"len"} or {"op":"final","answer":"x"}', '{"op":"len"}'),
        ('<think>{"op":"final","answer":"no"}</think>```json\n{"op": "len"}\n```', '{"op":"len"}'),
        ('{"op":"slice","start":-10}', '{"op":"slice","start":-10}'),
    ],
)
def test_a_command_is_found_in_what_a_free_model_says(said: str, found: str) -> None:
    assert protocol.written(protocol.read_turn("full", said, tolerant=True)) == found


def test_a_line_too_long_to_be_shown_whole_is_shown_where_it_matches() -> None:
    """Minified JSON, a log without line ends: the phrase is what the root asked for, not the beginning."""
    line = "x = 1; " * 5000 + "The access code of the Blue Harbor vault is 48213. " + "y = 2; " * 5000
    root = Scripted(['{"op":"find","text":"code of the blue harbor vault"}', '{"op":"final","answer":"48213"}'])
    ask(root, question="Where?", context=text(line), config=settings(protocol="compact"))
    assert root.asked[-1][-1]["content"] == "1 match\nL1: The access code of the Blue Harbor vault is 48213."
