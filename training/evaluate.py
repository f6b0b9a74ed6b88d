"""What pico can do, measured on the file that is shipped: the table of its card.

    python training/evaluate.py                 # the shipped model, 120 conversations a cell
    python training/evaluate.py --model F16.gguf --n 100 --json

Everything is greedy, through llama.cpp, on names, numbers and combinations that training never saw. A root
steers over a real text: its commands are parsed and executed. Intervals are Wilson's, 95%.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from llamalab.chat import EngineChat
from llamalab.engine import GenerateRequest, Generation, SamplingParams
from llamalab.engines import load
from llamalab.errors import InputError
from llamalab.rlm.bench.interval import wilson
from llamalab.rlm.compact import (
    COMPACT_PROMPT,
    NOT_FOUND,
    Count,
    Final,
    Find,
    command_schema,
    count_block,
    find_block,
    first_message,
    parse_command,
)
from llamalab.rlm.search import Line, find_lines
from training import others, passages, root, words
from training.facts import Fact, filler, make_fact, question, statement

MAX_TURNS = 5
AT_ONCE = 16
GREEDY = SamplingParams(temperature=0.0, max_tokens=96)
DOCUMENT_LINES = 400


@dataclass(slots=True)
class Dialogue:
    """One conversation to hold, and what must come out."""

    messages: list[dict[str, str]]
    expected: str
    text: list[Line] | None = None
    answer: str | None = None
    stored: dict[str, int] = field(default_factory=dict)
    malformed: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """Right answers in one cell of the table, with the bounds of the interval."""

    task: str
    wording: str
    right: int
    n: int
    low: float
    high: float
    malformed: int

    @property
    def rate(self) -> float:
        return self.right / self.n


Maker = Callable[[Random, str], Dialogue]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pico", help="a model spec or file")
    parser.add_argument("--n", type=int, default=120, help="conversations a cell")
    parser.add_argument("--seed", type=int, default=2_000_003)
    parser.add_argument("--only", help="measure only tasks whose name contains this")
    parser.add_argument("--threads", type=int, help="default: every physical core")
    parser.add_argument(
        "--free", action="store_true", help="let the root write freely instead of holding it to its commands"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with_model = EngineChat(load(arguments.model, n_ctx=1024, n_seq=AT_ONCE, n_threads=arguments.threads))
    results = []
    for task, wording, maker in CELLS:
        if arguments.only and arguments.only not in task:
            continue
        rng = Random(f"{arguments.seed}/{task}/{wording}")
        result = measure(
            with_model, task, wording, [maker(rng, wording) for _ in range(arguments.n)], free=arguments.free
        )
        results.append(result)
        if not arguments.json:
            print(
                f"{task:32} {wording:14} {result.rate:.3f}  [{result.low:.3f}, {result.high:.3f}]"
                f"  n={result.n}  malformed={result.malformed}",
                flush=True,
            )
    if arguments.json:
        print(json.dumps([asdict(result) for result in results], indent=1))
    with_model.close()


def measure(model: EngineChat, task: str, wording: str, dialogues: Sequence[Dialogue], *, free: bool) -> Result:
    """Hold all dialogues to their end and count the right answers."""
    for _ in range(MAX_TURNS):
        open_ = [d for d in dialogues if d.answer is None]
        if not open_:
            break
        requests = [
            GenerateRequest(
                model.prompt_ids(d.messages),
                GREEDY,
                schema=None if d.text is None or free else command_schema(variables=d.stored),
            )
            for d in open_
        ]
        for event in model.engine.generate(requests):
            if isinstance(event, Generation):
                take(open_[event.request], event.text)
    right = sum(d.answer == d.expected for d in dialogues)
    low, high = wilson(right, len(dialogues))
    return Result(task, wording, right, len(dialogues), low, high, sum(d.malformed for d in dialogues))


def take(dialogue: Dialogue, said: str) -> None:
    """Use what the model said: an answer, or a command to execute on the text."""
    if dialogue.text is None:
        dialogue.answer = said
        return
    try:
        command = parse_command(said)
    except InputError as error:
        dialogue.malformed += 1
        result = f"error: {error}"
    else:
        if isinstance(command, Final):
            dialogue.answer = command.answer
            return
        result = execute(command, dialogue)
    dialogue.messages += [{"role": "assistant", "content": said}, {"role": "user", "content": result}]


def execute(command: Find | Count, dialogue: Dialogue) -> str:
    """The result block of a command."""
    assert dialogue.text is not None
    if isinstance(command, Count):
        return count_block(dialogue.stored[command.on]) if command.on in dialogue.stored else f"error: no {command.on}"
    matches = find_lines(dialogue.text, command.text)
    if command.store:
        dialogue.stored[command.store] = len(matches)
    return find_block(matches, len(matches), store=command.store)


# ---- the cells of the table --------------------------------------------------------------------------------------


def document(rng: Random, lines: Sequence[str]) -> list[Line]:
    """A text in which `lines` stand among facts about other things."""
    others = [filler(rng) if rng.random() < 0.5 else statement(rng, make_fact(rng)) for _ in range(DOCUMENT_LINES)]
    for line in lines:
        others.insert(rng.randint(0, len(others)), line)
    return [Line(number, text) for number, text in enumerate(others, start=1)]


def root_dialogue(text: list[Line], asked: str, expected: str) -> Dialogue:
    opening = first_message(asked, lines=len(text), characters=sum(len(line.text) + 1 for line in text))
    return Dialogue(
        [{"role": "system", "content": COMPACT_PROMPT}, {"role": "user", "content": opening}], expected, text
    )


def a_fact(rng: Random, wording: str) -> Fact:
    return make_fact(rng, held_out=True, made_up="made-up" in wording)


def style(wording: str) -> str:
    return "held_out" if "held-out" in wording else "any" if "trained" in wording else "canonical"


def find_and_answer(rng: Random, wording: str) -> Dialogue:
    fact = a_fact(rng, wording)
    line = statement(rng, fact, style(wording))
    while fact.attribute.name not in line.casefold():
        line = statement(rng, fact, style(wording))
    return root_dialogue(document(rng, [line]), question(rng, fact, style(wording)), fact.value)


def retry(rng: Random, wording: str) -> Dialogue:
    fact = a_fact(rng, wording)
    while not fact.attribute.told:
        fact = a_fact(rng, wording)
    lines = [statement(rng, fact, "told")]
    if rng.random() < 0.5:
        other = make_fact(rng, entity=fact.entity)
        if other.attribute.name != fact.attribute.name:
            lines.append(statement(rng, other, "canonical"))
    return root_dialogue(document(rng, lines), question(rng, fact, style(wording)), fact.value)


def not_found(rng: Random, wording: str) -> Dialogue:
    fact = a_fact(rng, wording)
    return root_dialogue(document(rng, []), question(rng, fact, style(wording)), NOT_FOUND)


def not_said(rng: Random, wording: str) -> Dialogue:
    fact = a_fact(rng, wording)
    other = make_fact(rng, entity=fact.entity)
    while other.attribute.name == fact.attribute.name:
        other = make_fact(rng, entity=fact.entity)
    return root_dialogue(
        document(rng, [statement(rng, other, "canonical")]), question(rng, fact, style(wording)), NOT_FOUND
    )


def count(rng: Random, wording: str) -> Dialogue:
    word = words.syllables(rng) if "made-up" in wording else rng.choice(root.LEVELS + root.EVENTS)
    lines = [root.log_line(rng, word) for _ in range(rng.randint(1, 300))]
    others = [root.log_line(rng, rng.choice([w for w in root.LEVELS if w != word])) for _ in range(DOCUMENT_LINES)]
    both = lines + others
    rng.shuffle(both)
    text = [Line(i, line) for i, line in enumerate(both, start=1)]
    asked = root.count_question(rng, style(wording)).replace("{W}", word)
    return root_dialogue(text, asked, str(len(find_lines(text, word))))


def passage(n: int) -> Maker:
    def make(rng: Random, wording: str) -> Dialogue:
        facts, fact = passages.passage_facts(rng, n, held_out=True)
        sentences = [statement(rng, f, style(wording)) for f in facts]
        rng.shuffle(sentences)
        return _ask(rng, wording, sentences, fact, fact.value)

    return make


def absent(n: int) -> Maker:
    def make(rng: Random, wording: str) -> Dialogue:
        facts, fact = passages.passage_facts(rng, n + 1, held_out=True)
        return _ask(
            rng,
            wording,
            [statement(rng, f, style(wording)) for f in facts if f is not fact],
            fact,
            passages.NOT_IN_TEXT,
        )

    return make


def _ask(rng: Random, wording: str, sentences: Sequence[str], fact: Fact, expected: str) -> Dialogue:
    layouts = {
        "held_out": passages.HELD_OUT_LAYOUTS,
        "any": passages.LAYOUTS,
        "canonical": (passages.CANONICAL_LAYOUT,),
    }
    asked = question(rng, fact, style(wording))
    content = passages.lay_out(rng.choice(layouts[style(wording)]), sentences, asked)
    return Dialogue([{"role": "user", "content": content}], expected)


def repeat(rng: Random, wording: str) -> Dialogue:
    text = others.something(rng, 8)
    templates = {"held_out": others.HELD_OUT_REPEATS, "any": others.REPEATS, "canonical": others.REPEATS[:1]}
    asked = rng.choice(templates[style(wording)]).replace("{X}", text)
    return Dialogue([{"role": "user", "content": asked}], text)


def sums(rng: Random, _wording: str) -> Dialogue:
    while True:
        a, b = rng.randint(10, 99), rng.randint(10, 99)
        if words.is_held_out(f"{a}+{b}"):
            return Dialogue([{"role": "user", "content": f"What is {a} plus {b}?"}], str(a + b))


_WORDINGS = ("canonical", "trained", "held-out")
_ROOT: tuple[tuple[str, Maker], ...] = (
    ("root: find and answer", find_and_answer),
    ("root: count", count),
    ("root: retry with the entity", retry),
    ("root: not there", not_found),
    ("root: entity there, answer not", not_said),
)
CELLS: tuple[tuple[str, str, Maker], ...] = (
    *((task, wording, maker) for task, maker in _ROOT for wording in (*_WORDINGS, "made-up names")),
    *((f"passage, {n} fact{'s' * (n > 1)}", wording, passage(n)) for n in (1, 2, 4, 8, 12) for wording in _WORDINGS),
    *(
        (f"passage, {n} fact{'s' * (n > 1)}, not among them", wording, absent(n))
        for n in (1, 4)
        for wording in _WORDINGS
    ),
    *(("repeat", wording, repeat) for wording in _WORDINGS),
    ("sums of two-digit numbers", "canonical", sums),
)
"""Every cell: task, wording, and how a conversation is made. All names are held out."""


if __name__ == "__main__":
    main()
