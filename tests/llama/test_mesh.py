"""A model spread over four devices (a CPU that passes for four) computes what it computes on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from llamalab.checkpoints.gguf import write_gguf
from llamalab.errors import ConfigError
from llamalab.llama.mesh import parse_mesh
from tests.checkpoints.test_gguf import byte_vocabulary
from tests.llama.four_devices import BATCH, CONFIG, LENGTH, MESHES
from tests.llama.random_weights import random_weights

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.xdist_group("four devices")  # one process of that kind for all
TENSOR = {"tensor=4": 4, "data=2,tensor=2": 2}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What four_devices.py says: the number of devices is fixed when JAX starts, so it is a process of its own."""
    model = tmp_path_factory.mktemp("model") / "random.gguf"
    write_gguf(model, random_weights(CONFIG, seed=6), CONFIG, byte_vocabulary(CONFIG.vocab_size), name="random")
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("xla")),
    }
    command = [sys.executable, "-m", "tests.llama.four_devices", str(model)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("mesh", MESHES)
def test_logits_are_those_of_one_device(found: dict[str, Any], mesh: str) -> None:
    """A prompt and a token after it; sums in another order differ in the last bits."""
    assert found["devices"] == 4
    assert found["spread"] > 0.5
    assert found[mesh]["apart"] < 2e-5


@pytest.mark.parametrize("mesh", MESHES)
def test_each_device_holds_its_share(found: dict[str, Any], mesh: str) -> None:
    """Matrices and vocabulary over `tensor`, norms on every device, the cache over both axes."""
    matrices = 2 * CONFIG.vocab_size * 64 + CONFIG.n_layers * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64)
    norms = (2 * CONFIG.n_layers + 1) * 64
    assert found[mesh]["weights"] == [4 * (matrices // TENSOR[mesh] + norms)] * 4
    cache = 2 * CONFIG.n_layers * BATCH * CONFIG.n_kv_heads * LENGTH * CONFIG.head_dim
    assert found[mesh]["cache"] == [4 * cache // 4] * 4


@pytest.mark.parametrize("mesh", MESHES)
def test_eight_bits_are_spread_as_well(found: dict[str, Any], mesh: str) -> None:
    assert found[mesh]["int8 apart"] < 2e-5
    assert found[mesh]["int8"] == [(128 * 64 + 4 * 128) // TENSOR[mesh]] * 4


def test_greedy_text_is_that_of_one_device(found: dict[str, Any]) -> None:
    """Through the engine and its option `mesh`."""
    alone, spread = found["texts"].values()
    assert len(alone) == 12
    assert alone == spread


def test_what_does_not_divide_or_is_not_there_is_named(found: dict[str, Any]) -> None:
    indivisible, too_many = found["refused"]
    assert "4 kv heads do not divide over tensor=3" in indivisible
    assert "needs 8 devices; there are 4" in too_many


@pytest.mark.parametrize("text", ["", "tensor", "tensor=0", "tensor=two", "model=2", "tensor=2,tensor=2", "tensor=-1"])
def test_what_is_no_mesh_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a mesh"):
        parse_mesh(text)


def test_one_axis_is_enough() -> None:
    mesh = parse_mesh(" data = 1 ", jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "tensor": 1}
