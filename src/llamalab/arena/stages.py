"""What each step of the pipeline does, and which file it leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from llamalab.arena.generation import asked, generate
from llamalab.arena.jsonl import read_lines
from llamalab.arena.judges import Judged, ToJudge, fingerprint, open_judge
from llamalab.arena.labels import label
from llamalab.arena.logged import read_responses
from llamalab.arena.manifest import FORMAT, policy_record, sha256_of, write_json, write_whole
from llamalab.arena.preflight import check_references
from llamalab.arena.prompts import read_prompts
from llamalab.arena.settings import JudgeSettings, OracleSettings, plain
from llamalab.arena.work import Work
from llamalab.errors import ConfigError, InputError, LlamalabError
from llamalab.scoring.output import differences
from llamalab.scoring.rows import as_line
from llamalab.scoring.session import Session
from llamalab.scoring.spans import prefix_ids


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
    check_references(config, work.prompts)
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

    work.write("judge", work.folder / "judged.jsonl", _made_by(work, settings), judged, len(items))


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

    work.write("labels", path, _labelled_from(work, oracle), labelled, 0)


def check_made_from(work: Work) -> None:
    """See that what is estimated from was made as the configuration says: the report will say so too.

    Raises:
        InputError: scores or labels were made otherwise.
    """
    work.check_made_from(work.folder / "judged.jsonl", _made_by(work, work.config.judge), "judge")
    if work.config.oracle is not None:
        work.check_made_from(work.folder / "labels.jsonl", _labelled_from(work, work.config.oracle), "labels")


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
        "writing": plain(config.writing[name]),
    }


def _check_prompt(work: Work) -> None:
    """See that every local policy can be asked the first prompt, before anything is written.

    Raises:
        ConfigError: a template or system prompt that does not work; names the policy's place.
    """
    config = work.config
    first = next(iter(work.prompts.values()))
    with Session(list(config.compared.values())) as session:
        for name, policy in config.compared.items():
            if policy.remote:
                continue
            try:
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


def _labelled_from(work: Work, oracle: OracleSettings) -> dict[str, Any]:
    """What labels are made from."""
    found: dict[str, Any] = {"oracle": work.config.record()["oracle"], "responses": _sums(work)}
    if oracle.file is not None:
        found["file_sha256"] = sha256_of(oracle.file)
    return found if oracle.judge is None else found | _made_by(work, oracle.judge)


def _made_by(work: Work, settings: JudgeSettings) -> dict[str, Any]:
    """What judgements are made from."""
    found = {"judge": plain(settings), "source": fingerprint(settings), "responses": _sums(work)}
    if settings.model is not None:
        found["model"] = policy_record(settings.model)
    return found


def _sums(work: Work) -> dict[str, str | None]:
    files = [work.folder / "responses.jsonl", *map(work.draws_of, work.drawing)]
    return {str(path.relative_to(work.folder)): sha256_of(path) for path in files}
