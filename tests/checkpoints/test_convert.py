"""Between any two formats: the same bits, the same shape, the same tokeniser; and what is refused."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamalab.checkpoints.checkpoint import Checkpoint, Tensor, open_checkpoint
from llamalab.checkpoints.convert import FORMATS, convert
from llamalab.checkpoints.gguf import write_gguf_checkpoint
from llamalab.checkpoints.huggingface import write_huggingface
from llamalab.checkpoints.meta import write_meta
from llamalab.errors import ConfigError, LlamalabError, ModelFileError
from llamalab.llama.config import RopeScaling
from tests.checkpoints.tiny_checkpoint import PLAIN, SCALED, bits, checkpoint

MHA = dataclasses.replace(PLAIN, n_kv_heads=4, n_layers=1)
PICO = Path(__file__).parents[2] / "src" / "llamalab" / "models" / "pico.gguf"


def written(made: Checkpoint, form: str, folder: Path, dtype: str) -> Path:
    path = folder / ("source.gguf" if form == "gguf" else "source")
    if form == "gguf":
        write_gguf_checkpoint(made, path, dtype)  # type: ignore[arg-type]
    elif form == "meta":
        write_meta(made, path)
    else:
        write_huggingface(made, path, dtype)
    return path


def numbers(of: Checkpoint) -> dict[str, bytes]:
    """The values of each tensor, exactly, whatever type holds them."""
    return {name: tensor.read().astype(np.float32).tobytes() for name, tensor in of.tensors.items()}


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("middle", FORMATS)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("config", "tied"), [(PLAIN, False), (SCALED, True)], ids=["gqa", "scaled-tied"])
def test_a_round_trip_gives_the_same_bits(
    tmp_path: Path, form: str, middle: str, dtype: str, config: Any, tied: bool
) -> None:
    made = checkpoint(config, dtype=dtype, tied=tied)
    source = written(made, form, tmp_path, dtype)
    there = convert(source, tmp_path / "there", to=middle)
    back = convert(there.target, tmp_path / "back", to=form)
    assert there.dtype == back.dtype == dtype
    first, last = open_checkpoint(source), open_checkpoint(back.target)
    assert numbers(last) == numbers(made)
    assert bits(last) == bits(first)
    assert (last.config, last.name, last.tied) == (made.config, made.name, tied)
    assert (last.chat_template, dict(last.sampling)) == (made.chat_template, made.sampling)
    for field in ("kind", "tokens", "types", "merges", "pre", "bos_id", "eos_id", "stop_ids", "add_bos"):
        assert getattr(last.vocabulary, field) == getattr(made.vocabulary, field), field
    if form == "gguf" and middle != "gguf":
        assert source.read_bytes() == back.target.read_bytes()


@pytest.mark.parametrize("to", FORMATS)
def test_norms_that_would_be_rounded_stay_f32(tmp_path: Path, to: str) -> None:
    """The dtype is that of the matrices; F32 norms beside F16 matrices come through exactly."""
    made = checkpoint(MHA, dtype="F16", norm_dtype="F32")
    done = convert(written(made, "gguf", tmp_path, "F16"), tmp_path / "out", to=to)
    read = open_checkpoint(done.target)
    assert done.dtype == "F16"
    assert numbers(read) == numbers(made)
    assert {t.dtype for t in read.tensors.values() if len(t.shape) == 2} == {"F16"}


def test_a_quantised_model_becomes_f32_unless_told_otherwise(tmp_path: Path) -> None:
    done = convert(PICO, tmp_path / "h", to="safetensors")
    assert done.dtype == "F32"
    assert numbers(open_checkpoint(done.target)) == numbers(open_checkpoint(PICO))
    assert convert(PICO, tmp_path / "b", to="meta", dtype="bf16").dtype == "BF16"
    assert convert(PICO, tmp_path / "q.gguf", to="gguf", dtype="Q8_0").dtype == "Q8_0"


def test_another_rope_factor_is_written(tmp_path: Path) -> None:
    source = written(checkpoint(SCALED), "gguf", tmp_path, "F32")
    for to in FORMATS:
        done = convert(source, tmp_path / to, to=to, rope_factor=8)
        assert done.rope_source == "given: factor 8 (rope_freqs: factor 32)"
        assert open_checkpoint(done.target).config.rope_scaling == RopeScaling(8.0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return written(checkpoint(), "gguf", tmp_path, "F32")


def test_nothing_is_replaced_unless_forced(source: Path, tmp_path: Path) -> None:
    file, folder = tmp_path / "m.gguf", tmp_path / "m"
    file.write_text("mine")
    folder.mkdir()
    convert(source, folder, to="safetensors")  # an empty folder is no loss
    (folder / "README.md").write_text("mine")
    before = sorted(path.name for path in folder.iterdir())
    for target, to in ((file, "gguf"), (folder, "meta")):
        with pytest.raises(ConfigError, match="exists already; --force replaces it"):
            convert(source, target, to=to)
    assert file.read_text() == "mine"
    assert sorted(path.name for path in folder.iterdir()) == before
    assert open_checkpoint(convert(source, file, to="gguf", force=True).target).format == "gguf"
    assert open_checkpoint(convert(source, folder, to="meta", force=True).target).format == "meta"
    assert (folder / "README.md").read_text() == "mine"
    assert not list(folder.glob("*.safetensors"))


def test_a_model_is_never_written_onto_itself(source: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.gguf"
    link.symlink_to(source)
    before = source.read_bytes()
    for target in (source, link):
        with pytest.raises(ConfigError, match="is the model to be converted"):
            convert(source, target, to="gguf", force=True)
    assert source.read_bytes() == before


def test_a_file_is_no_folder_and_a_folder_no_file(source: Path, tmp_path: Path) -> None:
    (tmp_path / "folder" / "x").mkdir(parents=True)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a folder; gguf is written as a file"):
        convert(source, tmp_path / "folder", to="gguf", force=True)
    with pytest.raises(ConfigError, match="is a file; meta is written as a folder"):
        convert(source, tmp_path / "file", to="meta", force=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "onnx"}, "no format 'onnx'; there are gguf, safetensors, meta"),
        ({"to": "meta", "dtype": "Q8_0"}, "meta cannot be written as 'Q8_0'"),
        ({"to": "gguf", "dtype": "Q4_K"}, "gguf cannot be written as 'Q4_K'"),
        ({"to": "gguf", "rope_factor": float("nan")}, "RoPE factor is nan"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    source: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        convert(source, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == [source]


def spoilt(value: float, name: str = "layers.0.feed_forward.w1.weight") -> Checkpoint:
    made = checkpoint()
    values = made.tensors[name].read().copy()
    values.flat[70 if values.ndim > 1 else 3] = value
    return dataclasses.replace(made, tensors={**made.tensors, name: Tensor(name, values.shape, "F32", lambda: values)})


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("tensor", ["layers.0.feed_forward.w1.weight", "norm.weight"])
def test_weights_that_are_not_finite_are_refused_by_name(
    tmp_path: Path, to: str, tensor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamalab.checkpoints.convert.open_checkpoint", lambda *_, **__: spoilt(np.nan, tensor))
    with pytest.raises(ModelFileError, match=rf"the tensor {tensor} holds nan at \[(1, 6|3)\]"):
        convert(tmp_path / "any", tmp_path / "out", to=to)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", FORMATS)
def test_values_too_large_for_the_dtype_are_refused_by_name(
    tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamalab.checkpoints.convert.open_checkpoint", lambda *_, **__: spoilt(1e5))
    with pytest.raises(ConfigError, match=r"w1\.weight holds 100000\.0, which is too large for F16"):
        convert(tmp_path / "any", tmp_path / "out", to=to, dtype="F16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="a limit on the size of files is POSIX's")
@pytest.mark.parametrize("to", FORMATS)
def test_a_full_disk_leaves_nothing_behind(source: Path, tmp_path: Path, to: str) -> None:
    """The kernel refuses writes beyond a limit, in the middle of the weights."""
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(ModelFileError, match="out cannot be written"):
            convert(source, tmp_path / "out", to=to)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == [source]


def test_too_little_room_is_said_before_the_work(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("llamalab.checkpoints.convert.shutil.disk_usage", lambda _: usage)
    with pytest.raises(ModelFileError, match=r"needs [\d,]+ bytes; .* has 1,000 free"):
        convert(source, tmp_path / "out", to="meta")
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("llamalab.checkpoints.convert._check_room", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(ModelFileError, match="the disk is full"):
        convert(source, tmp_path / "out", to="meta")
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("to", FORMATS)
def test_a_target_below_a_file_is_one_clear_error(source: Path, tmp_path: Path, to: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LlamalabError, match="cannot be written"):
        convert(source, tmp_path / "file" / "out", to=to)
