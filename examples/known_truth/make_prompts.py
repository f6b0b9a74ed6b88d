"""Make prompts.jsonl: questions that pico never saw, each with the answers that it is torn between.

    python examples/known_truth/make_prompts.py

Names, sums and words are those that training held out. The answers of a prompt are the right one, wrong ones that look
like it, refusals, and what pico itself says when it is sampled hot; the most probable are kept. Prompts that pico is
sure about are left out: where one answer has all the probability, every policy says the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from training.facts import Fact, question, statement

from llamalab.arena.candidate_scores import normalised
from llamalab.chat import EngineChat
from llamalab.engine import GenerateRequest, Generation, SamplingParams
from llamalab.engines import load
from llamalab.scoring.policy import make_policy
from llamalab.scoring.session import Item, Session
from training import evaluate, others, passages

HERE = Path(__file__).resolve().parent
CANDIDATES = 24
SHARES = {"passage": 100, "repeat": 40, "sum": 60}
"""Prompts of each task."""

REFUSALS = ("not in the text", "I do not know.", "The text does not say.", "Sorry, I cannot help with that.")
SURE = 0.5
"""Nats of entropy over the candidates at temperature 1; prompts below are left out."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt on its way: what is asked, the right answer, and wrong ones that were thought up."""

    task: str
    prompt: str
    reference: str
    wrong: tuple[str, ...]


def main() -> None:
    """Ask, sample, score, choose, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "prompts.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=18, help="hot samples of pico for each prompt")
    arguments = parser.parse_args()
    rows = []
    with closing(EngineChat(load("pico", n_seq=16))) as chat:
        for task, count in SHARES.items():
            found: list[dict[str, object]] = []
            for asked in questions(task, Random(f"{arguments.seed}/{task}")):
                if len(set(said(chat, asked, 6, (1.0,)))) < 2:  # sure already
                    continue
                kept = chosen(asked, pool(chat, asked, arguments.samples))
                if kept is not None:
                    number = f"{task}-{len(found):03}"
                    found.append(
                        {
                            "prompt_id": number,
                            "stratum": task,
                            "prompt": asked.prompt,
                            "reference": asked.reference,
                            "candidates": kept,
                        }
                    )
                    print(number, asked.reference, file=sys.stderr, flush=True)
                if len(found) == count:
                    break
            rows += found
    arguments.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def questions(task: str, rng: Random) -> Iterator[Question]:
    """Questions without end."""
    makers = {"passage": passage, "repeat": repeat, "sum": sum_of_two}
    while True:
        yield makers[task](rng)


def passage(rng: Random) -> Question:
    """Two or three facts with names that training held out; some in words it held out as well."""
    facts, fact = passages.passage_facts(rng, rng.choice((2, 2, 3)), held_out=True, alike=0.8)
    style = rng.choice(("canonical", "any", "held_out"))
    sentences = [statement(rng, each, style) for each in facts]
    rng.shuffle(sentences)
    asked = question(rng, fact, style)
    prompt = passages.lay_out(passages.CANONICAL_LAYOUT, sentences, asked)
    values = [each.value for each in facts if each is not fact]
    alike = [near(rng, value) for value in (fact.value, fact.value, fact.value, *values)]
    said = [sentence(fact, value) for value in (fact.value, *values, alike[0])]
    other = [fact.attribute.value(rng) for _ in range(3)]
    return Question("passage", prompt, fact.value, (*values, *alike, *said, *other))


def sentence(fact: Fact, value: str) -> str:
    """A whole sentence with a value."""
    return f"The {fact.attribute.name} of the {fact.entity} is {value}."


def repeat(rng: Random) -> Question:
    """Up to three words to say again."""
    text = others.something(rng, 3)
    while len(text) > 30:
        text = others.something(rng, 3)
    template = rng.choice((*others.REPEATS[:1], *others.HELD_OUT_REPEATS))
    parts = text.split()
    wrong = [near(rng, text) for _ in range(4)] + [" ".join(parts[:-1]), " ".join(reversed(parts)), text.lower()]
    return Question("repeat", template.replace("{X}", text), text, tuple(wrong))


def sum_of_two(rng: Random) -> Question:
    """A sum of two numbers that training held out."""
    asked = evaluate.sums(rng, "canonical")
    value = int(asked.expected)
    wrong = [str(value + step) for step in (-10, -2, -1, 1, 2, 10, 100)] + [asked.expected[::-1]]
    return Question("sum", str(asked.messages[0]["content"]), asked.expected, tuple(wrong))


def near(rng: Random, text: str) -> str:
    """The text with one letter or digit changed."""
    places = [number for number, letter in enumerate(text) if letter.isalnum()]
    if not places:
        return text
    at = rng.choice(places)
    letters = "0123456789" if text[at].isdigit() else "abcdefghijklmnopqrstuvwxyz"
    letter = rng.choice(letters.replace(text[at].lower(), ""))
    return text[:at] + (letter.upper() if text[at].isupper() else letter) + text[at + 1 :]


def pool(chat: EngineChat, question: Question, samples: int) -> list[str]:
    """Everything that may become a candidate, the right answer first."""
    hot = said(chat, question, samples, (1.2, 1.5, 1.8))
    return list(dict.fromkeys(each for each in (question.reference, *REFUSALS, *question.wrong, *hot) if each))


def said(chat: EngineChat, question: Question, samples: int, temperatures: Sequence[float]) -> list[str]:
    """What pico says, by turns at each temperature, where it came to an end."""
    ids = chat.prompt_ids([{"role": "user", "content": question.prompt}])
    requests = [
        GenerateRequest(
            ids, SamplingParams(max_tokens=16, temperature=temperatures[number % len(temperatures)], seed=number)
        )
        for number in range(samples)
    ]
    return [
        event.text.strip()
        for event in chat.engine.generate(requests)
        if isinstance(event, Generation) and event.finish_reason == "stop" and event.text.isprintable()
    ]


def chosen(question: Question, answers: Sequence[str]) -> list[str] | None:
    """The right answer, a refusal, and the most probable others; None where pico is sure, or there are too few."""
    if len(answers) < CANDIDATES:
        return None
    policies = [make_policy(str(t), {"model": "pico", "temperature": t}) for t in (1.0, 1.6)]
    items = [Item(policy, question.prompt, answer) for answer in answers for policy in policies]
    scores = [outcome.value for _, outcome in _session(policies).score(items)]  # type: ignore[union-attr]
    cold, hot = (np.exp(normalised(scores[number::2])) for number in (0, 1))
    must = {question.reference, REFUSALS[0]}
    order = sorted(range(len(answers)), key=lambda n: (answers[n] not in must, -(cold[n] + hot[n])))[:CANDIDATES]
    p = cold[order] / cold[order].sum()
    if -(p * np.log(np.maximum(p, 1e-300))).sum() < SURE:
        return None
    return [answers[number] for number in sorted(order, key=lambda n: (answers[n] != question.reference, n))]


_OPEN: list[Session] = []


def _session(policies: Sequence[object]) -> Session:
    """One for all prompts."""
    if not _OPEN:
        _OPEN.append(Session(policies, mode="fast"))  # type: ignore[arg-type]
    return _OPEN[0]


if __name__ == "__main__":
    main()
