"""The determinism report: what is equal to the bit on this machine, and by how much the rest differs."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamalab.engine import Engine
from llamalab.engines import load, machine, provider_of, split_spec
from llamalab.errors import LlamalabError
from llamalab.lab.prompts import BUILT_IN
from llamalab.scored import Scored, ScoreMode, ScoreRequest

SYSTEM = "You answer questions about the text below in one sentence, and say so when it does not hold the answer.\n"
"""Stands before each prompt: what real prompts share."""

_PROMPT, _RESPONSE = 48, 40
"""Tokens of a prompt after the system text, and of a response."""

_CHUNKS = (512, 48, 7)
"""Tokens of one decode in other schedules than the strict one."""


@dataclass(frozen=True, slots=True)
class Check:
    """One way of scoring the same responses again.

    Attributes:
        name: what was done otherwise.
        promised: strict mode promises equal bits.
        equal: every log probability has the same bits.
        per_token: largest |difference| of a token's log probability, nats.
        per_response: largest |difference| of a response's, nats.
        note: why it could not be done; empty if it could.
    """

    name: str
    promised: bool
    equal: bool
    per_token: float
    per_response: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What one model does on this machine.

    Attributes:
        spec: the model.
        provider: whose engine scored it.
        processor: of the machine.
        responses: how many were scored each time.
        tokens: in all of them.
        checks: one for each way.
    """

    spec: str
    provider: str
    processor: str
    responses: int
    tokens: int
    checks: tuple[Check, ...]

    @property
    def kept(self) -> bool:
        """Whether all that strict mode promises was kept."""
        return all(check.equal for check in self.checks if check.promised and not check.note)


def self_test(
    spec: str, *, options: Mapping[str, Any] | None = None, progress: Callable[[str], None] = lambda _: None
) -> Report:
    """Score a few responses again and again, each time otherwise.

    Args:
        spec: the model.
        options: of its engine.
        progress: is told what is being done.

    Raises:
        As `load`.
    """
    provider = provider_of(spec)
    given = {**(options or {}), **({"n_seq": 0} if provider == "llama_cpp" else {})}
    checks: list[Check] = []
    progress(f"loading {spec}")
    with contextlib.closing(load(spec, **given)) as engine:
        requests = _requests(engine)
        expected = _scores(engine, requests)

        def check(name: str, found: Sequence[Scored], *, promised: bool = True) -> None:
            checks.append(_compared(name, expected, found, promised=promised))

        for name, order in _orders(len(requests)):
            progress(name)
            scores = _scores(engine, [requests[i] for i in order])
            check(name, [score for _, score in sorted(zip(order, scores, strict=True))])
        progress("alone")
        check("each alone", [_scores(engine, [request])[0] for request in requests])
        progress("cut in two")
        check("prompt and response computed before, then cut elsewhere", _after_others(engine, requests))
        progress("fast")
        check("fast mode", engine.score(requests, mode="fast"), promised=False)
    progress("a fresh engine")
    with contextlib.closing(load(spec, **given)) as engine:
        check("a fresh engine", _scores(engine, requests[::-1])[::-1])
    for name, changed, promised, mode in _settings(provider, given):
        progress(name)
        with contextlib.closing(load(spec, **changed)) as engine:
            check(name, engine.score(requests, mode=mode), promised=promised)
    progress("another runtime")
    checks.append(_other_runtime(spec, provider, given, requests, expected))
    tokens = sum(len(request.response_ids) for request in requests)
    return Report(spec, provider, machine.processor(), len(requests), tokens, tuple(checks))


def _requests(engine: Engine) -> list[ScoreRequest]:
    """Several responses to each of some prompts that begin alike; lengths that are no multiple of anything."""
    info = engine.info
    bos = [info.bos_id] if info.add_bos and info.bos_id is not None else []
    texts = [engine.tokenize(text) for text in BUILT_IN.values()]
    begin = [*bos, *engine.tokenize(SYSTEM)]
    room = info.n_ctx - len(begin)
    prompt, response = min(_PROMPT, room // 2), min(_RESPONSE, room // 3)
    found = []
    for number, ids in enumerate(texts):
        answers = [ids[-response:], texts[number - 1][: response - 3], ids[prompt : prompt + response - 7]]
        found += [ScoreRequest(begin + ids[: prompt - number], answer) for answer in answers if answer]
    return found


def _orders(count: int) -> Iterator[tuple[str, list[int]]]:
    yield "again", list(range(count))
    yield "backwards", list(range(count))[::-1]
    yield "shuffled", random.Random(0).sample(range(count), count)


def _scores(engine: Engine, requests: Sequence[ScoreRequest]) -> list[Scored]:
    return engine.score(requests, mode="strict")


def _after_others(engine: Engine, requests: Sequence[ScoreRequest]) -> list[Scored]:
    """Each after a request that shares an odd part of it: what the cache holds is cut there."""
    found = []
    for number, request in enumerate(requests):
        whole = [*request.prefix_ids, *request.response_ids]
        cut = 1 + (7 * number + 3) % (len(whole) - 1)
        _scores(engine, [ScoreRequest(whole[:cut], [whole[-1], whole[0]])])
        found += _scores(engine, [request])
    return found


def _settings(provider: str, given: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any], bool, ScoreMode]]:
    """Other settings of the same engine: (name, options, whether strict promises equal bits, mode)."""
    if provider != "llama_cpp":
        return
    for n_threads in sorted({1, machine.physical_cores()} - {given.get("n_threads", machine.physical_cores())}):
        name = "1 thread" if n_threads == 1 else f"{n_threads} threads"
        yield name, {**given, "n_threads": n_threads}, True, "strict"
    for chunk in _CHUNKS:
        changed = {**given, "n_batch": chunk, "n_ubatch": chunk, "type_k": "f32", "type_v": "f32", "flash_attn": False}
        yield f"no padding, {chunk} tokens at a time", changed, False, "fast"
    yield "float16 cache", {**given, "type_k": "f16", "type_v": "f16", "flash_attn": False}, False, "fast"
    yield "flash attention", {**given, "flash_attn": True}, False, "fast"


def _other_runtime(
    spec: str, provider: str, given: Mapping[str, Any], requests: Sequence[ScoreRequest], expected: Sequence[Scored]
) -> Check:
    """The same file in JAX, or in llama.cpp."""
    other = "jax" if provider == "llama_cpp" else "llama_cpp"
    name = f"{other} instead of {provider}"
    if other == "jax" and importlib.util.find_spec("jax") is None:
        return Check(name, promised=False, equal=False, per_token=math.nan, per_response=math.nan, note="no JAX here")
    options: dict[str, Any] = {"dtype": "float32", "n_seq": 1} if other == "jax" else {"n_seq": 0}
    if "n_ctx" in given:
        options["n_ctx"] = given["n_ctx"]
    try:
        with contextlib.closing(load(f"{other}:{split_spec(spec)[1]}", **options)) as engine:
            return _compared(name, expected, _scores(engine, requests), promised=False)
    except LlamalabError as error:
        return Check(name, promised=False, equal=False, per_token=math.nan, per_response=math.nan, note=str(error))


def _compared(name: str, expected: Sequence[Scored], found: Sequence[Scored], *, promised: bool) -> Check:
    pairs = list(zip(expected, found, strict=True))
    tokens = [
        abs(a - b)
        for one, other in pairs
        for a, b in zip(one.logprobs, other.logprobs, strict=True)
        if a is not None and b is not None
    ]
    equal = all(one.logprobs == other.logprobs for one, other in pairs)
    responses = [abs(one.total - other.total) for one, other in pairs]
    return Check(name, promised, equal, max(tokens, default=0.0), max(responses, default=0.0))
