"""All kinds of question, by name."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from llamalab.errors import ConfigError
from llamalab.rlm.bench import facts, label_questions, logs, needles, words, world
from llamalab.rlm.bench.case import Case, Generator

SMALLEST, LARGEST = 4_000, 10_000_000
"""Characters of a text."""

TASKS: dict[str, Generator] = {
    "find": facts.find(canonical=True),
    "find-other-wording": facts.find(canonical=False),
    "count": facts.count(canonical=True),
    "count-other-wording": facts.count(canonical=False),
    "absent": facts.absent(canonical=True),
    "absent-other-wording": facts.absent(canonical=False),
    "unsaid": facts.unsaid,
    **{name: needles.generator(variant) for name, variant in needles.VARIANTS.items()},
    "variables": words.variables,
    "common-words": words.common_words,
    "frequent-words": words.frequent_words,
    "labels-counting": label_questions.generator(label_questions.COUNTING),
    "labels-users": label_questions.generator(label_questions.USERS),
    "labels-timeline": label_questions.generator(label_questions.TIMELINE),
    **{name: world.generator(form) for name, form in world.FORMS.items()},
    "log": logs.generator(),
}
GROUPS: dict[str, tuple[str, ...]] = {
    "pico": ("find", "count", "absent"),
    "pico-other-wording": ("find-other-wording", "count-other-wording", "absent-other-wording"),
    "needles": tuple(needles.VARIANTS),
    "words": ("variables", "common-words", "frequent-words"),
    "labels": ("labels-counting", "labels-users", "labels-timeline"),
    "world": tuple(world.FORMS),
    "logs": ("log",),
    "not-there": ("absent", "absent-other-wording", "unsaid"),
    "all": tuple(TASKS),
}
"""Names that stand for several."""


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """The kinds of question that some names stand for, each once.

    Raises:
        ConfigError: a name that does not exist.
    """
    found: dict[str, None] = {}
    for name in names:
        if name not in TASKS and name not in GROUPS:
            raise ConfigError(
                f"There is no kind of question {name!r}. There are {', '.join(TASKS)}; and for several at once: "
                f"{', '.join(GROUPS)}."
            )
        found.update(dict.fromkeys(GROUPS.get(name, (name,))))
    return tuple(found)


def make_case(task: str, size: int, seed: int) -> Case:
    """A question of a kind. The same arguments give the same case everywhere.

    Args:
        task: name of the kind.
        size: characters of the text, at most.
        seed: any number.

    Raises:
        ConfigError: no such kind, or a size out of range.
    """
    if task not in TASKS:
        chosen((task,))
        raise ConfigError(f"{task!r} stands for several kinds of question: {', '.join(GROUPS[task])}.")
    if not SMALLEST <= size <= LARGEST:
        raise ConfigError(f"A text of {size:,} characters cannot be asked for: {SMALLEST:,} to {LARGEST:,}.")
    text, question, right = TASKS[task](Random(f"{task}/{size}/{seed}"), size)
    return Case(task, size, seed, text, question, right)
