"""How a run ends: with the root's answer, or with the best there was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from llamalab.engine import Usage
from llamalab.errors import InputError
from llamalab.rlm.answer import Answer, Route
from llamalab.rlm.evidence import evidence_for
from llamalab.rlm.protocol import without_fence
from llamalab.rlm.talk import Run, Talk
from llamalab.rlm.tree import spent_data
from llamalab.rlm.typed import read_answer

NO_ANSWER = "no answer was reached"
"""The text of an answer where the run ended before it had looked at anything."""


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended.

    Attributes:
        text: of the answer.
        value: of a typed one.
        why: it is not complete; "" where it is.
    """

    text: str
    value: Any = None
    why: str = ""


def given_up(talk: Talk, why: str) -> End:
    """The end of a run without an answer of the root: the best that the root has seen."""
    return End(talk.best or NO_ANSWER, why=why)


def answered(schema: Mapping[str, Any] | None, text: str) -> End:
    """The end of a run by an answer; not complete where the answer is no value of the schema."""
    if not text.strip():
        return End(NO_ANSWER, why="the answer is empty")
    if schema is None:
        return End(text)
    try:
        return End(text, read_answer(schema, text))
    except InputError as error:
        return End(text, why=str(error))


def conclude(run: Run, talk: Talk, route: Route, end: End, said: Sequence[str]) -> Answer:
    """The answer of a run with its evidence, and what the whole tree has used until then.

    Raises:
        Differs: the journal tells of another answer.
    """
    tape, budget = run.tree.tape, run.budget
    end = replace(end, text=without_fence(end.text, run.fence))
    evidence = evidence_for(end.text, talk.looked_at, run.context, value=end.value)
    used = tape.effect(
        f"{run.path}totals", lambda: {"spent": spent_data(budget), "seconds": round(budget.spent.seconds, 4)}
    )
    spent = used["spent"]
    tape.fact(
        f"{run.path}answer",
        {
            "text": end.text,
            "value": end.value,
            "complete": not end.why,
            "why": end.why,
            "evidence": [asdict(each) for each in evidence],
        },
    )
    if not run.path:
        tape.end()
    return Answer(
        question=run.question,
        text=end.text,
        value=end.value,
        complete=not end.why,
        why=end.why,
        evidence=evidence,
        usage={role: Usage(**each) for role, each in spent["usage"].items()},
        cost=spent["cost"],
        seconds=used["seconds"],
        route=route,
        turns=spent["iterations"],
        sub_calls=spent["sub_calls"],
        malformed=talk.malformed,
        notes=tuple(said),
        journal=tape.path,
    )
