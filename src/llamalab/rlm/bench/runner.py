"""Asks all questions of a plan, in every mode, and tells what became of each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from llamalab import rlm
from llamalab.engine import Usage
from llamalab.errors import ConfigError, LlamalabError
from llamalab.rlm.bench.baselines import direct, grep, reading_tokens
from llamalab.rlm.bench.case import NAME, Case
from llamalab.rlm.bench.outcome import MODES, Mode, Outcome
from llamalab.rlm.bench.tasks import LARGEST, SMALLEST, chosen, make_case
from llamalab.rlm.budget import Role
from llamalab.rlm.config import RlmConfig
from llamalab.rlm.providers import Pool
from llamalab.rlm.text import Context, Document


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked.

    Attributes:
        tasks: kinds of question.
        sizes: characters of the texts.
        n: questions of each kind and size.
        seed: of the first; the others follow.
        modes: how each is answered.
    """

    tasks: tuple[str, ...]
    sizes: tuple[int, ...]
    n: int
    seed: int = 0
    modes: tuple[Mode, ...] = MODES

    def cases(self) -> Iterator[Case]:
        """Every question, texts of one size after the other."""
        for size in self.sizes:
            for task in self.tasks:
                for at in range(self.n):
                    yield make_case(task, size, self.seed + at)

    def __len__(self) -> int:
        """Answers that will be asked for."""
        return len(self.tasks) * len(self.sizes) * self.n * len(self.modes)


QUICK = Plan(("find", "count", "absent"), (8_000, 64_000), 4)
"""A minute or so on two cores with the built-in model."""


def plan(
    *,
    tasks: Sequence[str] = ("all",),
    sizes: Sequence[int] = (8_000, 64_000, 500_000),
    n: int = 10,
    seed: int = 0,
    modes: Sequence[str] = MODES,
) -> Plan:
    """A plan, checked before anything runs.

    Raises:
        ConfigError: a kind of question, size, number or mode that does not exist.
    """
    for mode in modes:
        if mode not in MODES:
            raise ConfigError(f"There is no mode {mode!r}: a question is answered by {', '.join(MODES)}.")
    for size in sizes:
        if not SMALLEST <= size <= LARGEST:
            raise ConfigError(f"A text of {size:,} characters cannot be asked for: {SMALLEST:,} to {LARGEST:,}.")
    if n < 1:
        raise ConfigError(f"n is {n}: ask at least one question of each kind.")
    kept = tuple(mode for mode in MODES if mode in modes)
    return Plan(chosen(tasks), tuple(sorted(set(sizes))), n, seed, kept)


def read_sizes(text: str) -> tuple[int, ...]:
    """Sizes as they are typed: "8k,64k,1M".

    Raises:
        ConfigError: something that is no size.
    """
    sizes = []
    for part in text.split(","):
        number, scale = part.strip(), 1
        if number[-1:] in _SCALES:
            number, scale = number[:-1], _SCALES[number[-1]]
        if not (number.isascii() and number.isdigit()) or len(number) > 9:
            raise ConfigError(f"{part.strip()!r} is no size. Write characters, with k or M: 8k,64k,1M.")
        sizes.append(int(number) * scale)
    return tuple(sizes)


_SCALES = {"k": 1_000, "M": 1_000_000}


def run(plan: Plan, pool: Pool, config: RlmConfig) -> Iterator[Outcome]:
    """Ask every question of a plan. A question that ends in an error is wrong, and the next one is asked.

    Args:
        plan: what is asked.
        pool: who answers; it stays open.
        config: of the runs; its bypass is not used, as the direct answer is a mode of its own.
    """
    looping = replace(config, bypass_enabled=False)
    for case in plan.cases():
        reading = reading_tokens(pool.of("root")[0].model, case.text)
        for mode in plan.modes:
            yield answer(case, mode, pool, looping, reading)


def answer(case: Case, mode: Mode, pool: Pool, config: RlmConfig, reading: int) -> Outcome:
    """Ask one question in one mode.

    Args:
        case: the question.
        mode: how it is answered.
        pool: who answers.
        config: of a run.
        reading: tokens of the whole text.
    """
    began = time.monotonic()
    try:
        said = _run(case, pool, config) if mode == "rlm" else _one_call(case, mode, pool)
    except LlamalabError as error:
        said = _Said("", {}, error=str(error))
    score = case.right.score(said.text) if said.text else 0.0
    return Outcome(
        model=pool.of("root")[0].name,
        mode=mode,
        task=case.task,
        size=case.size,
        seed=case.seed,
        right=score == 1.0,
        score=score,
        answer=said.text,
        gold=case.right.shown,
        usage=said.usage,
        reading=reading,
        turns=said.turns,
        malformed=said.malformed,
        complete=said.complete,
        cut=said.cut,
        seconds=time.monotonic() - began,
        error=said.error,
    )


@dataclass(frozen=True, slots=True)
class _Said:
    text: str
    usage: Mapping[Role, Usage]
    turns: int = 0
    malformed: int = 0
    complete: bool = False
    cut: bool = False
    error: str = ""


def _run(case: Case, pool: Pool, config: RlmConfig) -> _Said:
    found = rlm.ask(case.question, Context([Document.of(case.text, NAME)]), config=config, pool=pool)
    return _Said(found.text, found.usage, found.turns, found.malformed, found.complete)


def _one_call(case: Case, mode: Mode, pool: Pool) -> _Said:
    found = (direct if mode == "direct" else grep)(case.question, case.text, pool)
    reply = found.reply.reply
    return _Said(reply.text, {"root": reply.usage}, 1, 0, reply.finish_reason == "stop", found.cut)
