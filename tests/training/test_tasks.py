from __future__ import annotations

from random import Random

import numpy as np
import pytest
from tokenizers import Tokenizer
from training.data import Encoder, batches, draw
from training.tokenizer import TOKENIZER

from llamalab.rlm.compact import NOT_FOUND, parse_command
from training import binding, facts, others, passages, root, tasks, words


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(Tokenizer.from_file(str(TOKENIZER)))


@pytest.mark.parametrize(
    ("trained", "held_out"),
    [
        (facts.QUESTIONS, facts.HELD_OUT_QUESTIONS),
        (facts.STATEMENTS, facts.HELD_OUT_STATEMENTS),
        (root.COUNTS, root.HELD_OUT_COUNTS),
        (passages.LAYOUTS, passages.HELD_OUT_LAYOUTS),
        (others.REPEATS, others.HELD_OUT_REPEATS),
        (others.LISTS, others.HELD_OUT_LISTS),
        (others.STORIES, others.HELD_OUT_STORIES),
        (others.SUMS, ()),
    ],
)
def test_every_task_has_twenty_phrasings_and_holds_some_back(
    trained: tuple[str, ...], held_out: tuple[str, ...]
) -> None:
    assert len(set(trained)) >= 20
    assert not set(trained) & set(held_out)


def test_training_never_sees_a_held_out_name() -> None:
    rng = Random(0)
    assert not any(words.is_held_out(words.entity(rng)) for _ in range(2000))
    assert all(words.is_held_out(words.entity(rng, held_out=True)) for _ in range(200))
    for _ in range(500):
        a, b = (int(n) for n in "".join(c if c.isdigit() else " " for c in others.sums(rng, 1.0).turns[0]).split())
        assert not words.is_held_out(f"{a}+{b}")


def test_what_a_root_says_is_commands_and_its_answer_stands_in_the_last_block() -> None:
    """Every assistant turn of a root parses; an answer is in the block before it, or nothing is."""
    rng = Random(1)
    for _ in range(300):
        for task in (root.root_find, root.root_retry, root.root_not_found, root.root_count):
            turns = task(rng, 1.0).turns
            commands = [parse_command(turn) for turn in turns[1::2]]
            assert [c.op for c in commands][-1] == "final"
            answer = commands[-1].answer  # type: ignore[union-attr]
            assert answer == NOT_FOUND or answer in turns[-2]


def test_a_passage_answers_its_questions_or_says_it_does_not() -> None:
    """Also after a question that it could not answer; a value is written as the passage writes it."""
    rng = Random(2)
    seen = set()
    for _ in range(500):
        asked, *_ = turns = passages.passage(rng, 1.0).turns
        for answer in turns[1::2]:
            absent = answer == passages.NOT_IN_TEXT
            seen.add((absent, len(turns) > 2))
            value = answer.rpartition(" is ")[2].removesuffix(".") if answer.endswith(".") else answer
            assert absent or value in asked
    assert len(seen) == 4


def test_batches_repeat_and_weigh_what_pico_says(encoder: Encoder) -> None:
    """The same seed gives the same batches; padding weighs nothing, pico's own words one."""
    first, again = (batches(encoder, seed=3) for _ in range(2))
    for _ in range(5):
        one, other = next(first), next(again)
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.prefix, other.prefix)
        assert set(np.unique(one.weights)) <= {np.float32(x) for x in (0.0, 0.1, 1.0)}
        assert not one.weights[one.ids == encoder.pad].any()
        assert (one.weights == 1).any(axis=1).all()


@pytest.mark.parametrize("part", tasks.PARTS, ids=lambda part: str(part.first))
def test_each_part_draws_all_its_tasks(part: tasks.Part) -> None:
    assert sum(part.mixture.values()) == pytest.approx(1.0)
    rng = Random(4)
    drawn = {draw(rng, part.first).task for _ in range(1500)}
    assert drawn == {task(Random(0), 1.0).task for task in part.mixture}
    assert tasks.part_of(part.first) is part


def test_the_world_of_binding_grows_from_three_things_to_all() -> None:
    sizes = [len(binding.known_kinds(level / 20)) for level in range(21)]
    assert (sizes[0], sizes[-1]) == (3, len(words.KINDS))
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("task", [binding.short_facts, binding.facts_by_kind, binding.facts_by_name])
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_a_fact_is_found_by_what_it_is_about_alone(task: tasks.Task, level: float) -> None:
    """Of all that is stated, the one sentence about the thing asked for holds the answer, and no other does."""
    rng = Random(6)
    for _ in range(100):
        turns = task(rng, level).turns
        *stated, _ = turns[0].split(". ")
        for asked, answer in zip(turns[::2], turns[1::2], strict=True):
            about = asked.rpartition("he ")[2].removesuffix("?")
            (sentence,) = [sentence for sentence in stated if f" {about} is" in sentence]
            assert sentence.endswith(f" {answer}")
            assert sum(other.endswith(f" {answer}") for other in stated) == 1


def test_layout_is_the_chat_template_of_the_shipped_model(encoder: Encoder) -> None:
    """The ids of a conversation in training are those that chat sends."""
    from llamalab.chat import EngineChat
    from llamalab.engines import load

    rng = Random(5)
    chat = EngineChat(load("pico", vocab_only=True))
    for _ in range(60):
        episode = draw(rng, 6000)
        ids = encoder.system(episode.system) + encoder.turns(episode.turns)[0]
        roles = ["user", "assistant"] * len(episode.turns)
        messages = [{"role": "system", "content": episode.system}] if episode.system else []
        messages += [{"role": role, "content": turn} for role, turn in zip(roles, episode.turns, strict=False)]
        sent = chat.prompt_ids(messages, add_generation_prompt=False)
        assert sent[:-1] == ids
        assert chat.engine.detokenize(sent[-1:]) == "\n"
    chat.close()


@pytest.mark.parametrize(
    "text",
    [
        "  two  spaces ",
        "line\n\n\nbreaks\r\n\ttab",
        "don't we'll I'M",
        "x=1.5e-3;y²",
        "Ünïcödé 漢字 🙂🏽",
        "a" * 500,
        '{"op":"find","text":"a\\"b"}',
        "",
        "٣٤",
    ],
)
def test_runtime_cuts_text_as_the_tokeniser_does(encoder: Encoder, text: str) -> None:
    from llamalab.engines import load

    engine = load("pico", vocab_only=True)
    assert engine.tokenize(text) == encoder.text(text)
    assert engine.detokenize(encoder.text(text)) == text
    engine.close()
