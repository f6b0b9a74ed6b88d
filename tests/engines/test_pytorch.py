"""Meta's and transformers' own code behind the engines, on tiny random models: live comparisons."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from llamalab.checkpoints.checkpoint import Checkpoint, Tensor
from llamalab.checkpoints.gguf import write_gguf_checkpoint
from llamalab.checkpoints.huggingface import write_huggingface
from llamalab.checkpoints.meta import write_meta
from llamalab.engine import GenerateRequest, Generation, LogitsEngine, SamplingParams
from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.errors import ConfigError, ModelFileError
from llamalab.lab.verify import Verdict, verify
from llamalab.llama.config import LlamaConfig, RopeScaling
from llamalab.scored import ScoreRequest
from tests.checkpoints.tiny_checkpoint import N_TOKENS, checkpoint

pytestmark = [pytest.mark.reference, pytest.mark.xdist_group("pytorch")]

for library in ("torch", "transformers", "fairscale", "llama_models"):
    pytest.importorskip(library)

SHAPE = LlamaConfig(
    dim=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    ffn_dim=192,
    vocab_size=N_TOKENS,
    max_seq_len=2100,
    rope_theta=500_000.0,
)
MODELS = {
    "llama-3": (SHAPE, False),
    "llama-3.1": (dataclasses.replace(SHAPE, rope_scaling=RopeScaling(8.0)), False),
    "llama-3.2": (dataclasses.replace(SHAPE, rope_scaling=RopeScaling(32.0)), True),
    "llama-2": (dataclasses.replace(SHAPE, n_kv_heads=4, rope_theta=10_000.0), False),
}
IDS = np.random.default_rng(3).integers(0, N_TOKENS, 2048).tolist()
ATOL = 1e-4


@dataclasses.dataclass(frozen=True)
class Folder:
    """One model in three formats."""

    name: str
    meta: Path
    huggingface: Path
    gguf: Path


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    config, tied = MODELS[request.param]
    base = tmp_path_factory.mktemp(request.param)
    model = _sharp(checkpoint(config, tied=tied, seed=1))
    found = Folder(request.param, base / "meta", base / "huggingface", base / "model.gguf")
    write_meta(model, found.meta, "F32")
    write_huggingface(model, found.huggingface, "F32")
    write_gguf_checkpoint(model, found.gguf, "F32")
    return found


@pytest.fixture(scope="module")
def meta(folder: Folder) -> Iterator[LogitsEngine]:
    from llamalab.engines.meta import MetaEngine

    with MetaEngine(folder.meta, n_ctx=2100) as engine:
        yield engine


@pytest.fixture(scope="module")
def hugging(folder: Folder) -> Iterator[LogitsEngine]:
    from llamalab.engines.transformers import TransformersEngine

    with TransformersEngine(folder.huggingface, n_ctx=2100) as engine:
        yield engine


def test_meta_and_transformers_agree_up_to_position_2048(meta: LogitsEngine, hugging: LogitsEngine) -> None:
    """The two references, each from files that llamalab wrote for it."""
    np.testing.assert_allclose(meta.logits(IDS), hugging.logits(IDS), atol=ATOL)


def test_llama_cpp_agrees_with_both(folder: Folder, meta: LogitsEngine, hugging: LogitsEngine) -> None:
    exact = {"type_k": "f32", "type_v": "f32", "flash_attn": False, "n_seq": 1}
    with LlamaCppEngine(folder.gguf, n_ctx=2100, n_threads=1, **exact) as engine:
        logits = engine.logits(IDS)
    np.testing.assert_allclose(logits, meta.logits(IDS), atol=ATOL)
    np.testing.assert_allclose(logits, hugging.logits(IDS), atol=ATOL)


def test_cached_decoding_and_parts_equal_a_full_pass(meta: LogitsEngine, hugging: LogitsEngine) -> None:
    for engine in (meta, hugging):
        full = engine.logits(IDS[:300])
        assert full.dtype == np.float32
        np.testing.assert_allclose(engine.stepped_logits(IDS[:300], 280), full[280:], atol=2e-5)
        np.testing.assert_allclose(engine.logits(IDS[:300], rows=slice(7, 9)), full[7:9], atol=2e-5)


def test_layers_are_the_same_and_none_is_normed(meta: LogitsEngine, hugging: LogitsEngine) -> None:
    """transformers itself gives the last layer's output only after the last norm; here it is before it."""
    one, other = meta.hidden(IDS[:50]), hugging.hidden(IDS[:50])
    assert one is not None
    assert other is not None
    assert len(one) == len(other) == SHAPE.n_layers
    for a, b in zip(one, other, strict=True):
        assert a.shape == (50, SHAPE.dim)
        np.testing.assert_allclose(a, b, atol=ATOL)


def test_greedy_tokens_are_those_of_transformers_own_generate(folder: Folder, hugging: LogitsEngine) -> None:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder.huggingface, dtype=torch.float32)
    prompt = torch.tensor([IDS[:16]])
    made = model.generate(prompt, do_sample=False, max_new_tokens=40, min_new_tokens=40, temperature=None, top_k=None)
    params = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
    *_, last = hugging.generate([GenerateRequest(IDS[:16], params)])
    assert isinstance(last, Generation)
    stop = model.generation_config.eos_token_id
    assert stop not in last.ids  # min_new_tokens forbids it to transformers
    assert list(last.ids) == made[0, 16:].tolist()


def test_scores_equal_those_of_llama_cpp(folder: Folder, meta: LogitsEngine, hugging: LogitsEngine) -> None:
    request = [ScoreRequest(IDS[:20], IDS[20:60]), ScoreRequest([], IDS[:5])]
    with LlamaCppEngine(folder.gguf, n_threads=1, n_seq=1, type_k="f32", type_v="f32") as engine:
        expected = engine.score(request)
    for engine in (meta, hugging):
        for found, wanted in zip(engine.score(request), expected, strict=True):
            assert found.logprobs == pytest.approx(wanted.logprobs, abs=ATOL)


def test_verify_agrees_and_finds_one_changed_weight(folder: Folder, tmp_path: Path) -> None:
    """The guide's flow, at a hundredth of its tolerance; then the same with one matrix of the second layer off."""
    verdict = _verify(f"meta:{folder.meta}", f"transformers:{folder.huggingface}")
    assert verdict.agree
    assert verdict.comparisons[0].first_layer is None
    config, tied = MODELS[folder.name]
    model = _changed(_sharp(checkpoint(config, tied=tied, seed=1)), "layers.1.feed_forward.w2.weight")
    write_huggingface(model, tmp_path / "changed", "F32")
    verdict = _verify(f"meta:{folder.meta}", f"transformers:{tmp_path / 'changed'}")
    assert not verdict.agree
    assert verdict.comparisons[0].first_layer == 1


def test_meta_as_published_scales_by_eight(folder: Folder, meta: LogitsEngine) -> None:
    """With a factor of 32 its table is computed anew, and says so; as published the logits are others."""
    from llamalab.engines.meta import MetaEngine

    with MetaEngine(folder.meta, as_published=True, n_ctx=2100) as engine:
        logits, notes = engine.logits(IDS), engine.notes
    scaling = MODELS[folder.name][0].rope_scaling
    if scaling is not None and scaling.factor == 32:
        assert np.abs(logits - meta.logits(IDS)).max() > 5 * ATOL
        assert any("runs as published" in note for note in notes)
        assert any("computed anew" in note for note in meta.notes)  # type: ignore[attr-defined]
    else:
        np.testing.assert_array_equal(logits, meta.logits(IDS))
        assert not any("factor" in note for note in notes)


def test_meta_runs_every_format(folder: Folder, meta: LogitsEngine) -> None:
    """The .pth by torch.load, the others by our readers: the same numbers."""
    from llamalab.engines.meta import MetaEngine

    for path in (folder.huggingface, folder.gguf):
        with MetaEngine(path, n_ctx=2100) as engine:
            np.testing.assert_allclose(engine.logits(IDS[:64]), meta.logits(IDS[:64]), atol=1e-5)


def test_wrong_options_and_folders_are_refused(folder: Folder) -> None:
    from llamalab.engines.meta import MetaEngine
    from llamalab.engines.transformers import TransformersEngine

    with pytest.raises(ModelFileError, match="llamalab convert"):
        TransformersEngine(folder.meta)
    with pytest.raises(ConfigError, match=r"no option 'dtpye'\. Did you mean 'dtype'"):
        TransformersEngine(folder.huggingface, dtpye="float32")
    with pytest.raises(ConfigError, match="dtype must be one of float32"):
        TransformersEngine(folder.huggingface, dtype="int8")
    with pytest.raises(ConfigError, match="no device 'abacus' here"):
        TransformersEngine(folder.huggingface, device="abacus")
    with pytest.raises(ConfigError, match="n_ctx must be a whole number"):
        MetaEngine(folder.meta, n_ctx=0)


def _verify(a: str, b: str) -> Verdict:
    return verify(a, b, {"one": "the other thing", "two": "x" * 80}, rtol=1e-5, atol=ATOL, tokens=8, layers=True)


def _sharp(model: Checkpoint) -> Checkpoint:
    """Sharper attention than chance gives, so that positions matter."""
    return _scaled(model, lambda name: 1.2 if name.endswith(("wq.weight", "wk.weight")) else 1.0)


def _changed(model: Checkpoint, which: str) -> Checkpoint:
    return _scaled(model, lambda name: 1.01 if name == which else 1.0)


def _scaled(model: Checkpoint, scale: Callable[[str], float]) -> Checkpoint:
    def read(tensor: Tensor) -> np.ndarray:
        return (tensor.read() * np.float32(scale(tensor.name))).astype(np.float32)

    tensors = {
        name: dataclasses.replace(tensor, read=lambda tensor=tensor: read(tensor))
        for name, tensor in model.tensors.items()
    }
    return dataclasses.replace(model, tensors=tensors)
