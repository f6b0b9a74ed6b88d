"""Studies to test on: a world of finite candidates, where every policy's value is known exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from llamalab.ope.study import Draws, FloatArray, Study

TEMPERATURES = {"clone": 1.0, "sharp": 0.6, "flat": 1.8}


@dataclass(frozen=True, slots=True)
class World:
    """200 prompts with 20 candidate answers each; policies differ in temperature.

    Labels depend on something the judge does not see, and which sharper policies prefer.
    """

    share: dict[str, FloatArray]
    judge: FloatArray
    label: FloatArray

    def truth(self, policy: str) -> float:
        return float((self.share[policy] * self.label).sum(axis=1).mean())


def make_world(seed: int = 0) -> World:
    rng = np.random.default_rng(seed)
    logit = rng.normal(size=(200, 20))
    judge = np.round(_sigmoid(0.8 * logit + rng.normal(size=logit.shape)), 2)
    label = _sigmoid(2 * judge - 1 + 0.5 * logit + 0.8 * rng.normal(size=logit.shape))
    share = {name: _softmax(logit / t) for name, t in {"base": 1.0, **TEMPERATURES}.items()}
    return World(share, judge, label)


def draw_study(world: World, seed: int, *, prompts: int = 100, each: int = 2, labelled: float = 0.5) -> Study:
    """Logged responses of the base, `each` per prompt, and one fresh draw of every target per prompt."""
    rng = np.random.default_rng(seed)
    picked = rng.integers(len(world.judge), size=prompts)
    prompt = np.repeat(np.arange(prompts), each)
    row = picked[prompt]
    answer = _choose(rng, world.share["base"][row])
    known = rng.random(len(row)) < labelled
    log_ratio = {
        name: np.log(world.share[name][row, answer] / world.share["base"][row, answer]) for name in TEMPERATURES
    }
    draws = {}
    for name in TEMPERATURES:
        fresh = _choose(rng, world.share[name][picked])
        draws[name] = Draws(np.arange(prompts), world.judge[picked, fresh])
    return Study(
        prompt=prompt,
        prompt_ids=tuple(f"prompt {at}" for at in range(prompts)),
        judge=world.judge[row, answer],
        label=np.where(known, world.label[row, answer], np.nan),
        label_probability=np.full(len(row), labelled),
        log_ratio=log_ratio,
        draws=draws,
    )


def take(study: Study, rows: np.ndarray) -> Study:
    """The study with these rows alone, in this order."""
    return replace(
        study,
        prompt=study.prompt[rows],
        judge=study.judge[rows],
        label=study.label[rows],
        label_probability=study.label_probability[rows],
        log_ratio={name: values[rows] for name, values in study.log_ratio.items()},
    )


def _choose(rng: np.random.Generator, share: FloatArray) -> np.ndarray:
    chosen = (rng.random((len(share), 1)) > share.cumsum(axis=1)).sum(axis=1)
    return np.minimum(chosen, share.shape[1] - 1)


def _softmax(logit: FloatArray) -> FloatArray:
    e = np.exp(logit - logit.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def _sigmoid(x: FloatArray) -> FloatArray:
    return np.asarray(1 / (1 + np.exp(-x)))
