"""Outcomes added up: one row for each model, mode, kind of question and size, or for several of these together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from llamalab.rlm.bench.interval import wilson
from llamalab.rlm.bench.outcome import Mode, Outcome


@dataclass(frozen=True, slots=True)
class Cell:
    """Some outcomes together. Tokens, turns and seconds are means of a question.

    Attributes:
        model: that answered.
        mode: how.
        task: kind of question; "all" for several.
        size: characters of the texts; 0 for several sizes.
        n: questions.
        right: right answers.
        accuracy: their share.
        low: lower end of its 95% interval (Wilson).
        high: upper end.
        score: mean of the scores, which count what is nearly right.
        root_tokens: prompt and reply tokens of the root, or of the one call.
        sub_tokens: of sub calls.
        cached_tokens: the part of both that was cached.
        share: tokens of all calls over tokens of the whole texts.
        turns: calls of the root.
        malformed: turns without a valid command, over all turns.
        complete: runs that the model ended itself, over all.
        errors: questions that ended in an error.
        seconds: wall clock.
    """

    model: str
    mode: Mode
    task: str
    size: int
    n: int
    right: int
    accuracy: float
    low: float
    high: float
    score: float
    root_tokens: float
    sub_tokens: float
    cached_tokens: float
    share: float
    turns: float
    malformed: float
    complete: float
    errors: int
    seconds: float


HEADERS = (
    "model",
    "mode",
    "questions",
    "characters",
    "n",
    "right",
    "95%",
    "score",
    "root tokens",
    "sub tokens",
    "of reading it",
    "turns",
    "malformed",
    "seconds",
)
RIGHT_ALIGNED = HEADERS[3:]
_SILENT = {"sub tokens": ("0",), "malformed": ("", "0.0%")}
"""Columns that tell nothing where every cell is one of these."""
_SHORT = {
    "questions": "kind",
    "characters": "chars",
    "root tokens": "root\ntokens",
    "sub tokens": "sub\ntokens",
    "of reading it": "of\nreading",
    "malformed": "mal-\nformed",
    "seconds": "s",
}
"""Headers on a screen."""


def cells(outcomes: Iterable[Outcome], *, by_task: bool = True, by_size: bool = True) -> list[Cell]:
    """Add up, in the order in which kinds and sizes first occur.

    Args:
        outcomes: of any models and modes.
        by_task: a row for each kind of question.
        by_size: a row for each size.
    """
    groups: dict[tuple[str, Mode, str, int], list[Outcome]] = {}
    for outcome in outcomes:
        task = outcome.task if by_task else "all"
        key = (outcome.model, outcome.mode, task, outcome.size if by_size else 0)
        groups.setdefault(key, []).append(outcome)
    return [_cell(*key, group) for key, group in groups.items()]


def row(cell: Cell) -> tuple[str, ...]:
    """A cell in words, under `HEADERS`."""
    return (
        cell.model,
        cell.mode,
        cell.task,
        f"{cell.size:,}" if cell.size else "all",
        str(cell.n),
        f"{cell.accuracy:.0%}",
        f"{100 * cell.low:.0f} to {cell.high:.0%}",
        f"{cell.score:.2f}",
        f"{cell.root_tokens:,.0f}",
        f"{cell.sub_tokens:,.0f}",
        f"{cell.share:.1%}",
        f"{cell.turns:.1f}",
        f"{cell.malformed:.1%}" if cell.mode == "rlm" else "",
        f"{cell.seconds:.2f}",
    )


def on_screen(found: Sequence[Cell]) -> tuple[str, tuple[str, ...], list[tuple[str, ...]]]:
    """A caption, headers and rows for a screen, which is narrower than a pipe: short, and without what tells nothing.

    The model and the number of questions are in the caption where they are the same in all rows; the score is left out
    where it is the share of right answers, and so is what never happened.
    """
    rows = [row(cell) for cell in found]
    left_out: set[str] = set()
    caption: list[str] = []
    if len({cell.model for cell in found}) == 1:
        left_out.add("model")
        caption.append(found[0].model)
    if len({cell.n for cell in found}) == 1:
        left_out.add("n")
        caption.append(f"{found[0].n} question{'' if found[0].n == 1 else 's'} of each kind and length")
    for name, silent in _SILENT.items():
        if all(each[HEADERS.index(name)] in silent for each in rows):
            left_out.add(name)
    if all(cell.score == cell.accuracy for cell in found):
        left_out.add("score")
    kept = [at for at, name in enumerate(HEADERS) if name not in left_out]
    short = [tuple(_shorter(HEADERS[at], said[at]) for at in kept) for said in rows]
    return ", ".join(caption), tuple(_SHORT.get(HEADERS[at], HEADERS[at]) for at in kept), short


def _shorter(name: str, text: str) -> str:
    if name == "characters":
        return text.removesuffix(",000") + "k" if text.endswith(",000") else text
    return text.replace(" to ", "-") if name == "95%" else text


def _cell(model: str, mode: Mode, task: str, size: int, outcomes: Sequence[Outcome]) -> Cell:
    n, right = len(outcomes), sum(outcome.right for outcome in outcomes)
    low, high = wilson(right, n)
    turns = sum(outcome.turns for outcome in outcomes)
    used = {role: [o.usage[role] for o in outcomes if role in o.usage] for role in ("root", "sub")}
    tokens = {role: sum(u.fresh + u.cached + u.output for u in usages) for role, usages in used.items()}
    return Cell(
        model=model,
        mode=mode,
        task=task,
        size=size,
        n=n,
        right=right,
        accuracy=right / n,
        low=low,
        high=high,
        score=fmean(outcome.score for outcome in outcomes),
        root_tokens=tokens["root"] / n,
        sub_tokens=tokens["sub"] / n,
        cached_tokens=sum(u.cached for usages in used.values() for u in usages) / n,
        share=sum(tokens.values()) / max(sum(outcome.reading for outcome in outcomes), 1),
        turns=turns / n,
        malformed=sum(outcome.malformed for outcome in outcomes) / max(turns, 1),
        complete=sum(outcome.complete for outcome in outcomes) / n,
        errors=sum(bool(outcome.error) for outcome in outcomes),
        seconds=fmean(outcome.seconds for outcome in outcomes),
    )
