"""Checkpoints in bfloat16, computed in float32 on a CPU: kept as they are, with the numbers of widened weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from llamalab.checkpoints.checkpoint import open_checkpoint
from llamalab.checkpoints.gguf import write_gguf_checkpoint
from llamalab.engine import GenerateRequest, Generation, SamplingParams
from llamalab.engines.jax import JaxEngine
from llamalab.engines.jax_device import weight_bytes
from llamalab.errors import OutOfMemory
from llamalab.llama import native_products
from llamalab.scored import ScoreRequest
from tests.llama.compilations import compilations

pytestmark = pytest.mark.skipif(not native_products.available(), reason="no C++ compiler, or no CPU")

PROMPT = list(range(5, 30))


@pytest.fixture(scope="module", autouse=True)
def _quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled without optimisations; nothing is kept in the user's folder."""
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="module")
def brain(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in bfloat16."""
    path = tmp_path_factory.mktemp("brain") / "brain.gguf"
    write_gguf_checkpoint(open_checkpoint(tiny_gguf), path, dtype="BF16")
    return path


@pytest.fixture(scope="module")
def kept(brain: Path) -> Iterator[JaxEngine]:
    with JaxEngine(brain, n_seq=2, n_ctx=256) as engine:
        yield engine


@pytest.fixture(scope="module")
def wide(brain: Path) -> Iterator[JaxEngine]:
    with JaxEngine(brain, n_seq=2, n_ctx=256, widen=True) as engine:
        yield engine


def greedy(engine: JaxEngine, count: int, prompts: int = 1) -> list[tuple[int, ...]]:
    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
    asked = [GenerateRequest(PROMPT[number:], params) for number in range(prompts)]
    done = [event for event in engine.generate(asked) if isinstance(event, Generation)]
    return [tuple(event.ids) for event in sorted(done, key=lambda event: event.request)]


def test_half_the_memory_is_held(kept: JaxEngine, wide: JaxEngine, brain: Path) -> None:
    checkpoint = open_checkpoint(brain)
    for engine, keep in ((kept, True), (wide, False)):
        assert engine.info.size_bytes == weight_bytes(checkpoint, 4, keep_bfloat16=keep)
    assert kept.info.size_bytes < 0.51 * wide.info.size_bytes


def test_logits_and_scores_of_texts_have_the_same_bits(kept: JaxEngine, wide: JaxEngine) -> None:
    np.testing.assert_array_equal(kept.logits(PROMPT), wide.logits(PROMPT))
    asked = [ScoreRequest(PROMPT[:9], PROMPT[9:]), ScoreRequest(PROMPT[:24], PROMPT[24:])]
    for mode in ("strict", "fast"):
        assert kept.score(asked, mode=mode) == wide.score(asked, mode=mode)  # type: ignore[arg-type]


def test_a_token_after_the_other_gives_the_same_logits_and_text(kept: JaxEngine, wide: JaxEngine) -> None:
    np.testing.assert_allclose(kept.stepped_logits(PROMPT, 3), wide.stepped_logits(PROMPT, 3), atol=1e-5)
    assert greedy(kept, 200) == greedy(wide, 200)
    assert greedy(kept, 40, prompts=2) == greedy(wide, 40, prompts=2)


def test_after_a_first_request_nothing_is_compiled(kept: JaxEngine) -> None:
    greedy(kept, 20)
    with compilations() as seen:
        greedy(kept, 30)
    assert seen == []


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"mesh": "tensor=1"}, {"widen": True}])
def test_where_it_makes_no_sense_all_weights_have_one_dtype(brain: Path, options: dict[str, object]) -> None:
    with JaxEngine(brain, n_seq=1, n_ctx=32, **options) as engine:
        assert len({leaf.dtype for leaf in jax.tree.leaves(engine._weights)}) == 1


def test_without_a_compiler_weights_are_widened(brain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamalab.engines.jax_device.available", lambda: False)
    with JaxEngine(brain, n_seq=1, n_ctx=32) as engine:
        assert {leaf.dtype for leaf in jax.tree.leaves(engine._weights)} == {np.dtype(np.float32)}


def test_eight_bits_of_kept_weights_are_those_of_wide_ones(brain: Path) -> None:
    with (
        JaxEngine(brain, n_seq=1, n_ctx=32, int8=True) as one,
        JaxEngine(brain, n_seq=1, n_ctx=32, int8=True, widen=True) as other,
    ):
        np.testing.assert_array_equal(one.logits(PROMPT), other.logits(PROMPT))
        assert one.info.size_bytes < other.info.size_bytes


def test_what_fits_only_as_it_is_stored_is_loaded(brain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = weight_bytes(open_checkpoint(brain), 4, keep_bfloat16=False)
    monkeypatch.setattr("llamalab.engines.jax_device.available_memory", lambda: free)
    with pytest.raises(OutOfMemory):
        JaxEngine(brain, n_seq=1, n_ctx=16, widen=True)
    JaxEngine(brain, n_seq=1, n_ctx=16).close()
