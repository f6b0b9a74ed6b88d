"""Two engines, the same token ids, number by number.

Dimension key: T tokens, R rows of logits, V vocabulary, D width of the residual stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llamalab.engine import GenerateRequest, Generation, LogitsEngine, SamplingParams
from llamalab.lab.differences import Difference, DifferenceSum, PositionRange, PositionSum, divergences, log_softmax
from llamalab.lab.prompts import Prompt
from llamalab.lab.rounding import Bars, Place, Rounding, explain

Array = np.ndarray[Any, Any]
Progress = Callable[[str], None]

_FETCHED = 2**25  # logits held of each engine at a time: 128 MiB
_WIDENED = 2**22  # of these, turned into float64 log probabilities at a time
_STEPS = 32  # tokens of each prompt that are decoded one by one


@dataclass(frozen=True, slots=True)
class Departure:
    """Where two greedy continuations part.

    Attributes:
        prompt: number of the prompt, from 0.
        step: generated tokens before it.
        a: the token that the first engine takes.
        b: the token that the second engine takes.
        tie: the two lie so close together in both engines' logits that a difference within the tolerance decides.
    """

    prompt: int
    step: int
    a: int
    b: int
    tie: bool


@dataclass(frozen=True, slots=True)
class Greedy:
    """Greedy continuations of all prompts.

    Attributes:
        tokens: how many each engine was asked for, over all prompts.
        equal: how many came before a departure.
        departures: at most one for each prompt.
    """

    tokens: int
    equal: int
    departures: tuple[Departure, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two engines say about the same prompts.

    Attributes:
        a: the first engine.
        b: the second, whose values the relative tolerance is of.
        logits: of full forward passes.
        rows: how many rows of logits were compared.
        kl_mean: mean KL(a || b) of a row, nats.
        kl_largest: the largest, nats.
        top1: share of rows with the same most probable token.
        perplexity_a: of the prompts' own tokens.
        perplexity_b: likewise.
        positions: the same by position.
        by_position: largest |delta logit| of each position over the prompts.
        disagreements: rows of each position whose most probable tokens differ.
        cached: of each engine, decoding token by token against its own full forward pass.
        greedy: continuations; None where none were asked for.
        layers: of the residual stream after each block, in units of the root mean square of b's row (which is what the
            next norm divides by), without rows that rounding explains; None where not asked for, or an engine does not
            show it.
        rounding: what rounding does to the rows outside the tolerance; None where there are none, or not asked.
    """

    a: str
    b: str
    logits: Difference
    rows: int
    kl_mean: float
    kl_largest: float
    top1: float
    perplexity_a: float
    perplexity_b: float
    positions: tuple[PositionRange, ...]
    by_position: tuple[float, ...]
    disagreements: tuple[int, ...]
    cached: tuple[Difference, Difference]
    greedy: Greedy | None
    layers: tuple[Difference, ...] | None
    rounding: Rounding | None

    @property
    def agrees(self) -> bool:
        """Logits and cached decoding within the tolerance, greedy tokens equal; rounding and ties left aside."""
        parted = self.greedy is not None and not all(departure.tie for departure in self.greedy.departures)
        close = self.logits.close and all(difference.close for difference in self.cached)
        return (close or (self.rounding is not None and self.rounding.explains)) and not parted

    @property
    def first_layer(self) -> int | None:
        """The first block, from 0, whose output lies outside the tolerance; None if none does or none was seen."""
        return next((i for i, layer in enumerate(self.layers or ()) if not layer.close), None)


def compare(
    a: LogitsEngine,
    b: LogitsEngine,
    prompts: Sequence[Prompt],
    *,
    names: tuple[str, str],
    rtol: float,
    atol: float,
    tokens: int = 32,
    layers: bool = False,
    bars: Bars | None = None,
    progress: Progress = lambda _: None,
) -> Comparison:
    """Compare two open engines.

    Args:
        a: the first engine.
        b: the second.
        prompts: token ids that both contexts hold, with `tokens` more.
        names: what to call the two.
        rtol: relative tolerance, of b's values.
        atol: absolute tolerance.
        tokens: greedy tokens to compare after each prompt; 0: none.
        layers: compare the residual stream after each block too.
        bars: what measures how far rounding moves a row; asked where rows lie outside the tolerance.
        progress: is told what is being done.
    """
    logits, positions = DifferenceSum(rtol, atol), PositionSum()
    kl: list[Array] = []
    agreements = 0
    surprise: list[tuple[float, float]] = []
    for number, prompt in enumerate(prompts):
        progress(f"logits: {prompt.name}")
        for first, rows_a, rows_b in _blocks(a, b, prompt.ids):
            largest = logits.add(rows_a, rows_b, prompt=number, first=first)
            following = prompt.ids[first + 1 : first + 1 + len(rows_a)]
            log_p, log_q = log_softmax(rows_a), log_softmax(rows_b)
            kl.append(divergences(log_p, log_q))
            same = rows_a.argmax(axis=1) == rows_b.argmax(axis=1)
            same &= np.isfinite(largest)
            agreements += int(same.sum())
            surprise += [(float(log_p[i, id]), float(log_q[i, id])) for i, id in enumerate(following)]
            for i in range(len(rows_a)):
                positions.add(first + i, float(largest[i]), float(kl[-1][i]), bool(same[i]))
    cached = []
    for engine, name in zip((a, b), names, strict=True):
        progress(f"cached decoding: {name}")
        cached.append(_cached_against_full(engine, prompts, rtol=rtol, atol=atol))
    excess = {
        place: max(total.excess.get(place, 0.0) for total in (logits, *cached))
        for total in (logits, *cached)
        for place in total.excess
    }
    rounding = None
    if excess and bars is not None:
        progress("what rounding does to the rows outside the tolerance")
        rounding = explain(bars, excess, [prompt.ids for prompt in prompts], logits.shares)
    greedy = None
    if tokens:
        progress("greedy continuations")
        greedy = _greedy(a, b, prompts, tokens, rtol=rtol, atol=atol)
    found_layers = None
    if layers:
        progress("layers")
        leave_out = excess if rounding is not None and rounding.explains else ()
        found_layers = _layers(a, b, prompts, leave_out, rtol=rtol, atol=atol)
    divergence = np.concatenate(kl)
    perplexities = [_perplexity([pair[side] for pair in surprise]) for side in (0, 1)]
    return Comparison(
        a=names[0],
        b=names[1],
        logits=logits.result(),
        rows=len(divergence),
        kl_mean=float(divergence.mean()),
        kl_largest=float(divergence.max()),
        top1=agreements / len(divergence),
        perplexity_a=perplexities[0],
        perplexity_b=perplexities[1],
        positions=positions.ranges(),
        by_position=tuple(positions.largest),
        disagreements=tuple(positions.disagreements),
        cached=(cached[0].result(), cached[1].result()),
        greedy=greedy,
        layers=found_layers,
        rounding=rounding,
    )


def _blocks(a: LogitsEngine, b: LogitsEngine, ids: Sequence[int]) -> Iterator[tuple[int, Array, Array]]:
    """(first position, rows of a, rows of b) in blocks: never all logits of a long prompt at once."""
    width = max(a.info.n_vocab, b.info.n_vocab)
    fetched, widened = max(1, _FETCHED // width), max(1, _WIDENED // width)
    for begin in range(0, len(ids), fetched):
        rows = slice(begin, min(begin + fetched, len(ids)))
        rows_a, rows_b = a.logits(ids, rows=rows), b.logits(ids, rows=rows)
        common = min(rows_a.shape[1], rows_b.shape[1])  # some files pad the vocabulary to a round number
        for at in range(0, len(rows_a), widened):
            yield begin + at, rows_a[at : at + widened, :common], rows_b[at : at + widened, :common]


def _cached_against_full(engine: LogitsEngine, prompts: Sequence[Prompt], *, rtol: float, atol: float) -> DifferenceSum:
    """The last tokens of each prompt one by one through the cache, against the full forward pass."""
    total = DifferenceSum(rtol, atol)
    for number, prompt in enumerate(prompts):
        first = max(0, len(prompt.ids) - _STEPS)
        stepped = engine.stepped_logits(prompt.ids, first)
        full = engine.logits(prompt.ids, rows=slice(first, len(prompt.ids)))
        total.add(stepped, full, prompt=number, first=first)
    return total


def _greedy(
    a: LogitsEngine, b: LogitsEngine, prompts: Sequence[Prompt], tokens: int, *, rtol: float, atol: float
) -> Greedy:
    equal = 0
    departures: list[Departure] = []
    made = [_continued(engine, prompts, tokens) for engine in (a, b)]
    for number, (prompt, one, other) in enumerate(zip(prompts, *made, strict=True)):
        step = next((i for i in range(tokens) if one[i : i + 1] != other[i : i + 1]), None)
        if step is None:
            equal += tokens
            continue
        equal += step
        ends = [ids[step] if step < len(ids) else -1 for ids in (one, other)]
        tie = -1 not in ends and _is_tie(a, b, [*prompt.ids, *one[:step]], ends, rtol=rtol, atol=atol)
        departures.append(Departure(number, step, ends[0], ends[1], tie))
    return Greedy(tokens * len(prompts), equal, tuple(departures))


def _continued(engine: LogitsEngine, prompts: Sequence[Prompt], tokens: int) -> list[tuple[int, ...]]:
    """The ids that the engine adds to each prompt, all asked for at once."""
    params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
    events = list(engine.generate([GenerateRequest(prompt.ids, params) for prompt in prompts]))
    made = {event.request: event.ids for event in events if isinstance(event, Generation)}
    return [made[number] for number in range(len(prompts))]


def _is_tie(
    a: LogitsEngine, b: LogitsEngine, ids: Sequence[int], ends: Sequence[int], *, rtol: float, atol: float
) -> bool:
    """Whether the two tokens lie no further apart than two values that are each off by the tolerance."""
    for engine in (a, b):
        (row,) = engine.logits(ids, rows=slice(len(ids) - 1, len(ids)))
        one, other = float(row[ends[0]]), float(row[ends[1]])
        if not abs(one - other) <= 2 * (atol + rtol * max(abs(one), abs(other))):
            return False
    return True


def _layers(
    a: LogitsEngine,
    b: LogitsEngine,
    prompts: Sequence[Prompt],
    leave_out: Collection[Place],
    *,
    rtol: float,
    atol: float,
) -> tuple[Difference, ...] | None:
    totals: list[DifferenceSum] = []
    for number, prompt in enumerate(prompts):
        one, other = a.hidden(prompt.ids), b.hidden(prompt.ids)
        if one is None or other is None:
            return None
        totals = totals or [DifferenceSum(rtol, atol) for _ in one]
        for total, rows_a, rows_b in zip(totals, one, other, strict=True):
            size_T1 = np.sqrt(np.mean(np.square(rows_b, dtype=np.float64), axis=1, keepdims=True)).astype(np.float32)
            size_T1 = np.where(size_T1 > 0, size_T1, 1)
            left_out = [position for place, position in leave_out if place == number]
            scaled_a, scaled_b = rows_a / size_T1, rows_b / size_T1
            scaled_a[left_out] = scaled_b[left_out]
            total.add(scaled_a, scaled_b, prompt=number, first=0)
    return tuple(total.result() for total in totals)


def _perplexity(log_probs: Sequence[float]) -> float:
    """exp of the mean negative log probability; infinite where that is not a number."""
    if not log_probs:
        return math.nan
    mean = -math.fsum(value if math.isfinite(value) else -math.inf for value in log_probs) / len(log_probs)
    return math.exp(mean) if mean < 700 else math.inf
