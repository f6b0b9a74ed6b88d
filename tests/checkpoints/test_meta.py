"""Meta's folders: read as Meta's code reads them, written so that it loads them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamalab.checkpoints import meta
from llamalab.checkpoints.checkpoint import EMBEDDING, OUTPUT, Checkpoint, Tensor, open_checkpoint
from llamalab.checkpoints.gguf_reader import open_gguf
from llamalab.checkpoints.meta import open_meta, write_meta
from llamalab.checkpoints.meta_params import ffn_settings, ffn_width, read_params, write_params
from llamalab.checkpoints.pth import layout, read_pth
from llamalab.checkpoints.pth_writer import write_pth
from llamalab.checkpoints.vocabulary import Vocabulary
from llamalab.errors import ConfigError, ModelFileError
from llamalab.llama.config import LlamaConfig, RopeScaling
from llamalab.llama.rope import inverse_frequencies

GOLDEN = Path(__file__).parent.parent / "golden" / "pth"
GOLDEN_PARAMS = {
    "dim": 8,
    "n_layers": 1,
    "n_heads": 4,
    "n_kv_heads": 2,
    "vocab_size": 10,
    "multiple_of": 4,
    "ffn_dim_multiplier": 0.5,
    "norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "use_scaled_rope": False,
}
"""Of the two shards that Meta's code has cut."""

LLAMA_32_1B = {
    "dim": 2048,
    "ffn_dim_multiplier": 1.5,
    "multiple_of": 256,
    "n_heads": 32,
    "n_kv_heads": 8,
    "n_layers": 16,
    "norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "use_scaled_rope": True,
    "vocab_size": 128256,
}
LLAMA_32_3B = LLAMA_32_1B | {"dim": 3072, "ffn_dim_multiplier": 1.0, "n_heads": 24, "n_layers": 28}
LLAMA_31_8B = LLAMA_32_1B | {"dim": 4096, "ffn_dim_multiplier": 1.3, "multiple_of": 1024, "n_layers": 32}
LLAMA_31_70B = LLAMA_31_8B | {"dim": 8192, "multiple_of": 4096, "n_heads": 64, "n_layers": 80}
LLAMA_3_8B = {key: value for key, value in LLAMA_31_8B.items() if key != "use_scaled_rope"}
LLAMA_2_7B = {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-05, "vocab_size": -1}
LLAMA_2_70B = LLAMA_2_7B | {
    "dim": 8192,
    "multiple_of": 4096,
    "ffn_dim_multiplier": 1.3,
    "n_heads": 64,
    "n_kv_heads": 8,
    "n_layers": 80,
}


def with_params(folder: Path, params: Mapping[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params))
    return folder


@pytest.fixture
def vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokeniser of the golden shards' size."""
    read = Vocabulary("bpe", [str(i) for i in range(10)], ["normal"] * 10)
    monkeypatch.setattr(meta, "vocabulary_from_meta", lambda _: read)


@pytest.fixture
def golden(tmp_path: Path, vocabulary: None) -> Path:
    """A folder of two shards."""
    folder = with_params(tmp_path / "golden", GOLDEN_PARAMS)
    for number in (0, 1):
        shutil.copy(GOLDEN / f"consolidated.{number:02d}.pth", folder)
    return folder


def recut(folder: Path, cut: Callable[[int, str, np.ndarray], np.ndarray], shards: int = 2) -> None:
    """Write the shards of `folder` anew, each tensor of the golden model as `cut` gives it."""
    whole = {name: array.view(ml_dtypes.bfloat16) for name, array in np.load(GOLDEN / "joined.npz").items()}
    for number in range(shards):
        arrays = {name: cut(number, name, array) for name, array in whole.items()}
        tensors = [Tensor(name, a.shape, "BF16", lambda a=a: a) for name, a in arrays.items()]
        write_pth(folder / f"consolidated.{number:02d}.pth", tensors)


def uncut(number: int, name: str, whole: np.ndarray) -> np.ndarray:
    return whole


def assert_golden(checkpoint: Checkpoint) -> None:
    expected = np.load(GOLDEN / "joined.npz")
    assert set(checkpoint.tensors) == set(expected)
    for name, tensor in checkpoint.tensors.items():
        np.testing.assert_array_equal(tensor.read().view(np.uint16), expected[name], strict=True)


@pytest.mark.parametrize(
    ("params", "ffn_dim", "head_dim", "factor", "length"),
    [
        (LLAMA_32_1B, 8192, 64, 32, 131072),
        (LLAMA_32_3B, 8192, 128, 32, 131072),
        (LLAMA_31_8B, 14336, 128, 8, 131072),
        (LLAMA_31_70B, 28672, 128, 8, 131072),
        (LLAMA_3_8B, 14336, 128, None, 8192),
        (LLAMA_2_7B, 11008, 128, None, 4096),
        (LLAMA_2_70B, 28672, 128, None, 4096),
    ],
    ids=["3.2-1B", "3.2-3B", "3.1-8B", "3.1-70B", "3-8B", "2-7B", "2-70B"],
)
def test_shapes_of_the_official_models(
    params: dict[str, Any], ffn_dim: int, head_dim: int, factor: float | None, length: int, tmp_path: Path
) -> None:
    """Widths and factors as published in the models' config.json on the hub."""
    read = read_params(with_params(tmp_path, params), None)
    config = read.config
    assert (config.ffn_dim, config.head_dim, config.max_seq_len) == (ffn_dim, head_dim, length)
    assert config.rope_scaling == (RopeScaling(factor) if factor else None)
    assert config.rope_theta == params.get("rope_theta", 10000.0)
    assert ("inferred" in read.rope_source) == (factor is not None)
    assert any(f"{length:,} tokens" in note for note in read.notes)


def test_that_llama_1_is_read_as_llama_2_is_said(tmp_path: Path) -> None:
    """Their params.json have the same keys, and neither says how long the context is: 2,048 and 4,096 tokens."""
    (note,) = read_params(with_params(tmp_path, LLAMA_2_7B | {"norm_eps": 1e-6}), None).notes
    assert "4,096 tokens, as Llama 2" in note
    assert "Llama 1" in note
    assert "2,048" in note
    assert not any("Llama 1" in note for note in read_params(with_params(tmp_path, LLAMA_3_8B), None).notes)


def test_rope_factor_can_be_given(tmp_path: Path) -> None:
    folder = with_params(tmp_path, LLAMA_32_1B)
    read = read_params(folder, 8.0)
    assert read.config.rope_scaling == RopeScaling(8.0)
    assert "given" in read.rope_source
    assert read_params(folder, 1.0).config.rope_scaling is None
    with pytest.raises(ConfigError, match="RoPE factor is 0"):
        read_params(folder, 0.0)


@pytest.mark.parametrize("key", ["dim", "n_layers", "n_heads", "vocab_size", "multiple_of", "norm_eps"])
def test_a_missing_key_is_named(key: str, tmp_path: Path) -> None:
    params = {name: value for name, value in LLAMA_31_8B.items() if name != key}
    with pytest.raises(ModelFileError, match=rf"params\.json lacks the key '{key}'"):
        read_params(with_params(tmp_path, params), None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": "4096"}, "dim is '4096', not a positive integer"),
        ({"n_layers": 0}, "n_layers is 0"),
        ({"n_heads": 33}, "33 heads cannot share 8"),
        ({"dim": 4100}, "cannot be split evenly"),
        ({"norm_eps": -1}, "norm_eps is -1"),
        ({"quantization_args": {"group_size": 32}}, r"int4, SpinQuant\) \(quantization_args\)"),
        ({"lora_args": {"rank": 16}}, "LoRA"),
        ({"vision_chunk_size": 560}, "vision model"),
        ({"moe_args": {"num_experts": 16}}, "mixture of experts"),
        ({"use_qk_norm": True}, "has the key 'use_qk_norm'"),
    ],
)
def test_other_values_and_architectures_are_refused_by_name(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelFileError, match=message):
        read_params(with_params(tmp_path, LLAMA_31_8B | change), None)


def test_a_text_model_may_say_that_it_sees_nothing(tmp_path: Path) -> None:
    text = {"vision_chunk_size": -1, "vision_num_cross_attention_layers": -1, "quantization_args": None}
    assert read_params(with_params(tmp_path, LLAMA_31_8B | text), None).config.dim == 4096


def test_broken_json_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text("{")
    with pytest.raises(ModelFileError, match=r"params\.json is damaged: it is not JSON"):
        read_params(tmp_path, None)
    (tmp_path / "params.json").write_text("[3]")
    with pytest.raises(ModelFileError, match="no JSON object"):
        read_params(tmp_path, None)


def test_shards_are_put_together_as_metas_code_does(golden: Path) -> None:
    checkpoint = open_checkpoint(golden)
    assert checkpoint.format == "meta"
    assert_golden(checkpoint)


def test_llama_2s_shards_with_the_embedding_cut_by_columns(golden: Path) -> None:
    """And with the table of frequencies in them, and the size of the vocabulary left open."""

    def cut(number: int, name: str, whole: np.ndarray) -> np.ndarray:
        if whole.ndim == 1:
            return whole
        axis = 1 if name in {EMBEDDING, "layers.0.attention.wo.weight", "layers.0.feed_forward.w2.weight"} else 0
        return np.split(whole, 2, axis)[number]

    recut(golden, cut)
    first = golden / "consolidated.00.pth"
    table = Tensor("rope.freqs", (1,), "F32", lambda: np.float32([1]))
    write_pth(first, [*read_pth(first).values(), table])
    with_params(golden, GOLDEN_PARAMS | {"vocab_size": -1})
    checkpoint = open_meta(golden)
    assert checkpoint.config.vocab_size == 10
    assert_golden(checkpoint)


def test_more_shards_than_key_and_value_heads(golden: Path) -> None:
    """Neighbours then hold the same head."""

    def cut(number: int, name: str, whole: np.ndarray) -> np.ndarray:
        if whole.ndim == 1:
            return whole
        if "attention.wk" in name or "attention.wv" in name:
            return np.split(whole, 2)[number // 2]
        if name == OUTPUT:  # ten rows are not to be cut into four evenly
            return np.array_split(whole, 4)[number]
        return np.split(whole, 4, 1 if name == EMBEDDING or name.endswith(("wo.weight", "w2.weight")) else 0)[number]

    recut(golden, cut, shards=4)
    assert_golden(open_meta(golden))


def test_a_missing_shard_is_named(golden: Path) -> None:
    (golden / "consolidated.01.pth").rename(golden / "consolidated.02.pth")
    with pytest.raises(ModelFileError, match=r"has consolidated\.02\.pth, but not consolidated\.01\.pth"):
        open_meta(golden)
    (golden / "consolidated.02.pth").unlink()
    with pytest.raises(ModelFileError, match=r"of 2 shards .* 1 are here"):
        open_meta(golden)
    (golden / "consolidated.00.pth").unlink()
    with pytest.raises(ModelFileError, match=r"there is no consolidated\.00\.pth"):
        open_meta(golden)


def test_a_truncated_shard_is_named(golden: Path) -> None:
    path = golden / "consolidated.01.pth"
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ModelFileError, match=r"consolidated\.01\.pth is cut off"):
        open_meta(golden)


def test_wrong_shapes_are_said_with_both(golden: Path) -> None:
    with_params(golden, GOLDEN_PARAMS | {"multiple_of": 16})
    with pytest.raises(ModelFileError, match=r"w1\.weight has the shape \[12, 8\].* ask for \[16, 8\]"):
        open_meta(golden)


def test_tensors_that_no_llama_has_are_refused(golden: Path) -> None:
    (golden / "consolidated.01.pth").unlink()
    recut(golden, uncut, shards=1)
    path = golden / "consolidated.00.pth"
    tensors = list(read_pth(path).values())
    adaptor = Tensor("layers.0.attention.wq.adaptor.A.weight", (2, 8), "F32", lambda: np.zeros((2, 8), np.float32))
    write_pth(path.with_suffix(".new"), [*tensors, adaptor])
    path.with_suffix(".new").replace(path)
    with pytest.raises(ModelFileError, match=r"wq\.adaptor\.A\.weight"):
        open_meta(golden)


def test_a_tokeniser_of_another_size_is_refused(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Vocabulary("bpe", [str(i) for i in range(9)], ["normal"] * 9)
    monkeypatch.setattr(meta, "vocabulary_from_meta", lambda _: other)
    with pytest.raises(ModelFileError, match="tokeniser has 9 tokens, the weights have 10 rows"):
        open_meta(golden)


@pytest.mark.parametrize("how", ["absent", "aliased", "equal"])
def test_a_tied_embedding_is_kept_once(how: str, golden: Path) -> None:
    (golden / "consolidated.01.pth").unlink()
    recut(golden, uncut, shards=1)
    path = golden / "consolidated.00.pth"
    tensors = {name: tensor for name, tensor in read_pth(path).items() if name != OUTPUT}
    if how == "equal":
        tensors[OUTPUT] = dataclasses.replace(tensors[EMBEDDING], name=OUTPUT)
    aliases = {OUTPUT: EMBEDDING} if how == "aliased" else {}
    write_pth(path.with_suffix(".new"), tensors.values(), aliases=aliases)
    path.with_suffix(".new").replace(path)
    assert (OUTPUT in layout(path)) == (how != "absent")
    checkpoint = open_meta(golden)
    assert checkpoint.tied
    assert len(checkpoint.tensors) == 11


def test_a_download_from_the_hub_without_safetensors_is_meta_s(golden: Path, tmp_path: Path) -> None:
    folder = tmp_path / "Llama3.2-1B"
    shutil.copytree(golden, folder / "original")
    (folder / "config.json").write_text("{}")
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.format, checkpoint.name) == ("meta", "Llama3.2-1B")


@given(dim=st.integers(1, 9000), ffn_dim=st.integers(1, 60000))
def test_any_width_of_the_hidden_layer_can_be_said(dim: int, ffn_dim: int) -> None:
    assert ffn_width(dim, *ffn_settings(dim, ffn_dim)) == ffn_dim


def test_official_widths_are_said_as_meta_says_them() -> None:
    assert ffn_settings(2048, 8192)[1] == 1.5
    assert ffn_settings(3072, 8192)[1] is None
    assert ffn_settings(4096, 14336) == (1024, 1.3)
    assert ffn_settings(4096, 11008) == (256, None)


CONFIG = LlamaConfig(64, 2, 4, 2, 16, 160, 300, 512, 500000.0, 1e-5, RopeScaling(32.0))


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        dataclasses.replace(CONFIG, rope_scaling=None, rope_theta=10000.0, norm_eps=9.999999747378752e-06),
        dataclasses.replace(CONFIG, rope_scaling=RopeScaling(8.0), n_kv_heads=4, ffn_dim=171, max_seq_len=131072),
    ],
)
def test_a_config_is_read_back_exactly(config: LlamaConfig, tmp_path: Path) -> None:
    notes = write_params(tmp_path, config, {"name": "x", "sampling": {"temperature": 0.5}})
    read = read_params(tmp_path, None)
    assert read.config == config
    assert (read.name, read.sampling) == ("x", {"temperature": 0.5})
    assert bool(notes) == (config.rope_scaling == RopeScaling(32.0))
    known = {"dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier"}
    known |= {"norm_eps", "rope_theta", "use_scaled_rope"}
    assert set(json.loads((tmp_path / "params.json").read_text())) <= known


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": 32}, "heads of 32"),
        ({"sliding_window": 100}, "sliding window of 100"),
        ({"rope_scaling": RopeScaling(8.0, original_max_seq_len=4096)}, "another RoPE scaling"),
    ],
)
def test_what_metas_code_cannot_say_is_refused_before_anything_is_written(
    change: dict[str, Any], message: str, tiny_gguf: Path, tmp_path: Path
) -> None:
    source = open_gguf(tiny_gguf)
    source = dataclasses.replace(source, config=dataclasses.replace(source.config, **change))
    with pytest.raises(ConfigError, match=message):
        write_meta(source, tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("source", ["tiny_gguf", "tiny_spm_gguf"])
def test_a_model_is_read_back_as_it_was(source: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Weights bit for bit, config, tokeniser, template."""
    before = open_gguf(request.getfixturevalue(source))
    notes = write_meta(before, tmp_path / "m")
    after = open_checkpoint(tmp_path / "m")
    assert (after.format, after.name, after.config) == ("meta", before.name, before.config)
    assert after.chat_template == before.chat_template
    assert after.sampling == before.sampling
    assert list(after.vocabulary.tokens) == list(before.vocabulary.tokens)
    assert "tokenizer." in notes[0]
    assert list(after.tensors) == list(before.tensors)
    for name, tensor in before.tensors.items():
        assert after.tensors[name].dtype == "F32"
        np.testing.assert_array_equal(after.tensors[name].read(), tensor.read(), strict=True)


def test_a_folder_with_a_model_in_it_is_left_alone(tiny_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "consolidated.01.pth").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"another model already \(consolidated\.01\.pth\)"):
        write_meta(open_gguf(tiny_gguf), tmp_path)


def test_dtypes_and_quantised_sources(tiny_gguf: Path, tiny_q8_gguf: Path, tmp_path: Path) -> None:
    write_meta(open_gguf(tiny_gguf), tmp_path / "b", "BF16")
    assert {tensor.dtype for tensor in open_meta(tmp_path / "b").tensors.values()} == {"BF16"}
    write_meta(open_gguf(tiny_q8_gguf), tmp_path / "q")
    assert {tensor.dtype for tensor in open_meta(tmp_path / "q").tensors.values()} == {"F32"}


def test_tied_models_are_written_with_an_output_that_shares_the_embedding(tiny_gguf: Path, tmp_path: Path) -> None:
    """Meta's code loads strictly: the name has to be there."""
    source = open_gguf(tiny_gguf)
    tied = {name: tensor for name, tensor in source.tensors.items() if name != OUTPUT}
    write_meta(dataclasses.replace(source, tensors=tied), tmp_path / "t")
    places = layout(tmp_path / "t" / "consolidated.00.pth")
    assert places[OUTPUT] == places[EMBEDDING]
    assert open_meta(tmp_path / "t").tied


@pytest.mark.reference
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_metas_transformer_loads_what_is_written(tied: bool, dtype: Any, tiny_gguf: Path, tmp_path: Path) -> None:
    """Strictly, by Meta's own `ModelArgs`, with the shape, the values and the frequencies that were written."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("llama_models")
    from llama_models.llama3.args import ModelArgs
    from llama_models.llama3.model import Transformer

    start_parallel(torch, tmp_path)
    source = open_gguf(tiny_gguf)
    config = dataclasses.replace(source.config, rope_scaling=RopeScaling(8.0), rope_theta=500000.0)
    tensors = {name: tensor for name, tensor in source.tensors.items() if not (tied and name == OUTPUT)}
    source = dataclasses.replace(source, config=config, tensors=tensors)
    write_meta(source, tmp_path / "m", dtype)
    args = ModelArgs(max_seq_len=16, max_batch_size=1, **json.loads((tmp_path / "m" / "params.json").read_text()))
    model = Transformer(args)
    state = torch.load(tmp_path / "m" / "consolidated.00.pth", map_location="cpu", mmap=True, weights_only=True)
    model.load_state_dict(state, strict=True)
    written = open_meta(tmp_path / "m")
    for name, parameter in model.named_parameters():
        ours = written.tensors[EMBEDDING if tied and name == OUTPUT else name].read().astype(np.float32)
        assert parameter.detach().float().numpy().tobytes() == ours.tobytes()
    angles = np.angle(model.freqs_cis[1].numpy())
    np.testing.assert_allclose(
        angles, inverse_frequencies(config.head_dim, config.rope_theta, config.rope_scaling), rtol=1e-6
    )
    assert written.config == config


def start_parallel(torch: Any, folder: Path) -> None:
    """What Meta's layers ask for: a group of one process."""
    from fairscale.nn.model_parallel.initialize import initialize_model_parallel, model_parallel_is_initialized

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
    if not model_parallel_is_initialized():
        initialize_model_parallel(1)
