"""Train pico from nothing: text made by chance, the project's own JAX Llama, Muon and AdamW.

    python -m training.train --out build/pico

Writes `weights.npz` (float32, the last state) and `log.jsonl` (loss by step) as it goes,
and goes on where it stopped when called again.
"""

from __future__ import annotations

import argparse
import json
import pickle
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, muon
from tokenizers import Tokenizer

from llamalab.llama.cache import KVCache
from llamalab.llama.config import LlamaConfig
from llamalab.llama.model import xfmr
from llamalab.llama.weights import LayerWeights, XfmrWeights, count_parameters, init_weights
from training.data import Encoder, batches
from training.tasks import PARTS, STEPS
from training.tokenizer import TOKENIZER, VOCAB_SIZE

CONFIG = LlamaConfig(
    dim=256, n_layers=4, n_heads=8, n_kv_heads=4, head_dim=32, ffn_dim=768, vocab_size=VOCAB_SIZE, max_seq_len=2048
)
SEED = 7
CHECKPOINT_EVERY = 100


def main() -> None:
    """Parse, train, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/pico"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--stop-at", type=int, help="pause at this step; the same command without it goes on")
    arguments = parser.parse_args()
    train(arguments.out, steps=arguments.steps, stop_at=arguments.stop_at or arguments.steps)


def train(out: Path, *, steps: int, stop_at: int) -> None:
    """Train for `steps` steps in folder `out`, beginning with what is there."""
    out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(out / "compiled"))
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    optimizer = make_optimizer(steps)
    weights = init_weights(CONFIG, jax.random.key(SEED))
    state = optimizer.init(weights)
    first, seconds, tokens = 0, 0.0, 0
    if (out / "state.pkl").exists():
        first, seconds, tokens, weights, state = pickle.loads((out / "state.pkl").read_bytes())
    print(f"{count_parameters(weights):,} parameters, step {first} of {steps}", flush=True)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(weights: XfmrWeights, state: Any, prefix: jax.Array, ids: jax.Array, loss_weights: jax.Array) -> Any:
        (loss, said), gradient = jax.value_and_grad(loss_of, has_aux=True)(weights, prefix, ids, loss_weights)
        updates, state = optimizer.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state, loss, said

    began = time.monotonic() - seconds
    with (out / "log.jsonl").open("a") as log:
        for i, batch in enumerate(islice(batches(Encoder(tokenizer), SEED), first, stop_at), start=first + 1):
            weights, state, loss, said = step(weights, state, batch.prefix, batch.ids, batch.weights)
            tokens += batch.tokens
            seconds = time.monotonic() - began
            row = {"step": i, "tokens": tokens, "seconds": round(seconds, 1), "loss": float(loss), "said": float(said)}
            log.write(json.dumps(row) + "\n")
            if i % 20 == 0:
                log.flush()
                print(
                    f"{i} {tokens / 1e6:.2f}M tokens {seconds:.0f}s loss {row['loss']:.3f} said {row['said']:.3f}",
                    flush=True,
                )
            if i % CHECKPOINT_EVERY == 0 or i == stop_at:
                save(out, i, seconds, tokens, weights, state)


def make_optimizer(steps: int) -> optax.GradientTransformation:
    """Muon for the blocks' matrices, AdamW for the embedding and the norms."""

    def schedule(peak: float) -> optax.Schedule:
        """Three cycles: full, then down to nothing at the third part; up to a half and down again; and once more."""
        third, fourth, fifth = (part.first for part in PARTS[2:])
        points = {
            0: 0.0, 50: 1.0, 2 * third // 5: 1.0, third: 0.0, third + 30: 0.5, fourth: 0.0,
            fourth + 30: 0.4, fifth + (steps - fifth) // 4: 0.4, steps: 0.0,
        }  # fmt: skip
        at, share = jnp.array([*points]), jnp.array([*points.values()])
        return lambda step: peak * jnp.interp(step, at, share)

    def matrices(weights: XfmrWeights) -> XfmrWeights:
        spec = MuonDimensionNumbers(reduction_axis=1, output_axis=0)
        layer = LayerWeights(*[spec] * 7, attention_norm=None, ffn_norm=None)  # type: ignore[arg-type]
        return XfmrWeights(None, None, None, (layer,) * len(weights.layer_weights))  # type: ignore[arg-type]

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        muon(schedule(0.02), adam_learning_rate=schedule(3e-3), muon_weight_dimension_numbers=matrices),
    )


def loss_of(
    weights: XfmrWeights, prefix_1P: jax.Array, ids_BT: jax.Array, loss_weights_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Weighted mean negative log probability per token, nats; and the plain mean over what pico says itself."""
    (B, T), P = ids_BT.shape, prefix_1P.shape[1]
    if P:
        _, cache = xfmr(weights, CONFIG, prefix_1P, 0, KVCache.new(CONFIG, 1, P + T))
        cache = cache.shared_by(B)
    else:
        cache = KVCache.new(CONFIG, B, T)
    logits_BTV, _ = xfmr(weights, CONFIG, ids_BT, P, cache)
    logprobs_BTV = jax.nn.log_softmax(logits_BTV[:, :-1])
    nll_BT = -jnp.take_along_axis(logprobs_BTV, ids_BT[:, 1:, None], axis=-1)[..., 0]
    weight_BT = loss_weights_BT[:, 1:]
    said_BT = weight_BT == 1.0
    return jnp.sum(nll_BT * weight_BT) / jnp.sum(weight_BT), jnp.sum(nll_BT * said_BT) / jnp.sum(said_BT)


def save(out: Path, step: int, seconds: float, tokens: int, weights: XfmrWeights, state: Any) -> None:
    """Write the state to go on from, and the weights by name; each file appears whole or not at all."""
    held = jax.tree.map(np.asarray, (weights, state))
    temporary = out / "state.tmp"
    temporary.write_bytes(pickle.dumps((step, seconds, tokens, *held)))
    temporary.replace(out / "state.pkl")
    named = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(held[0])
    }
    with (out / "weights.tmp").open("wb") as file:
        np.savez(file, **named)
    (out / "weights.tmp").replace(out / "weights.npz")


if __name__ == "__main__":
    main()
