"""What each step of the pipeline does, and which file it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from llamalab.arena.generation import asked, generate
from llamalab.arena.jsonl import read_lines
from llamalab.arena.judges import Judged, ToJudge, fingerprint, open_judge
from llamalab.arena.labels import label
from llamalab.arena.logged import read_responses
from llamalab.arena.logprobs import HOW, PolicyScorer, rows_to_score, same_tokens, score_clone
from llamalab.arena.manifest import FORMAT, policy_record, sha256_of, write_json, write_whole
from llamalab.arena.prompts import read_prompts
from llamalab.arena.settings import ArenaConfig, JudgeSettings, plain
from llamalab.errors import ConfigError, InputError, LlamalabError
from llamalab.scoring.output import OutputFile, differences
from llamalab.scoring.policy import Policy
from llamalab.scoring.rows import as_line
from llamalab.scoring.run import Plan
from llamalab.scoring.run import run as score_rows
from llamalab.scoring.session import Session
from llamalab.scoring.spans import prefix_ids
from llamalab.scoring.store import Store

_Rows = Callable[[int], Iterator[Mapping[str, Any]]]
"""From how many rows are there to those that are missing."""


@dataclass
class Work:
    """A run that is at work.

    Attributes:
        config: what to run.
        folder: where.
        force: files are written anew.
        progress: told about every row.
    """

    config: ArenaConfig
    folder: Path
    force: bool
    progress: Callable[[str, int, int], None]

    @cached_property
    def prompts(self) -> dict[str, Mapping[str, Any]]:
        """Rows of `prompts.jsonl` by id.

        Raises:
            InputError: the step has not been run.
        """
        path = self.folder / "prompts.jsonl"
        if not path.is_file():
            raise InputError(f"{path} is not there: run the step 'prompts' first, or leave out --only and --from.")
        return {line.text("prompt_id"): line.fields for line in read_lines(path)}

    @property
    def base(self) -> Policy:
        """The policy that wrote the logged responses."""
        return self.config.policies[self.config.base]

    @property
    def drawing(self) -> tuple[str, ...]:
        """Targets that write fresh responses."""
        return self.config.targets if self.config.responses.draws else ()

    def draws_of(self, name: str) -> Path:
        """The file of a target's fresh responses."""
        return self.folder / "draws" / f"{name}.jsonl"

    def write(self, step: str, path: Path, record: Mapping[str, Any], rows: _Rows, total: int) -> None:
        """Write the rows of a file that are not there yet.

        Raises:
            InputError: the file was made from something else.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        made_from = json.loads(json.dumps({"format": FORMAT, **record}, default=str))
        with OutputFile(path, made_from, force=self.force) as output:
            done = len(output.kept.ids)
            for row in rows(done):
                output.write(row)
                done += 1
                self.progress(step, done, total)

    def complete(self, path: Path, total: int, step: str) -> None:
        """See that a file has all its rows.

        Raises:
            InputError: it has not.
        """
        there = sum(1 for _ in read_lines(path)) if path.is_file() else 0
        if there != total:
            raise InputError(f"{path} has {there} of {total} rows: run the step '{step}' to its end first.")


def prompts(work: Work) -> None:
    """Draw the prompts."""
    path, record = work.folder / "prompts.jsonl", work.folder / "prompts.jsonl.run.json"
    settings = work.config.prompts
    made_from = {
        "format": FORMAT,
        "prompts": work.config.record()["prompts"],
        "sha256": sha256_of(Path(settings.source)),
    }
    if path.is_file() and record.is_file() and not work.force:
        with suppress(ValueError):
            other = list(differences(json.loads(record.read_text(encoding="utf-8")), made_from))
            if not other:
                return
            raise InputError(
                f"{path} was drawn from other prompts or settings ({'; '.join(other[:3])}). Name another folder with "
                "--out, or write the run anew with --force."
            )
    found = read_prompts(settings)
    write_whole(path, b"".join(map(as_line, found)))
    write_json(record, made_from)
    work.progress("prompts", len(found), len(found))


def responses(work: Work) -> None:
    """Let the base write, or read what it wrote."""
    config, path = work.config, work.folder / "responses.jsonl"
    _check_prompt(work)
    if config.responses.file is not None:
        found = read_responses(config.responses.file, work.prompts, config.base)
        made_from = _written_by(work, config.base) | {"file_sha256": sha256_of(config.responses.file)}
        work.write("responses", path, made_from, lambda done: iter(found[done:]), len(found))
        return
    _generate(work, config.base, path, config.responses.per_prompt, "responses")


def draws(work: Work) -> None:
    """Let each target write fresh responses."""
    for name in work.drawing:
        _generate(work, name, work.draws_of(name), work.config.responses.draws, f"draws of {name}")


def logprobs(work: Work) -> None:
    """Score responses under all policies, and fresh ones under the base and their own."""
    config = work.config
    path = work.folder / "responses.jsonl"
    for name, written in {config.base: path, **{name: work.draws_of(name) for name in work.drawing}}.items():
        _check_writer(work, written, name)
    _check_complete(work)
    rows = work.folder / "to_score" / "responses.jsonl"
    rows.parent.mkdir(exist_ok=True)
    write_whole(rows, rows_to_score(path, work.prompts))
    clone = config.clone if config.clone is not None and not config.policies[config.clone].remote else None
    cloned = work.folder / "clone.sqlite"
    if clone is not None:
        if work.force:
            for each in work.folder.glob("clone.sqlite*"):
                each.unlink()
        if _fewer(work.folder / "logprobs.jsonl", rows):
            score_clone(config.policies[clone], rows, cloned, partial(work.progress, f"scoring {clone} apart"))
        write_json(work.folder / "aa.json", {"policy": clone, "how": HOW})
    with Store(work.folder / "scores.sqlite") as store, Session(list(config.policies.values()), store=store) as session:
        foreign = _foreign(work, session)
        if clone is None:
            scorer = PolicyScorer(session, foreign)
            _score(work, rows, work.folder / "logprobs.jsonl", scorer, config.policies, "logprobs")
        else:
            with Store(cloned) as of_clone, Session([config.policies[clone]], store=of_clone) as apart:
                scorer = PolicyScorer(session, foreign, clone, apart)
                _score(work, rows, work.folder / "logprobs.jsonl", scorer, config.policies, "logprobs")
        for name in work.drawing:
            fresh = work.folder / "to_score" / f"{name}.draws.jsonl"
            write_whole(fresh, rows_to_score(work.draws_of(name), work.prompts))
            two = {each: config.policies[each] for each in (config.base, name)}
            scorer = PolicyScorer(session, {config.base} if name in foreign else ())
            _score(work, fresh, work.folder / "draws" / f"{name}.logprobs.jsonl", scorer, two, f"logprobs of {name}")


def judge(work: Work) -> None:
    """Score every response by the judge."""
    _check_complete(work)
    items = _to_judge(work, [work.folder / "responses.jsonl", *map(work.draws_of, work.drawing)])
    settings = work.config.judge

    def judged(done: int) -> Iterator[dict[str, Any]]:
        if done == len(items):
            return
        with closing(open_judge(settings)) as opened:
            for id, found in opened.judge(items[done:]):
                yield {"response_id": id} | (
                    {"score": found.score, "reason": found.reason}
                    if isinstance(found, Judged)
                    else {"error": found.error, "message": found.message}
                )

    work.write("judge", work.folder / "judged.jsonl", _made_by(work, settings), judged, len(items))


def labels(work: Work) -> None:
    """Have the oracle label its draw of the logged responses."""
    oracle, path = work.config.oracle, work.folder / "labels.jsonl"
    if oracle is None:
        return
    _check_complete(work)
    items = _to_judge(work, [work.folder / "responses.jsonl"])
    made_from: dict[str, Any] = {"oracle": work.config.record()["oracle"], "responses": _sums(work)}
    if oracle.file is not None:
        made_from["file_sha256"] = sha256_of(oracle.file)
    if oracle.judge is not None:
        made_from |= _made_by(work, oracle.judge)

    def labelled(done: int) -> Iterator[Mapping[str, Any]]:
        written = [line.text("response_id") for line in read_lines(path)][:done] if done else []
        return label(items, oracle, written)

    work.write("labels", path, made_from, labelled, 0)


def estimate(work: Work) -> None:
    """Estimate what the rows say."""
    from llamalab.arena.evaluation import evaluate
    from llamalab.arena.results import write_results
    from llamalab.arena.run_folder import read_run

    work.progress("estimate", 0, 1)
    write_results(evaluate(read_run(work.folder)), work.folder / "results.json")
    work.progress("estimate", 1, 1)


def report(work: Work) -> None:
    """Write the report."""
    from llamalab.arena.report import write_report
    from llamalab.arena.results import read_results

    write_report(read_results(work.folder / "results.json"), work.folder / "report.html")
    work.progress("report", 1, 1)


def notes(work: Work) -> Iterator[str]:
    """What a reader of the report should know about how the rows came about."""
    config = work.config
    with Session(list(config.policies.values())) as session:
        for name in _foreign(work, session):
            yield (
                f"Policy '{name}' has another tokeniser than '{config.base}': one tokenisation of each text is scored, "
                "not the sum over all, so its weights are approximate."
            )
    for name in config.targets:
        if config.policies[name].provider != work.base.provider:
            yield (
                f"Policy '{name}' runs on {config.policies[name].provider}, '{config.base}' on {work.base.provider}: "
                "the same model there may be another quantisation or have another template."
            )


def _generate(work: Work, name: str, path: Path, per_prompt: int, step: str) -> None:
    config = work.config
    policy, writing, asking = config.policies[name], config.writing[name], list(work.prompts.values())

    def rows(done: int) -> Iterator[dict[str, Any]]:
        return generate(policy, writing, asking, per_prompt, done=done)

    work.write(step, path, _written_by(work, name) | {"per_prompt": per_prompt}, rows, len(asking) * per_prompt)


def _written_by(work: Work, name: str) -> dict[str, Any]:
    config = work.config
    return {
        "prompts_sha256": sha256_of(work.folder / "prompts.jsonl"),
        "policy": policy_record(config.policies[name]) | {"seed": config.policies[name].seed, "name": name},
        "writing": config.record()["policies"][name],
    }


def _check_prompt(work: Work) -> None:
    """See that every local policy can be asked the first prompt, before anything is written.

    Raises:
        ConfigError: a template or system prompt that does not work; names the policy's place.
    """
    config = work.config
    first = next(iter(work.prompts.values()))
    with Session(list(config.policies.values())) as session:
        for name, policy in config.policies.items():
            if policy.remote:
                continue
            try:
                prefix_ids(session.tokens(policy), policy, asked(first))
            except LlamalabError as error:
                raise ConfigError(f"{config.at(f'policies.{name}')}: {error}") from None


def _check_writer(work: Work, path: Path, name: str) -> None:
    """See that a policy is what wrote a file of responses.

    Raises:
        ConfigError: it is not: its scores are not the probabilities that the responses were drawn with.
    """
    record = path.with_name(f"{path.name}.run.json")
    if not record.is_file():
        return  # nothing is written yet, which is another complaint
    now = json.loads(json.dumps(policy_record(work.config.policies[name])))
    before = json.loads(record.read_text(encoding="utf-8")).get("policy", {})
    other = list(differences({key: before.get(key) for key in now}, now))
    if other:
        raise ConfigError(
            f"{work.config.at(f'policies.{name}')}: {path} was written by another policy ({'; '.join(other[:3])}), so "
            "scores of this one are not the probabilities that its responses were drawn with. Make the policy what it "
            "was, or write the responses anew with --force."
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
    plan = Plan(policies, nested=True, tokens=True)
    score_rows(str(rows), str(target), plan, session=scorer, force=work.force, progress=partial(work.progress, step))


def _fewer(written: Path, wanted: Path) -> bool:
    """Whether a file has fewer rows than another."""
    there = sum(1 for _ in read_lines(written)) if written.is_file() else 0
    return there < sum(1 for _ in read_lines(wanted))


def _check_complete(work: Work) -> None:
    """See that all responses are there.

    Raises:
        InputError: they are not.
    """
    count, config = len(work.prompts), work.config
    if config.responses.file is None:
        work.complete(work.folder / "responses.jsonl", count * config.responses.per_prompt, "responses")
    elif not (work.folder / "responses.jsonl").is_file():
        raise InputError(f"{work.folder / 'responses.jsonl'} is not there: run the step 'responses' first.")
    for name in work.drawing:
        work.complete(work.draws_of(name), count * config.responses.draws, "draws")


def _to_judge(work: Work, files: list[Path]) -> list[ToJudge]:
    """The responses of some files, with all that is known of them."""
    found = []
    for path in files:
        for line in read_lines(path):
            row = line.fields
            if row.get("error"):
                continue
            prompt = work.prompts[row["prompt_id"]]
            reference = prompt.get("reference")
            found.append(
                ToJudge(
                    id=row["response_id"],
                    prompt=asked(prompt),
                    response=row["response"],
                    reference=reference if isinstance(reference, str) else None,
                    row={**prompt, **row},
                    finished=bool(row["finished"]),
                )
            )
    return found


def _made_by(work: Work, settings: JudgeSettings) -> dict[str, Any]:
    """What judgements are made from."""
    found = {"judge": plain(settings), "source": fingerprint(settings), "responses": _sums(work)}
    if settings.model is not None:
        found["model"] = policy_record(settings.model)
    return found


def _sums(work: Work) -> dict[str, str | None]:
    files = [work.folder / "responses.jsonl", *map(work.draws_of, work.drawing)]
    return {str(path.relative_to(work.folder)): sha256_of(path) for path in files}
