"""Weights on the device, from any format."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llamalab.checkpoints.checkpoint import Tensor
from llamalab.checkpoints.gguf import write_gguf
from llamalab.checkpoints.gguf_reader import open_gguf
from llamalab.checkpoints.load import load_weights
from llamalab.errors import ConfigError, ModelFileError
from tests.checkpoints.test_gguf import CONFIG, byte_vocabulary
from tests.checkpoints.tiny_checkpoint import checkpoint
from tests.llama.random_weights import random_weights


@pytest.mark.parametrize("tied", [False, True])
def test_what_training_wrote_is_what_is_loaded(tmp_path: Path, tied: bool) -> None:
    weights = random_weights(CONFIG, tied=tied)
    write_gguf(tmp_path / "m.gguf", weights, CONFIG, byte_vocabulary(CONFIG.vocab_size), name="m")
    loaded = load_weights(open_gguf(tmp_path / "m.gguf"))
    assert jax.tree.structure(loaded) == jax.tree.structure(weights)
    jax.tree.map(np.testing.assert_array_equal, loaded, weights)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_values_are_rounded_once_to_the_dtype(dtype: str) -> None:
    made = checkpoint()
    loaded = load_weights(made, dtype=dtype)
    exact = made.tensors["layers.1.attention.wo.weight"].read()
    assert loaded.layer_weights[1].wo.dtype == dtype
    np.testing.assert_array_equal(loaded.layer_weights[1].wo, jnp.asarray(exact).astype(dtype))


def test_matrices_may_stay_in_bfloat16_and_norms_do_not() -> None:
    made = checkpoint(dtype="BF16")
    kept, wide = load_weights(made, keep_bfloat16=True), load_weights(made)
    for leaf in jax.tree.leaves(kept):
        assert leaf.dtype == (jnp.bfloat16 if leaf.ndim > 1 else jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), kept), wide)


def test_only_what_is_stored_in_bfloat16_stays_so() -> None:
    loaded = load_weights(checkpoint(dtype="F16"), keep_bfloat16=True)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}


def test_each_tensor_is_placed_by_its_name() -> None:
    seen = {}

    def place(name: str, values: np.ndarray) -> jax.Array:
        seen[name] = values.shape
        return jnp.zeros(values.shape)

    made = checkpoint()
    loaded = load_weights(made, place=place)
    assert seen == {name: tensor.shape for name, tensor in made.tensors.items()}
    assert not np.any(loaded.norm)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_value_that_is_not_finite_is_refused_with_its_place(value: float, dtype: str) -> None:
    made = checkpoint(dtype=dtype)
    name = "layers.1.attention.wv.weight"
    values = made.tensors[name].read().copy()
    values[3, 5] = value
    tensor = Tensor(name, values.shape, dtype, lambda: values)
    spoilt = dataclasses.replace(made, tensors={**made.tensors, name: tensor})
    with pytest.raises(ModelFileError, match=rf"{name} holds {value} at \[3, 5\]"):
        load_weights(spoilt)


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ConfigError, match="'int4'; there are float32"):
        load_weights(checkpoint(), dtype="int4")


MEASURED = """
import resource, sys
from pathlib import Path
import jax, jax.numpy as jnp
from llamalab.checkpoints.checkpoint import open_checkpoint
from llamalab.checkpoints.load import load_weights
def peak():  # of this process alone; ru_maxrss would start from the parent's
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
checkpoint = open_checkpoint(Path(sys.argv[1]))
jnp.zeros(8).block_until_ready()
before = peak()
weights = load_weights(checkpoint, dtype=sys.argv[2])
print((peak() - before) / sum(leaf.nbytes for leaf in jax.tree.leaves(weights)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("stored", ["F32", "Q8_0", "BF16"])
@pytest.mark.parametrize("form", ["gguf", "safetensors", "meta"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory_is_at_most_a_quarter_above_the_weights(tmp_path: Path, stored: str, form: str, dtype: str) -> None:
    """15 million parameters, 60 MB in float32, of which the embedding is a quarter as in Llama 3.2 1B."""
    from llamalab.checkpoints.convert import convert
    from llamalab.checkpoints.gguf import write_gguf_checkpoint

    if form != "gguf" and stored == "Q8_0":
        pytest.skip("only GGUF files are quantised")
    config = dataclasses.replace(
        checkpoint().config, dim=512, n_layers=4, n_heads=8, n_kv_heads=2, head_dim=64, ffn_dim=1536, vocab_size=8192
    )
    gguf = tmp_path / "m.gguf"
    write_gguf_checkpoint(checkpoint(config, tied=True), gguf, stored)  # type: ignore[arg-type]
    path = gguf if form == "gguf" else convert(gguf, tmp_path / "m", to=form).target
    command = [sys.executable, "-c", MEASURED, str(path), dtype]
    ratio = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 0.9 < ratio <= 1.25
