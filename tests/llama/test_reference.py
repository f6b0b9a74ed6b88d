"""The forward pass against what Meta's Transformer and transformers computed (tests/reference/make_llama_golden.py)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llamalab.checkpoints.checkpoint import EMBEDDING, NORM, OUTPUT
from llamalab.llama.cache import KVCache
from llamalab.llama.config import RopeScaling
from llamalab.llama.model import xfmr
from llamalab.llama.rope import inverse_frequencies
from llamalab.llama.weights import LayerWeights, XfmrWeights
from tests.llama.golden_models import GREEDY, MODELS, PROMPT, ROPES, GoldenModel

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "llama" / "logits.npz")
BY_NAME = {model.name: model for model in MODELS}
TOLERANCE = 1e-4


def weights_of(model: GoldenModel) -> XfmrWeights:
    tensors = model.tensors()
    layers = tuple(
        LayerWeights(
            **{name: tensors[f"layers.{i}.attention.{name}.weight"] for name in ("wq", "wk", "wv", "wo")},
            **{name: tensors[f"layers.{i}.feed_forward.{name}.weight"] for name in ("w1", "w2", "w3")},
            **{name: tensors[f"layers.{i}.{name}.weight"] for name in ("attention_norm", "ffn_norm")},
        )
        for i in range(model.config.n_layers)
    )
    return XfmrWeights(tensors[EMBEDDING], tensors[NORM], tensors.get(OUTPUT), layers)


def logits_of(model: GoldenModel) -> np.ndarray:
    ids = jnp.array(model.tokens())[None]
    forward = jax.jit(lambda weights: xfmr(weights, model.config, ids, 0, KVCache.new(model.config, 1, model.length)))
    return np.asarray(forward(weights_of(model))[0][0])


@pytest.mark.parametrize("name", BY_NAME)
def test_logits_equal_the_reference_at_every_position(name: str) -> None:
    """Llama 2, 3, 3.1 (RoPE factor 8) and 3.2 (32, tied) as Meta's module; Mistral's window as transformers' module."""
    model = BY_NAME[name]
    logits = logits_of(model)
    np.testing.assert_allclose(logits[:, :2], GOLDEN[f"{name}/columns"], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(logits[model.rows], GOLDEN[f"{name}/rows"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("llama-3.1", {"rope_scaling": RopeScaling(32.0)}),
        ("llama-3.2", {"rope_scaling": RopeScaling(8.0)}),
        ("llama-3.1", {"norm_eps": 1e-6}),
        ("mistral", {"sliding_window": 33}),
    ],
)
def test_the_comparison_sees_a_small_mistake(name: str, changed: dict[str, Any]) -> None:
    """A wrong RoPE factor, eps or window moves the logits by several times the tolerance."""
    model = BY_NAME[name]
    wrong = logits_of(replace(model, config=replace(model.config, **changed)))
    assert np.abs(wrong[model.rows] - GOLDEN[f"{name}/rows"]).max() > 3 * TOLERANCE


@pytest.mark.parametrize("name", ROPES)
def test_inverse_frequencies_of_published_models(name: str) -> None:
    """The bits of transformers; Meta's come out of a complex number, which costs the last one."""
    ours = inverse_frequencies(*ROPES[name])
    np.testing.assert_array_equal(ours, GOLDEN[f"ropes/{name}/transformers"])
    np.testing.assert_allclose(ours, GOLDEN[f"ropes/{name}/meta"], rtol=1e-6)


def test_greedy_continuation_equals_that_of_transformers() -> None:
    """200 tokens, ours through the cache one by one, transformers' with its own cache."""
    (model,) = [model for model in MODELS if model.greedy]
    weights = jax.tree.map(jnp.asarray, weights_of(model))
    cache = KVCache.new(model.config, 1, PROMPT + GREEDY)
    step = jax.jit(
        lambda ids, position, cache, row: xfmr(weights, model.config, ids, position, cache, rows_B=row),
        donate_argnums=2,
    )
    logits, cache = step(jnp.array(model.tokens()[:PROMPT])[None], 0, cache, jnp.array([PROMPT - 1]))
    continued = []
    for position in range(PROMPT, PROMPT + GREEDY):
        continued.append(int(jnp.argmax(logits[0])))
        logits, cache = step(jnp.array([continued[-1:]]), position, cache, jnp.array([0]))
    assert continued == GOLDEN[f"{model.name}/greedy"].tolist()
