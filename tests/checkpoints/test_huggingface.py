"""Hugging Face folders. Oracles: the safetensors library, and (marked reference) transformers itself."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamalab.checkpoints.huggingface import open_huggingface, write_huggingface
from llamalab.checkpoints.load import load_weights
from llamalab.checkpoints.safetensors_file import read_safetensors
from llamalab.errors import ConfigError, LlamalabError, ModelFileError
from llamalab.llama.cache import KVCache
from llamalab.llama.config import RopeScaling
from llamalab.llama.model import xfmr
from tests.checkpoints.tiny_checkpoint import PLAIN, SCALED, bits, checkpoint

WINDOWED = dataclasses.replace(PLAIN, sliding_window=8)
ODD = dataclasses.replace(PLAIN, dim=72, n_heads=10, n_kv_heads=5)
"""A width that is no multiple of the heads, which transformers' Llama refuses and its Mistral does not."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_huggingface(checkpoint(SCALED), folder, "F32")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(made, tmp_path / "model"))


def change(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
    return folder


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("config", [PLAIN, SCALED, WINDOWED, ODD], ids=["plain", "scaled", "windowed", "odd"])
def test_what_is_written_comes_back_bit_for_bit(tmp_path: Path, dtype: str, config: Any) -> None:
    original = checkpoint(config, dtype=dtype, tied=config is SCALED)
    write_huggingface(original, tmp_path, dtype)
    back = open_huggingface(tmp_path)
    assert bits(back) == bits(original)
    assert back.config == config
    assert (back.name, back.chat_template, back.sampling) == ("tiny", original.chat_template, original.sampling)
    assert list(back.vocabulary.tokens) == list(original.vocabulary.tokens)


def test_the_files_are_those_of_the_formats_own_library(tmp_path: Path) -> None:
    """Values and names as safetensors reads them; query rows of a head in halves, as transformers has them."""
    safetensors = pytest.importorskip("safetensors.numpy")
    original = checkpoint()
    write_huggingface(original, tmp_path, "F32")
    read = safetensors.load_file(tmp_path / "model.safetensors")
    assert len(read) == len(original.tensors)
    np.testing.assert_array_equal(read["model.embed_tokens.weight"], original.tensors["tok_embeddings.weight"].read())
    meta = original.tensors["layers.1.attention.wk.weight"].read()
    halves = read["model.layers.1.self_attn.k_proj.weight"]
    width = PLAIN.head_dim
    np.testing.assert_array_equal(halves[: width // 2], meta[0:width:2])
    np.testing.assert_array_equal(halves[width // 2 : width], meta[1:width:2])
    safetensors.save_file(read, tmp_path / "model.safetensors")
    assert bits(open_huggingface(tmp_path)) == bits(original)


def test_large_models_are_written_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamalab.checkpoints.huggingface.SHARD_BYTES", 80_000)
    original = checkpoint()
    write_huggingface(original, tmp_path, "F32")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert not (tmp_path / "model.safetensors").exists()
    assert bits(open_huggingface(tmp_path)) == bits(original)
    (last := shards[-1]).unlink()
    with pytest.raises(ModelFileError, match=rf"1 are missing, the first is {last.name}"):
        open_huggingface(tmp_path)
    shutil.copy(shards[0], last)
    with pytest.raises(ModelFileError, match="does not hold the tensor"):
        open_huggingface(tmp_path)


def test_both_forms_of_rope_parameters_are_read(folder: Path) -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 4096}
    old = open_huggingface(change(folder, rope_theta=10_000.0, rope_scaling=rope)).config
    assert (old.rope_theta, old.rope_scaling) == (10_000.0, RopeScaling(8.0, original_max_seq_len=4096))
    new = change(folder, rope_theta=..., rope_scaling=..., rope_parameters={**rope, "rope_theta": 10_000.0})
    assert open_huggingface(new).config == old
    plain = change(folder, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0})
    assert open_huggingface(plain).config.rope_scaling is None


def test_the_factor_can_be_given(folder: Path) -> None:
    read = open_huggingface(folder, rope_factor=8)
    assert read.config.rope_scaling == RopeScaling(8.0)
    assert read.rope_source == "given: factor 8 (config.json: factor 32)"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MllamaForConditionalGeneration"], "model_type": "mllama"}, "MllamaForCondition"),
        ({"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}, "MixtralForCausalLM"),
        ({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}, "Qwen2ForCausalLM"),
        ({"architectures": ..., "model_type": "gemma2"}, "type 'gemma2'"),
        ({"architectures": ..., "model_type": ...}, "type 'unknown'"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantised \(gptq\)"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "type 'yarn'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "type 'dynamic'"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "type 'linear'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "lacks the key 'low_freq_factor'"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "not those of a Llama"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_size": ...}, "lacks the key 'hidden_size'"),
        ({"vocab_size": "many"}, "vocab_size is 'many', not a positive integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, not"),
        ({"rms_norm_eps": True}, "rms_norm_eps is True, not"),
        ({"intermediate_size": 64}, r"w1\.weight has the shape \[128, 64\].*ask for \[64, 64\]"),
        ({"num_hidden_layers": 2}, "is incomplete: the tensor layers.1"),
        ({"num_hidden_layers": 10**9}, r"name 1,000,000,000 layers, and there are 12 tensors"),
        ({"num_hidden_layers": 2**31}, r"num_hidden_layers is 2147483648, not a positive integer below"),
        ({"vocab_size": 100}, "262"),
        ({"vocab_size": 10**9}, r"has the shape \[262, 64\].*ask for \[1000000000, 64\]"),
        ({"rope_theta": 10**400}, "rope_theta is 1000.*, not a positive number"),
    ],
    ids=str,
)
def test_what_is_no_llama_or_not_whole_is_refused_by_name(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        open_huggingface(change(folder, **changes))


def test_a_sliding_window_counts_only_in_mistral_and_where_it_is_shorter_than_the_context(folder: Path) -> None:
    assert open_huggingface(change(folder, sliding_window=16)).config.sliding_window is None
    mistral = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    assert open_huggingface(change(folder, **mistral)).config.sliding_window == 16
    assert open_huggingface(change(folder, sliding_window=131_072)).config.sliding_window is None
    assert open_huggingface(change(folder, sliding_window=None)).config.sliding_window is None
    assert open_huggingface(change(folder, sliding_window=...)).config.sliding_window == 4096


def test_an_output_is_kept_once_where_it_is_the_embedding(tmp_path: Path) -> None:
    tied = checkpoint(tied=True)
    embedding = tied.tensors["tok_embeddings.weight"]
    both = {**tied.tensors, "output.weight": dataclasses.replace(embedding, name="output.weight")}
    write_huggingface(dataclasses.replace(tied, tensors=both), tmp_path, "F32")
    assert open_huggingface(tmp_path).tied


def test_an_output_that_differs_is_used_and_remarked_though_the_config_ties(tmp_path: Path) -> None:
    write_huggingface(checkpoint(), tmp_path, "F32")
    read = open_huggingface(change(tmp_path, tie_word_embeddings=True))
    assert not read.tied
    assert any("lm_head.weight is used" in note for note in read.notes)


def rewritten(folder: Path, edit: Any) -> Path:
    """The weights file with another header before the same data."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    text = json.dumps(edit(header) or header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return folder


FIRST = "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda h: h[FIRST].update(dtype="F8_E4M3"), "of the type F8_E4M3"),
        (lambda h: h[FIRST].update(dtype="F16"), "cannot lie between the bytes"),
        (lambda h: h[FIRST].update(shape=[262, 65]), "cannot lie between the bytes"),
        (lambda h: h[FIRST].update(shape=[-262, -64]), "malformed"),
        (lambda h: h[FIRST].update(data_offsets=[-67072, 0]), "cannot lie between the bytes"),
        (lambda h: h[FIRST].update(data_offsets=[10**15, 10**15 + 67072]), "is cut off"),
        (lambda h: h.update({FIRST: "here"}), "malformed"),
        (lambda h: h.pop("model.norm.weight") and None, "norm.weight is missing|is damaged"),
        (lambda _: ["a list"], "no JSON object"),
    ],
)
def test_a_header_that_lies_is_refused(folder: Path, edit: Any, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        open_huggingface(rewritten(folder, edit))


@settings(max_examples=50)
@given(data=st.data())
def test_damaged_weights_give_one_error_and_nothing_else(made: Path, data: st.DataObject) -> None:
    content = bytearray((made / "model.safetensors").read_bytes())
    length = 8 + int.from_bytes(content[:8], "little")
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, length)) :]
    for _ in range(data.draw(st.integers(0, 3))):
        if content:
            content[data.draw(st.integers(0, min(length, len(content)) - 1))] = data.draw(st.integers(0, 255))
    damaged = made.parent / "damaged.safetensors"
    damaged.write_bytes(content)
    with contextlib.suppress(LlamalabError):
        read_safetensors(damaged)


def test_missing_files_are_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(ModelFileError, match="is cut off: its tensors end at byte"):
        open_huggingface(folder)
    weights.unlink()
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(ModelFileError, match=r"There is pytorch_model\.bin; save the model as safetensors"):
        open_huggingface(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelFileError, match=r"config\.json is damaged: it is not JSON"):
        open_huggingface(folder)


def test_a_quantised_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written as 'Q8_0'"):
        write_huggingface(checkpoint(), tmp_path / "x", "Q8_0")


@pytest.mark.reference
@pytest.mark.parametrize("config", [PLAIN, SCALED, WINDOWED, ODD], ids=["plain", "scaled", "windowed", "odd"])
def test_transformers_gives_the_same_logits_on_what_is_written(tmp_path: Path, config: Any) -> None:
    """At positions up to 600, beyond the sliding window and where scaled RoPE differs; and the same token ids."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    original = checkpoint(config, tied=config is SCALED)
    write_huggingface(original, tmp_path, "F32")
    auto = transformers.AutoModelForCausalLM
    model = auto.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    assert model.generation_config.eos_token_id == original.vocabulary.eos_id
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (1, 600))
    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).logits.numpy()
    read = open_huggingface(tmp_path)
    cache = KVCache.new(config, 1, tokens.shape[1])
    ours, *_ = xfmr(load_weights(read), config, jnp.asarray(tokens), 0, cache)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("the<|eos|>", add_special_tokens=False).input_ids == [256, 68, 258]


@pytest.mark.reference
def test_what_transformers_writes_is_read(tmp_path: Path) -> None:
    """Its own config.json and weights, with the RoPE of Llama 3.2."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    write_huggingface(checkpoint(SCALED), tmp_path / "ours", "BF16")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "theirs")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "ours" / name, tmp_path / "theirs" / name)
    ours, theirs = open_huggingface(tmp_path / "ours"), open_huggingface(tmp_path / "theirs")
    assert theirs.config == ours.config
    # It puts the norms, which stay F32 here as BF16 would round them, into one dtype with the rest.
    matrices = [name for name, tensor in ours.tensors.items() if len(tensor.shape) > 1]
    assert {name: bits(theirs)[name] for name in matrices} == {name: bits(ours)[name] for name in matrices}
