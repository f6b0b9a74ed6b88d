from __future__ import annotations

import re
from random import Random

import pytest
from training.evaluate import CELLS, Dialogue, take, wilson

from llamalab.rlm.compact import Count, Final, Find, write_command
from llamalab.rlm.search import find_lines
from training import evaluate


def test_wilson_interval_has_its_published_values() -> None:
    assert wilson(10, 100) == pytest.approx((0.05522914, 0.17436566), abs=1e-7)
    assert wilson(0, 10) == pytest.approx((0.0, 0.27753280), abs=1e-7)


@pytest.mark.parametrize(("task", "wording", "maker"), [cell for cell in CELLS if cell[0].startswith("root")])
def test_every_question_to_a_root_can_be_answered(task: str, wording: str, maker: evaluate.Maker) -> None:
    """The commands a root was taught lead to a block that holds the expected answer, through the real executor."""
    rng = Random(6)
    for _ in range(3):
        dialogue = maker(rng, wording)
        assert dialogue.text is not None
        if "count" in task:
            asked = dialogue.messages[1]["content"].rpartition("Question: ")[2]
            totals = {word: len(find_lines(dialogue.text, word)) for word in re.findall(r"\w+", asked)}
            word = next(word for word, total in totals.items() if str(total) == dialogue.expected)
            for command in (Find(text=word, store="hits"), Count(on="hits")):
                take(dialogue, write_command(command))
            assert dialogue.messages[-1]["content"] == f"count: {dialogue.expected}"
        take(dialogue, write_command(Final(answer=dialogue.expected)))
        assert dialogue.answer == dialogue.expected


def test_a_malformed_turn_is_counted_and_answered_with_the_error() -> None:
    dialogue = Dialogue([], "x", text=[])
    take(dialogue, "I think it is 5")
    assert dialogue.malformed == 1
    assert dialogue.messages[-1]["content"].startswith("error: not a command")
