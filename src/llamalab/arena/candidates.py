"""An arena with known truth: finite distributions over candidate answers, and studies drawn from them.

Each prompt has a list of candidates, and a policy is the model's probability renormalised over it. So the mean outcome
of a policy is a sum, and what an estimator says can be held against it.

Dimension key: P prompts, K candidates of each (the longest list; shorter ones have probability 0 behind their end),
D responses to a prompt.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamalab.arena.generation import response_id
from llamalab.arena.jsonl import read_lines
from llamalab.ope.study import BoolArray, Draws, FloatArray, IntArray, Study

FILE = "candidates.jsonl"
"""In a run folder: every candidate with its scores under every policy, its judge score and its label."""


@dataclass(frozen=True, slots=True)
class Table:
    """The whole world: every candidate, its probability under every policy, and what it is worth.

    Attributes:
        prompt_ids: (P,) names.
        base: name of the policy that gives the logged responses.
        logprob_PK: by policy, nats, renormalised over each list; -inf: never given, or behind the end of the list.
        judge_PK: judge scores; 0 behind the end.
        label_PK: the oracle's labels; None: there is no oracle, and the judge's scores are the outcome.
        rows: (P,) the rows of `candidates.jsonl` that this was read from; empty where it was not read.
    """

    prompt_ids: tuple[str, ...]
    base: str
    logprob_PK: Mapping[str, FloatArray]
    judge_PK: FloatArray
    label_PK: FloatArray | None
    rows: tuple[Mapping[str, Any], ...] = ()

    @property
    def outcome(self) -> FloatArray:
        """What a policy's value is the mean of, (P, K)."""
        return self.judge_PK if self.label_PK is None else self.label_PK


def read_table(path: Path, base: str, policies: Sequence[str]) -> Table:
    """The table in a file that `candidate_scores.score` made.

    Raises:
        InputError: the file cannot be read.
    """
    rows = tuple(line.fields for line in read_lines(path))
    longest = max(len(row["candidates"]) for row in rows)

    def column(value: Any, fill: float) -> FloatArray:
        found = np.full((len(rows), longest), fill)
        for number, row in enumerate(rows):
            found[number, : len(row["candidates"])] = [value(each) for each in row["candidates"]]
        return found

    def logprob(name: str) -> FloatArray:
        return column(lambda each: _or_minus_inf(each["policies"][name]["logprob"]), -math.inf)

    labelled = rows[0]["candidates"][0]["label"] is not None
    return Table(
        prompt_ids=tuple(row["prompt_id"] for row in rows),
        base=base,
        logprob_PK={name: logprob(name) for name in (base, *policies)},
        judge_PK=column(lambda each: each["judge"], 0.0),
        label_PK=column(lambda each: each["label"], 0.0) if labelled else None,
        rows=rows,
    )


def truth(table: Table) -> dict[str, float]:
    """The exact mean outcome of every policy over the prompts of the table, each prompt counting alike."""
    return {
        name: math.fsum((np.exp(logprob) * table.outcome).sum(axis=1)) / len(table.prompt_ids)
        for name, logprob in table.logprob_PK.items()
    }


def population_ess(table: Table, policy: str) -> float:
    """Effective sample size over n that the ESS of ever larger studies tends to: 1 / E_base[w^2], in (0, 1].

    A candidate that the target gives and the base never does makes it 0.
    """
    base, target = table.logprob_PK[table.base], table.logprob_PK[policy]
    possible = target > -math.inf
    if (base[possible] == -math.inf).any():
        return 0.0
    squares = np.zeros_like(target)
    squares[possible] = np.exp(2 * target[possible] - base[possible])
    return float(len(table.prompt_ids) / squares.sum())


def draw(logprob_PK: FloatArray, rng: np.random.Generator, count: int) -> IntArray:
    """Numbers of `count` candidates of each prompt, drawn independently: (P, count)."""
    cumulative = np.cumsum(np.exp(logprob_PK), axis=1)
    at = rng.random((len(logprob_PK), count)) * cumulative[:, -1:]
    picked: IntArray = (at[:, :, None] >= cumulative[:, None, :]).sum(axis=2)
    return np.minimum(picked, _last(logprob_PK)[:, None])


def study(
    table: Table,
    rng: np.random.Generator,
    *,
    prompts: int | None = None,
    per_prompt: int = 1,
    label_probability: float = 1.0,
    draws: int = 0,
    policies: Sequence[str] | None = None,
    outcome_range: tuple[float, float] = (0.0, 1.0),
    judge_range: tuple[float, float] = (0.0, 1.0),
) -> Study:
    """A study drawn from the table: prompts with replacement, then responses of the base, labels, fresh draws.

    Prompts are drawn because an interval speaks of all prompts like these: a study that took each prompt of the table
    once would know more than its interval assumes. The value that it estimates is that of `truth`.

    Args:
        table: the world.
        rng: where chance comes from.
        prompts: how many; None: as many as the table has.
        per_prompt: responses of the base to each.
        label_probability: with which each response is labelled.
        draws: fresh responses of each target to each prompt.
        policies: targets; None: all of the table.
        outcome_range: of the labels.
        judge_range: of the judge's scores.
    """
    size = len(table.prompt_ids)
    taken = rng.integers(size, size=size if prompts is None else prompts)
    names = [name for name in table.logprob_PK if name != table.base] if policies is None else list(policies)
    world = {name: table.logprob_PK[name][taken] for name in (table.base, *names)}
    judge, outcome = table.judge_PK[taken], table.outcome[taken]
    codes = np.repeat(np.arange(len(taken)), per_prompt)
    picked = draw(world[table.base], rng, per_prompt).reshape(-1)
    labelled = rng.random(len(codes)) < label_probability
    return Study(
        prompt=codes,
        prompt_ids=tuple(f"{number}" for number in range(len(taken))),
        judge=judge[codes, picked],
        label=np.where(labelled, outcome[codes, picked], np.nan),
        label_probability=np.full(len(codes), label_probability),
        log_ratio={name: _log_ratio(world, table.base, name, codes, picked) for name in names},
        draws=_fresh(world, table.base, names, judge, rng, draws) if draws else {},
        outcome_range=outcome_range,
        judge_range=judge_range,
    )


def responses(table: Table, policy: str, per_prompt: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of `responses.jsonl`, or of a target's fresh draws: each prompt of the table, `per_prompt` of each.

    The draw depends on the seed and the policy's name alone.
    """
    name = int.from_bytes(hashlib.blake2b(policy.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
    picked = draw(table.logprob_PK[policy], np.random.default_rng([seed, name]), per_prompt)
    for number, row in enumerate(table.rows):
        for at in range(per_prompt):
            candidate = row["candidates"][picked[number, at]]
            scored = candidate["policies"][policy]
            yield {
                "response_id": response_id(policy, row["prompt_id"], at),
                "prompt_id": row["prompt_id"],
                "policy": policy,
                "draw": at,
                "candidate": int(picked[number, at]),
                "response": candidate["response"],
                "finish_reason": "stop",
                "finished": True,
                "logprob": scored["logprob"],
                "model_logprob": scored["model_logprob"],
                "raw_logprob": scored["raw_logprob"],
            }


def logprobs(
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    policies: Sequence[str],
    rescored: Mapping[str, Mapping[str, float | None]],
) -> Iterator[dict[str, Any]]:
    """Rows of `logprobs.jsonl` for rows of `responses`: {"id", "policies": {name: scores}}.

    Args:
        table: the world.
        rows: that were drawn from it.
        policies: to write.
        rescored: of policies that were scored once more: log p before renormalising, nats, by response id. It takes the
            place of the table's, so that what is found is that of the second time.
    """
    places = {id: number for number, id in enumerate(table.prompt_ids)}
    for row in rows:
        candidate = table.rows[places[row["prompt_id"]]]["candidates"][row["candidate"]]
        found = {}
        for name in policies:
            scored = candidate["policies"][name]
            value, own = scored["logprob"], scored["model_logprob"]
            again = rescored.get(name, {}).get(row["response_id"], own)
            if again != own:
                value = None if again is None or own is None else min(0.0, value + (again - own))
            found[name] = {
                "logprob": value,
                "n_tokens": len(scored["ids"]),
                "raw_logprob": scored["raw_logprob"],
                "model_logprob": again,
                "out_of_support": value is None,
                "method": "candidates",
                "finished": True,
                "tokens": [
                    {"id": id, "text": text, "raw": raw, "logprob": under}
                    for id, text, raw, under in zip(
                        scored["ids"], scored["texts"], scored["raw"], scored["logprobs"], strict=True
                    )
                ],
            }
        yield {"id": row["response_id"], "policies": found}


def _fresh(
    world: Mapping[str, FloatArray],
    base: str,
    names: Sequence[str],
    judge: FloatArray,
    rng: np.random.Generator,
    count: int,
) -> dict[str, Draws]:
    codes = np.repeat(np.arange(len(judge)), count)
    found = {}
    for name in names:
        picked = draw(world[name], rng, count).reshape(-1)
        ratio = _log_ratio(world, base, name, codes, picked)
        # A draw that the base never gives has no ratio: it is infinite.
        found[name] = Draws(codes, judge[codes, picked], ratio if np.isfinite(ratio).all() else None)
    return found


def _log_ratio(world: Mapping[str, FloatArray], base: str, name: str, codes: IntArray, picked: IntArray) -> FloatArray:
    ratio: FloatArray = world[name][codes, picked] - world[base][codes, picked]
    return ratio


def _last(logprob_PK: FloatArray) -> IntArray:
    """Number of the last possible candidate of each prompt: what rounding may step over."""
    possible: BoolArray = logprob_PK > -math.inf
    last: NDArray[np.int64] = logprob_PK.shape[1] - 1 - np.argmax(possible[:, ::-1], axis=1)
    return last


def _or_minus_inf(value: float | None) -> float:
    return -math.inf if value is None else value
