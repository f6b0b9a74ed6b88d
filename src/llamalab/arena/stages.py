"""What each step of the pipeline does, and which file it leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from llamalab.arena import made_from
from llamalab.arena.generation import asked, generate
from llamalab.arena.jsonl import read_lines
from llamalab.arena.judges import Judged, ToJudge, open_judge
from llamalab.arena.labels import label
from llamalab.arena.logged import read_responses
from llamalab.arena.manifest import FORMAT, write_json, write_whole
from llamalab.arena.preflight import check_references
from llamalab.arena.prompts import read_prompts
from llamalab.arena.work import Work
from llamalab.errors import ConfigError, LlamalabError
from llamalab.scoring.remote_text import remote_text
from llamalab.scoring.rows import as_line
from llamalab.scoring.session import Session
from llamalab.scoring.spans import prefix_ids


def prompts(work: Work) -> None:
    """Draw the prompts."""
    path, record = work.folder / "prompts.jsonl", work.folder / "prompts.jsonl.run.json"
    if path.is_file() and record.is_file() and not work.force:
        return
    found = read_prompts(work.config.prompts)
    write_whole(path, b"".join(map(as_line, found)))
    write_json(record, {"format": FORMAT, **made_from.prompts(work)})
    work.progress("prompts", len(found), len(found))


def responses(work: Work) -> None:
    """Let the base write, or read what it wrote."""
    config, path = work.config, work.folder / "responses.jsonl"
    _check_prompt(work)
    check_references(config, work.prompts)
    if config.responses.file is not None:
        found = read_responses(config.responses.file, work.prompts, config.base)
        work.write("responses", path, made_from.responses(work), lambda done: iter(found[done:]), len(found))
        return
    _generate(work, config.base, path, made_from.responses(work), config.responses.per_prompt, "responses")


def draws(work: Work) -> None:
    """Let each target write fresh responses."""
    for name in work.drawing:
        record, count = made_from.draws(work, name), work.config.responses.draws
        _generate(work, name, work.draws_of(name), record, count, f"draws of {name}")


def judge(work: Work) -> None:
    """Score every response by the judge."""
    work.check_responses()
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

    work.write("judge", work.folder / "judged.jsonl", made_from.judgements(work), judged, len(items))


def labels(work: Work) -> None:
    """Have the oracle label its draw of the logged responses."""
    oracle, path = work.config.oracle, work.folder / "labels.jsonl"
    if oracle is None:
        return
    work.check_responses()
    items = _to_judge(work, [work.folder / "responses.jsonl"])

    def labelled(done: int) -> Iterator[Mapping[str, Any]]:
        written = [line.text("response_id") for line in read_lines(path)][:done] if done else []
        return label(items, oracle, written)

    work.write("labels", path, made_from.labels(work, oracle), labelled, 0)


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


def _generate(work: Work, name: str, path: Path, record: Mapping[str, Any], per_prompt: int, step: str) -> None:
    config = work.config
    policy, writing, asking = config.policies[name], config.writing[name], list(work.prompts.values())

    def rows(done: int) -> Iterator[dict[str, Any]]:
        return generate(policy, writing, asking, per_prompt, done=done)

    work.write(step, path, record, rows, len(asking) * per_prompt)


def _check_prompt(work: Work) -> None:
    """See that every policy can be asked the first prompt, before anything is written.

    Raises:
        ConfigError: a template or system prompt that does not work; names the policy's place.
    """
    config = work.config
    first = next(iter(work.prompts.values()))
    ends = config.responses.file is None  # of responses from elsewhere, perhaps none is known to have ended
    with Session(list(config.compared.values())) as session:
        for name, policy in config.compared.items():
            try:
                if policy.remote:
                    remote_text(policy, asked(first), "x", finished=ends, end=policy.options.get("end"))
                    continue
                prefix_ids(session.tokens(policy), policy, asked(first))
            except LlamalabError as error:
                raise ConfigError(f"{config.at(f'policies.{name}')}: {error}") from None


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
