"""GGUF files as checkpoints. Oracles: gguf-py's own reader, and llama.cpp's own quantiser."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamalab.checkpoints.checkpoint import Checkpoint
from llamalab.checkpoints.gguf import write_gguf_checkpoint
from llamalab.checkpoints.gguf_file import read_gguf_file
from llamalab.checkpoints.gguf_names import gguf_names
from llamalab.checkpoints.gguf_reader import open_gguf
from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.errors import ConfigError, LlamalabError, ModelFileError, ModelNotFound
from llamalab.llama.config import LlamaConfig, RopeScaling
from llamalab.llama.rope import rope_divisors
from tests.checkpoints.tiny_checkpoint import PLAIN, SCALED, bits, checkpoint

PICO = Path(__file__).parents[2] / "src" / "llamalab" / "models" / "pico.gguf"


def write(path: Path, made: Checkpoint | None = None, dtype: str = "F32") -> Path:
    write_gguf_checkpoint(made or checkpoint(), path, dtype)  # type: ignore[arg-type]
    return path


def edited(source: Path, target: Path, *, drop: tuple[str, ...] = (), **changed: Any) -> Path:
    """A copy made by gguf-py, with keys and tensors left out or given another value (`__` for a dot)."""
    reader = gguf.GGUFReader(source)
    changes = {key.replace("__", "."): value for key, value in changed.items()}
    writer = gguf.GGUFWriter(target, changes.pop("general.architecture", "llama"))
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in {*drop, *changes, "general.architecture"}:
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), kind, sub)
    for key, value in changes.items():
        if isinstance(value, np.ndarray):
            continue
        kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING", list: "ARRAY"}
        writer.add_key_value(key, value, gguf.GGUFValueType[kinds[type(value)]])
    for tensor in reader.tensors:
        if tensor.name in changes:
            writer.add_tensor(tensor.name, changes[tensor.name])
        elif tensor.name not in drop:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    for name, value in changes.items():
        if isinstance(value, np.ndarray) and name not in {tensor.name for tensor in reader.tensors}:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_the_container_is_what_the_formats_own_library_reads() -> None:
    ours, theirs = read_gguf_file(PICO), gguf.GGUFReader(PICO)
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        stored = ours.tensors[tensor.name]
        assert (stored.dtype, stored.offset) == (tensor.tensor_type.name, tensor.data_offset)
        assert stored.nbytes == tensor.n_bytes
        assert stored.shape == tuple(int(n) for n in reversed(tensor.shape))
    for key, value in ours.fields.items():
        expected = theirs.fields[key].contents()
        assert value == expected or value == pytest.approx(expected, rel=1e-7), key
    assert ours.fields["llama.attention.layer_norm_rms_epsilon"] == 1e-5


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize(("config", "tied"), [(PLAIN, False), (SCALED, True)], ids=["plain", "scaled-tied"])
def test_what_is_written_comes_back_bit_for_bit(tmp_path: Path, dtype: str, config: LlamaConfig, tied: bool) -> None:
    made = checkpoint(config, dtype=dtype, norm_dtype="F32", tied=tied)
    back = open_gguf(write(tmp_path / "m.gguf", made, dtype))
    assert bits(back) == bits(made)
    assert back.config == config
    assert (back.name, back.chat_template, back.sampling) == (made.name, made.chat_template, made.sampling)
    assert list(back.vocabulary.tokens) == list(made.vocabulary.tokens)
    assert not list(tmp_path.glob("*.part"))


def quantise(source: Path, target: Path, kind: int) -> Path:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = kind
    params.nthread = 1
    params.pure = True
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params) == 0
    return target


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("Q8_0", 0.01),
        ("Q6_K", 0.03),
        ("Q5_K_M", 0.06),
        ("Q4_K_M", 0.1),
        ("Q3_K_M", 0.25),
        ("Q2_K", 0.4),
        ("Q5_1", 0.05),
        ("Q5_0", 0.06),
        ("Q4_1", 0.1),
        ("Q4_0", 0.12),
        ("IQ4_XS", 0.1),
        ("IQ4_NL", 0.1),
        ("TQ2_0", 0.9),
    ],
)
def test_what_llama_cpp_quantised_is_read(tmp_path: Path, kind: str, error: float) -> None:
    """Each matrix is close to what went in, by the type's own precision; a wrong layout gives an error of about 1.4."""
    config = dataclasses.replace(PLAIN, dim=256, n_layers=1, head_dim=64, ffn_dim=256)
    made = checkpoint(config)
    number = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    read = open_gguf(quantise(write(tmp_path / "f32.gguf", made), tmp_path / "q.gguf", number))
    kinds = {tensor.dtype for tensor in read.tensors.values()}
    assert kind.removesuffix("_M") in kinds
    for name, tensor in made.tensors.items():
        exact, values = tensor.read(), read.tensors[name].read()
        assert values.dtype == np.float32
        assert np.linalg.norm(values - exact) / np.linalg.norm(exact) < error, name


def test_dequantising_in_steps_gives_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamalab.checkpoints.stored._STEP", 1000)
    read = open_gguf(PICO)
    names = gguf_names(read.config.n_layers)
    whole = {tensor.name: tensor for tensor in gguf.GGUFReader(PICO).tensors}
    for name in ("tok_embeddings.weight", "layers.1.feed_forward.w2.weight"):
        expected = gguf.quants.dequantize(whole[names[name]].data, whole[names[name]].tensor_type)
        np.testing.assert_array_equal(read.tensors[name].read(), expected)


def test_a_split_model_is_read_from_any_of_its_parts(tmp_path: Path) -> None:
    made = checkpoint()
    whole = write(tmp_path / "m.gguf", made)
    parts = split(whole, tmp_path, 3)
    for part in parts:
        assert bits(open_gguf(part)) == bits(made)
    with pytest.raises(ModelFileError, match="part 1 of 3; as part 1 of 1 it does not fit"):
        open_gguf(Path(shutil.copy(parts[0], tmp_path / "alone.gguf")))
    shutil.copy(parts[2], parts[1])
    with pytest.raises(ModelFileError, match="says that it is part 3 of 3; as part 2 of 3"):
        open_gguf(parts[0])
    parts[1].unlink()
    with pytest.raises(ModelFileError, match=r"missing in .*: m-00002-of-00003\.gguf"):
        open_gguf(parts[0])


def split(source: Path, folder: Path, n_parts: int) -> list[Path]:
    """As llama.cpp's gguf-split does: all metadata in the first part, tensors in order."""
    reader = gguf.GGUFReader(source)
    parts = [folder / f"m-{i:05d}-of-{n_parts:05d}.gguf" for i in range(1, n_parts + 1)]
    for number, path in enumerate(parts):
        writer = gguf.GGUFWriter(path, "llama")
        if number == 0:
            for key, field in reader.fields.items():
                if not key.startswith("GGUF.") and key != "general.architecture":
                    sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
                    writer.add_key_value(key, field.contents(), field.types[0], sub)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", n_parts)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[number::n_parts]:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return parts


@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling(8.0),
        RopeScaling(32.0),
        RopeScaling(4.0, original_max_seq_len=2048),
        RopeScaling(16.0, 1.0, 2.0, 3000),
    ],
)
def test_rope_scaling_comes_back_from_its_table(tmp_path: Path, scaling: RopeScaling) -> None:
    config = dataclasses.replace(SCALED, head_dim=64, rope_scaling=scaling)
    path = write(tmp_path / "m.gguf", checkpoint(config))
    # A file that says no more than its table, as those of others do.
    bare = edited(path, tmp_path / "bare.gguf", drop=("llama.rope.scaling.original_context_length",))
    for file in (path, bare):
        read = open_gguf(file)
        expected = rope_divisors(64, config.rope_theta, scaling)
        np.testing.assert_allclose(rope_divisors(64, config.rope_theta, read.config.rope_scaling), expected, rtol=1e-4)
        assert read.config.rope_scaling is not None
        assert read.config.rope_scaling.factor == scaling.factor
        assert read.rope_source == f"rope_freqs: factor {scaling.factor:g}"
        assert "rope_freqs.weight" not in read.tensors


def test_the_factor_can_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", checkpoint(SCALED))
    assert open_gguf(path, rope_factor=1).config.rope_scaling is None
    read = open_gguf(path, rope_factor=8)
    assert read.config.rope_scaling == RopeScaling(8.0)
    assert read.rope_source == "given: factor 8 (rope_freqs: factor 32)"
    with pytest.raises(ConfigError, match=r"factor is 0\.5"):
        open_gguf(path, rope_factor=0.5)


def test_a_long_context_without_a_table_is_remarked(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", checkpoint(SCALED))
    bare = edited(path, tmp_path / "bare.gguf", drop=("rope_freqs.weight", "llama.vocab_size"))
    read = open_gguf(bare)
    assert read.config.rope_scaling is None
    assert any("--rope-factor" in note for note in read.notes)
    assert not any("--rope-factor" in note for note in open_gguf(bare, rope_factor=32).notes)


def test_a_table_that_is_no_scaling_of_llama_3_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", checkpoint(SCALED))
    strange = edited(path, tmp_path / "x.gguf", **{"rope_freqs.weight": np.linspace(1, 9, 16, dtype=np.float32)})
    with pytest.raises(ModelFileError, match=r"rope_freqs\.weight is no Llama 3 scaling"):
        open_gguf(strange)


def test_an_output_equal_to_the_embedding_is_kept_once(tmp_path: Path) -> None:
    tied = checkpoint(tied=True)
    embedding = tied.tensors["tok_embeddings.weight"]
    both = {**tied.tensors, "output.weight": dataclasses.replace(embedding, name="output.weight")}
    read = open_gguf(write(tmp_path / "m.gguf", dataclasses.replace(tied, tensors=both)))
    assert read.tied
    assert bits(read) == bits(tied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"general__architecture": "qwen2"}, "architecture 'qwen2'"),
        ({"general__type": "adapter"}, "of the type 'adapter'"),
        ({"llama__expert_count": 8}, "mixture of 8 experts"),
        ({"llama__rope__scaling__type": "yarn", "llama__rope__scaling__factor": 4.0}, "type 'yarn'"),
        ({"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 2.0}, "type 'linear'"),
        ({"llama__rope__dimension_count": 8}, "rope.dimension_count is 8 with heads of 16"),
        ({"llama__attention__causal": False}, "attention.causal to False"),
        ({"llama__attention__head_count": [4, 2]}, "differs between layers"),
        ({"llama__block_count": 3}, r"layers\.2\..* missing"),
        ({"llama__block_count": 4_000_000_000}, "says that it has 4000000000 layers"),
        ({"llama__feed_forward_length": 95}, r"has the shape \[96, 64\].*ask for \[95, 64\]"),
        ({"llama__embedding_length": "64"}, "embedding_length is 64, not a positive integer"),
        ({"llama__attention__layer_norm_rms_epsilon": -1.0}, "not a positive number"),
        ({"split__count": 2, "split__no": 0}, "it is part 1 of 2"),
        ({"drop": ("llama.context_length",)}, "lacks llama.context_length"),
        ({"drop": ("token_embd.weight",)}, "token_embd.weight is missing"),
        ({"drop": ("blk.1.ffn_up.weight",)}, r"layers\.1\.feed_forward\.w3\.weight is missing"),
        ({"blk.0.attn_q.bias": np.zeros(64, np.float32)}, r"does not have: blk\.0\.attn_q\.bias"),
        ({"output_norm.weight": np.zeros(63, np.float32)}, r"norm\.weight has the shape \[63\]"),
    ],
    ids=str,
)
def test_what_is_no_llama_or_not_whole_is_refused_by_name(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = edited(write(tmp_path / "m.gguf"), tmp_path / "x.gguf", **change)
    with pytest.raises(ModelFileError, match=message):
        open_gguf(path)


def test_a_vocabulary_without_weights_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf")
    names = tuple(tensor.name for tensor in gguf.GGUFReader(path).tensors)
    with pytest.raises(ModelFileError, match="vocabulary only"):
        open_gguf(edited(path, tmp_path / "x.gguf", drop=names))


def test_a_type_that_cannot_be_dequantised_is_refused_by_name(tmp_path: Path) -> None:
    values = np.zeros((96, 64), np.int8)
    path = edited(write(tmp_path / "m.gguf"), tmp_path / "x.gguf", **{"blk.0.ffn_up.weight": values})
    with pytest.raises(ModelFileError, match=r"w3\.weight is of the type I8"):
        open_gguf(path)


def test_what_is_not_there_or_no_gguf_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        open_gguf(tmp_path / "none.gguf")
    version_1 = b"GGUF\1\0\0\0" + bytes(16)
    for content, message in ((b"", "is empty"), (b"PK\3\4" * 9, "not a GGUF"), (version_1, "version 1")):
        (tmp_path / "x.gguf").write_bytes(content)
        with pytest.raises(ModelFileError, match=message):
            open_gguf(tmp_path / "x.gguf")
    (tmp_path / "x.gguf").write_bytes(b"GGUF\0\0\0\3" + bytes(16))
    with pytest.raises(ModelFileError, match="other byte order"):
        open_gguf(tmp_path / "x.gguf")


def test_a_file_cut_off_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf")
    read = open_gguf(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelFileError, match="become shorter"):
        read.tensors["output.weight"].read()
    with pytest.raises(ModelFileError, match="is cut off: its tensors end at"):
        open_gguf(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("fuzz") / "m.gguf", checkpoint(SCALED))


@settings(max_examples=50)
@given(data=st.data())
def test_damage_gives_one_error_and_nothing_else(small: Path, data: st.DataObject) -> None:
    """Cut anywhere, or with bytes of the header changed: it opens or it is refused."""
    content = bytearray(small.read_bytes())
    header = min(stored.offset for stored in read_gguf_file(small).tensors.values())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, header)) :]
    for _ in range(data.draw(st.integers(0, 3))):
        if content:
            at = data.draw(st.integers(0, min(header, len(content)) - 1))
            content[at] = data.draw(st.integers(0, 255))
    damaged = small.with_name("damaged.gguf")
    damaged.write_bytes(content)
    with contextlib.suppress(LlamalabError):
        open_gguf(damaged)


def test_llama_cpp_loads_what_is_written(tmp_path: Path) -> None:
    """With its vocabulary, for every type that can be written."""
    made = checkpoint(SCALED)
    for dtype in ("F32", "BF16", "Q8_0", "Q5_1", "Q4_0"):
        with LlamaCppEngine(write(tmp_path / f"{dtype}.gguf", made, dtype), n_ctx=64, n_threads=1) as engine:
            assert engine.info.n_params == made.n_params + SCALED.head_dim // 2  # it counts the RoPE table
            assert engine.info.context_length == SCALED.max_seq_len
            assert engine.tokenize("the") == [made.vocabulary.tokens.index(token) for token in ("th", "e")]
            assert engine.info.stop_ids == made.vocabulary.stop_ids
            assert dict(engine.info.sampling) == made.sampling


def test_an_unknown_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written as 'Q4_K'"):
        write(tmp_path / "m.gguf", dtype="Q4_K")
    assert list(tmp_path.iterdir()) == []
