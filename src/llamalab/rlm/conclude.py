"""How a run ends: with the root's answer, or with the best there was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from llamalab.engine import Usage
from llamalab.errors import InputError
from llamalab.rlm.answer import Answer, Route
from llamalab.rlm.evidence import Pieces, evidence_for, stands_in_a_result
from llamalab.rlm.protocol import NOT_FOUND, without_fence
from llamalab.rlm.talk import Run, Talk
from llamalab.rlm.tree import Settings, spent_data
from llamalab.rlm.typed import read_answer

NO_ANSWER = "no answer was reached"
"""The text of an answer where the run ended before it had looked at anything."""
NOTHING_READ = "no evidence: nothing of the text was read before it"
"""Why an answer is not complete that a root gave before any command had brought it anything."""


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


def weighed(end: End, talk: Talk, settings: Settings) -> End:
    """The end of a run by commands, not complete where the answer rests on nothing, or on a part of what it needs."""
    if end.why:
        return end
    if not settings.grounded:
        return replace(end, why=talk.partial)
    return replace(end, why=talk.partial or talk.lacking if talk.read else NOTHING_READ)


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
    doubt = "" if end.why else _doubt(end, evidence, talk, route)
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
        doubt=doubt,
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


def _doubt(end: End, evidence: Pieces, talk: Talk, route: Route) -> str:
    """What an answer claims beyond what was read; "" where nothing is known against it."""
    if end.text.strip(" .\"'\n").casefold() == NOT_FOUND:
        unsearched = route.mode == "rlm" and not talk.searched
        return "no search went through the whole text before it" if unsearched else ""
    if evidence or stands_in_a_result(end.text, talk.looked_at, value=end.value):
        return ""
    return "no line that was read says it: it is the model's conclusion, or its invention"
