"""The step that scores: responses under all policies, by `scoring.run`, after a look at who wrote them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from llamalab.arena.jsonl import read_lines
from llamalab.arena.logprobs import HOW, PolicyScorer, rows_to_score, same_tokens, score_clone
from llamalab.arena.made_from import scoring_plan
from llamalab.arena.manifest import write_json, write_whole
from llamalab.arena.work import Work
from llamalab.errors import InputError
from llamalab.scoring.policy import Policy
from llamalab.scoring.run import run as score_rows
from llamalab.scoring.session import Session
from llamalab.scoring.store import Store


def logprobs(work: Work) -> None:
    """Score responses under all policies, and fresh ones under the base and their own."""
    config = work.config
    path = work.folder / "responses.jsonl"
    work.check_responses()
    rows = work.folder / "to_score" / "responses.jsonl"
    rows.parent.mkdir(exist_ok=True)
    write_whole(rows, rows_to_score(path, work.prompts))
    clone = config.clone if config.clone is not None and not config.policies[config.clone].remote else None
    cloned = work.folder / "clone.sqlite"
    if clone is not None:
        if work.force:
            for each in work.folder.glob("clone.sqlite*"):
                each.unlink()
        if work.force or _count(work.folder / "logprobs.jsonl") < _count(rows):
            score_clone(config.policies[clone], rows, cloned, partial(work.progress, f"scoring {clone} apart"))
        write_json(work.folder / "aa.json", {"policy": clone, "how": HOW})
    with Store(work.folder / "scores.sqlite") as store, Session(list(config.compared.values()), store=store) as session:
        foreign = _foreign(work, session)
        if clone is None:
            scorer = PolicyScorer(session, foreign)
            _score(work, rows, work.folder / "logprobs.jsonl", scorer, config.compared, "logprobs")
        else:
            with Store(cloned) as of_clone, Session([config.policies[clone]], store=of_clone) as apart:
                scorer = PolicyScorer(session, foreign, clone, apart)
                _score(work, rows, work.folder / "logprobs.jsonl", scorer, config.compared, "logprobs")
        for name in work.drawing:
            fresh = work.folder / "to_score" / f"{name}.draws.jsonl"
            write_whole(fresh, rows_to_score(work.draws_of(name), work.prompts))
            two = {each: config.policies[each] for each in (config.base, name)}
            scorer = PolicyScorer(session, {config.base} if name in foreign else ())
            _score(work, fresh, work.logprobs_of(name), scorer, two, f"logprobs of {name}")


def is_done(work: Work) -> bool:
    """Whether every response has its log probabilities."""
    try:
        work.check_responses()
    except InputError:
        return False
    files = {work.folder / "responses.jsonl": work.folder / "logprobs.jsonl"}
    files |= {work.draws_of(name): work.logprobs_of(name) for name in work.drawing}
    return not any(_count(scored) < _count(written, whole=True) for written, scored in files.items())


def notes(work: Work) -> Iterator[str]:
    """What a reader of the report should know about how the rows came about."""
    config = work.config
    with Session(list(config.compared.values())) as session:
        for name in _foreign(work, session):
            if config.policies[name].remote or work.base.remote:
                yield (
                    f"Policy '{name}' is scored on the text of each response, as its tokeniser cuts it, not on the "
                    "tokens that were drawn: its weights are approximate."
                )
            else:
                yield (
                    f"Policy '{name}' has another tokeniser than '{config.base}': one tokenisation of each text is "
                    "scored, not the sum over all, so its weights are approximate."
                )
    for name in config.targets:
        if config.policies[name].provider != work.base.provider:
            yield (
                f"Policy '{name}' runs on {config.policies[name].provider}, '{config.base}' on {work.base.provider}: "
                "the same model there may be another quantisation or have another template."
            )


def _foreign(work: Work, session: Session) -> tuple[str, ...]:
    """Policies whose tokens are other ones than the base's."""
    config, base = work.config, work.base
    if base.remote:
        return tuple(name for name in config.targets if not config.policies[name].remote)
    found = []
    for name in config.targets:
        policy = config.policies[name]
        if policy.remote or (
            policy.engine_key != base.engine_key and not same_tokens(session.tokens(base), session.tokens(policy))
        ):
            found.append(name)
    return tuple(found)


def _score(
    work: Work, rows: Path, target: Path, scorer: PolicyScorer, policies: Mapping[str, Policy], step: str
) -> None:
    plan = scoring_plan(policies)
    score_rows(str(rows), str(target), plan, session=scorer, force=work.force, progress=partial(work.progress, step))


def _count(path: Path, *, whole: bool = False) -> int:
    """Rows of a file; on request, those that are no errors."""
    return sum(not (whole and line.fields.get("error")) for line in read_lines(path)) if path.is_file() else 0
