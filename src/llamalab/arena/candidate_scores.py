"""Every candidate answer of an arena with known truth, scored once under every policy, judged and labelled.

The unit is a prompt with all its candidates: a policy is the model's probability renormalised over them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import islice
from queue import SimpleQueue
from typing import Any

import numpy as np

from llamalab.arena.generation import asked
from llamalab.arena.judges import Judge, Judged, ToJudge, open_judge
from llamalab.arena.settings import ArenaConfig
from llamalab.engines.machine import physical_cores
from llamalab.errors import ConfigError, InputError, LlamalabError
from llamalab.scored import Scored, ScoreRequest
from llamalab.scoring.policy import Policy
from llamalab.scoring.session import Session, sampler_of
from llamalab.scoring.spans import Tokens, prefix_ids, span

_TINY = 64 * 2**20  # bytes of weights; several copies of such a model cost nothing, and one keeps no two cores busy


@dataclass(frozen=True, slots=True)
class _Pass:
    """Policies that one forward pass serves: same model, template and system prompt."""

    policies: tuple[Policy, ...]


def score(config: ArenaConfig, prompts: Sequence[Mapping[str, Any]], *, done: int = 0) -> Iterator[dict[str, Any]]:
    """Rows of `candidates.jsonl`, prompt by prompt: {"prompt_id", "candidates": [...]}.

    A candidate has its "response", "judge" (its score), "label" (the oracle's; null without an oracle) and, for each
    policy, "logprob" (renormalised over the candidates, nats; null: never given), "model_logprob" (the policy's own),
    "raw_logprob" (the model's at temperature 1), and of its tokens "ids", "texts", "logprobs" and "raw".

    Args:
        config: of an arena with known truth.
        prompts: rows of `prompts.jsonl`, each with its "candidates".
        done: rows that are there already.

    Raises:
        InputError: a prompt without candidates, or a candidate that cannot be scored, judged or labelled: the truth is
            a sum over all of them.
        ConfigError: a policy or an oracle that knows no truth.
        ModelFileError: a model that cannot be read.
    """
    lists = [candidates_of(prompt, config) for prompt in prompts]
    oracle = _oracle(config)
    with ExitStack() as stack:
        judge = stack.enter_context(closing(open_judge(config.judge)))
        labeller = None if oracle is None else stack.enter_context(closing(oracle))
        scorers = _Scorers(stack, _wanted(config))
        for prompt, texts, scores in scorers.score(list(zip(prompts, lists, strict=True))[done:]):
            yield _row(prompt, texts, scores, judge, labeller)


def candidates_of(prompt: Mapping[str, Any], config: ArenaConfig) -> list[str]:
    """The candidates of a prompt that are used.

    Raises:
        InputError: there are none, one is twice, or there are fewer than are asked for.
    """
    where = f"{config.prompts.source}, prompt {prompt['prompt_id']!r}"
    found = prompt.get("candidates")
    if not isinstance(found, list) or len(found) < 2 or not all(isinstance(each, str) and each for each in found):
        raise InputError(
            f"{where}: the field 'candidates' must be a list of at least 2 answers, as text. An arena with known truth "
            "draws its responses from it; take the section 'candidates' out of the configuration to generate them."
        )
    wanted = found if config.candidates is None else found[: config.candidates.num]
    if config.candidates is not None and config.candidates.num is not None and len(wanted) < config.candidates.num:
        raise InputError(f"{where} has {len(found)} candidates, and candidates.num asks for {config.candidates.num}.")
    if len(set(wanted)) < len(wanted):
        twice = next(each for each in wanted if wanted.count(each) > 1)
        raise InputError(f"{where}: the candidate {twice!r} is there twice. A distribution counts each answer once.")
    return wanted


def normalised(logprobs: Sequence[float]) -> list[float]:
    """Log probabilities renormalised over a list, nats; -inf stays -inf.

    Raises:
        ValueError: all are -inf.
    """
    total = float(np.logaddexp.reduce(np.array(logprobs, float)))
    if total == -math.inf:
        raise ValueError("none of them is possible")
    return [min(0.0, each - total) for each in logprobs]


def _oracle(config: ArenaConfig) -> Judge | None:
    if config.oracle is None:
        return None
    if config.oracle.judge is None:
        raise ConfigError(
            f"{config.at('oracle.file')}: the truth is the mean label over all candidates, and a file has labels of "
            "some responses only. Give oracle.judge, best a function."
        )
    return open_judge(config.oracle.judge)


def _wanted(config: ArenaConfig) -> tuple[Policy, ...]:
    """Base and targets.

    Raises:
        ConfigError: one of them runs elsewhere.
    """
    names = (config.base, *config.targets)
    for name in names:
        if config.policies[name].remote:
            raise ConfigError(
                f"{config.at(f'policies.{name}.provider')}: an arena with known truth needs exact scores of every "
                f"candidate, and '{name}' runs elsewhere. Name a local model."
            )
    return tuple(config.policies[name] for name in names)


class _Scorers:
    """One session, or, of tiny models, one for each core, each in a thread of its own."""

    def __init__(self, stack: ExitStack, policies: Sequence[Policy]) -> None:
        passes: dict[object, list[Policy]] = {}
        for policy in policies:
            key = policy.engine_key, policy.template, policy.date, policy.system_prompt
            passes.setdefault(key, []).append(policy)
        self._passes = [tuple(same) for same in passes.values()]
        first = stack.enter_context(Session(policies))
        tiny = all(first.engine(policy).info.size_bytes <= _TINY for policy in policies)
        count = physical_cores() if tiny else 1
        self._free: SimpleQueue[tuple[Session, list[tuple[Policy, ...]]]] = SimpleQueue()
        if count == 1:
            self._free.put((first, self._passes))
        for _ in range(count if count > 1 else 0):
            alone = [tuple(_on_one_thread(policy) for policy in same) for same in self._passes]
            session = stack.enter_context(Session([policy for same in alone for policy in same]))
            self._free.put((session, alone))
        self._pool = stack.enter_context(ThreadPoolExecutor(count))
        self._count = count

    def score(
        self, wanted: Sequence[tuple[Mapping[str, Any], list[str]]]
    ) -> Iterator[tuple[Mapping[str, Any], list[str], list[dict[str, dict[str, Any]]]]]:
        """Each prompt with its candidates and their scores by policy, in order."""
        rest = iter(wanted)
        running: deque[tuple[Mapping[str, Any], list[str], Future[list[dict[str, dict[str, Any]]]]]] = deque()
        try:
            while True:
                for prompt, texts in islice(rest, 2 * self._count - len(running)):
                    running.append((prompt, texts, self._pool.submit(self._one, prompt, texts)))
                if not running:
                    return
                prompt, texts, future = running.popleft()
                yield prompt, texts, future.result()
        finally:
            for _, _, future in running:
                future.cancel()

    def _one(self, prompt: Mapping[str, Any], texts: Sequence[str]) -> list[dict[str, dict[str, Any]]]:
        session, passes = self._free.get()
        try:
            found: list[dict[str, dict[str, Any]]] = [{} for _ in texts]
            for same in passes:
                for number, scores in enumerate(_pass(session, same, prompt, texts)):
                    found[number] |= scores
            return _renormalised(found, prompt)
        finally:
            self._free.put((session, passes))


def _on_one_thread(policy: Policy) -> Policy:
    """The same distribution, computed by one thread: how many there are changes no bit."""
    return replace(policy, options={**policy.options, "n_threads": 1}) if policy.provider == "llama_cpp" else policy


def _pass(
    session: Session, policies: Sequence[Policy], prompt: Mapping[str, Any], texts: Sequence[str]
) -> Iterator[dict[str, dict[str, Any]]]:
    """The scores of each candidate under policies that differ in their samplers alone."""
    policy, question = policies[0], asked(prompt)
    tokens, samplers = session.tokens(policy), [sampler_of(each.decoding) for each in policies]
    decodings = tuple(dict.fromkeys(each for each in samplers if each is not None))
    try:
        prefix = prefix_ids(tokens, policy, question)
        ids = [span(tokens, policy, question, text).response_ids for text in texts]
        answers = session.engine(policy).score([ScoreRequest(prefix, each, decodings) for each in ids], mode="strict")
    except ConfigError:
        raise
    except LlamalabError as error:
        raise InputError(
            f"A candidate of prompt {prompt['prompt_id']!r} cannot be scored under policy '{policy.name}': {error}"
        ) from error
    for each, answer in zip(ids, answers, strict=True):
        yield {
            policy.name: _scores(tokens, each, answer, None if sampler is None else decodings.index(sampler))
            for policy, sampler in zip(policies, samplers, strict=True)
        }


def _scores(tokens: Tokens, ids: Sequence[int], answer: Scored, sampler: int | None) -> dict[str, Any]:
    raw = [float("nan") if value is None else value for value in answer.logprobs]
    under = (
        raw
        if sampler is None
        else [float("nan") if value is None else value for value in answer.decoded[sampler].logprobs]
    )
    if not all(map(math.isfinite, raw)) or any(map(math.isnan, under)):
        raise InputError("A log probability is not finite: the model's logits are not in order.")
    return {
        "model_logprob": -math.inf if -math.inf in under else math.fsum(under),
        "raw_logprob": math.fsum(raw),
        "ids": list(ids),
        "texts": [tokens.token_bytes(id, special=True).decode("utf-8", "replace") for id in ids],
        "logprobs": [value if value > -math.inf else None for value in under],
        "raw": raw,
    }


def _renormalised(found: list[dict[str, dict[str, Any]]], prompt: Mapping[str, Any]) -> list[dict[str, dict[str, Any]]]:
    """The same with "logprob"; what is impossible is null."""
    for name in found[0]:
        try:
            values = normalised([each[name]["model_logprob"] for each in found])
        except ValueError:
            raise InputError(
                f"Policy '{name}' gives none of the candidates of prompt {prompt['prompt_id']!r}: it cuts all of them "
                "off. Add one that it can give, or cut less."
            ) from None
        for each, value in zip(found, values, strict=True):
            own = each[name]["model_logprob"]
            each[name] = {"logprob": _finite(value), **each[name], "model_logprob": _finite(own)}
    return found


def _finite(value: float) -> float | None:
    return value if value > -math.inf else None


def _row(
    prompt: Mapping[str, Any],
    texts: Sequence[str],
    scores: Sequence[Mapping[str, Any]],
    judge: Judge,
    oracle: Judge | None,
) -> dict[str, Any]:
    labels = [None] * len(texts) if oracle is None else _judged(oracle, prompt, texts, "the oracle")
    judged = _judged(judge, prompt, texts, "the judge")
    return {
        "prompt_id": prompt["prompt_id"],
        "candidates": [
            {"response": text, "judge": score, "label": label, "policies": found}
            for text, score, label, found in zip(texts, judged, labels, scores, strict=True)
        ],
    }


def _judged(judge: Judge, prompt: Mapping[str, Any], texts: Sequence[str], who: str) -> list[float]:
    reference = prompt.get("reference")
    items = [
        ToJudge(str(number), asked(prompt), text, reference if isinstance(reference, str) else None, prompt)
        for number, text in enumerate(texts)
    ]
    found = []
    for id, judgement in judge.judge(items):
        if not isinstance(judgement, Judged):
            raise InputError(
                f"Candidate {texts[int(id)]!r} of prompt {prompt['prompt_id']!r} has no score of {who}: "
                f"{judgement.message} The truth is a mean over all candidates, so none may be without one."
            )
        found.append(judgement.score)
    return found
