"""Synthetic models: every type loads and generates, as large and as mixed as llama.cpp would make them."""

from __future__ import annotations

import collections
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest

from llamalab.engine import GenerateRequest, Generation, SamplingParams
from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.errors import ConfigError, ModelFileError
from llamalab.lab.file_types import FILE_TYPES, file_type_named
from llamalab.lab.quantizer import in_child
from llamalab.lab.shapes import SHAPES, Shape, changed_shape
from llamalab.lab.synth import data_bytes, planned_types, write_header, write_synthetic

TINY = changed_shape(
    "custom", n_layers=2, dim=256, n_heads=4, n_kv_heads=2, ffn_dim=256, vocab_size=320, max_seq_len=128
)
ODD = changed_shape("custom", n_layers=9, dim=96, n_heads=3, n_kv_heads=1, ffn_dim=256, vocab_size=100, tied=True)
"""Rows that are no whole blocks of 256, and layer counts that mixtures treat unlike."""


def read(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Types and shapes of all tensors, as gguf-py reads them."""
    return {t.name: (t.tensor_type.name, tuple(int(n) for n in t.shape[::-1])) for t in gguf.GGUFReader(path).tensors}


TABLES = ("IQ1", "IQ2", "IQ3_XXS")
"""Types for which ggml first computes tables, for up to ten seconds."""


@pytest.mark.parametrize("type", [pytest.param(t, marks=[pytest.mark.slow] * t.startswith(TABLES)) for t in FILE_TYPES])
def test_llama_cpp_loads_and_runs_every_type(tmp_path: Path, type: str) -> None:
    made = write_synthetic(TINY, tmp_path / "x.gguf", type)
    with LlamaCppEngine(made.path, n_ctx=64, n_seq=1, n_threads=1) as engine:
        ids = engine.tokenize("the tea")
        logits = engine.logits(ids)
        request = GenerateRequest(ids, SamplingParams(max_tokens=4, ignore_eos=True, seed=1))
        (done,) = [event for event in engine.generate([request]) if isinstance(event, Generation)]
    assert len(done.ids) == 4
    assert np.isfinite(logits).all()
    assert 0.05 < logits.std() < 20


@pytest.mark.parametrize("shape", [TINY, ODD], ids=["tiny", "odd"])
@pytest.mark.parametrize("type", ["Q4_K_M", "Q3_K_S", "IQ4_XS", "F32"])
def test_types_are_those_that_llama_cpp_gives_to_real_weights(tmp_path: Path, shape: Shape, type: str) -> None:
    made = write_synthetic(shape, tmp_path / "x.gguf", type)
    write_synthetic(shape, tmp_path / "f16.gguf", "F16")
    in_child(tmp_path / "f16.gguf", tmp_path / "real.gguf", type)
    assert read(made.path) == read(tmp_path / "real.gguf")
    assert {name: kind for name, (kind, _) in read(made.path).items()} == dict(made.types)


def test_mixture_depends_on_the_whole_shape() -> None:
    """Of the 70B's values llama.cpp keeps more bits, as eight query heads share them."""
    planned = planned_types(SHAPES["llama-3.1-70b"], "Q4_K_S")
    eight = planned_types(SHAPES["llama-3.1-8b"], "Q4_K_S")
    assert planned["blk.40.attn_v.weight"] == "Q5_K"
    assert eight["blk.16.attn_v.weight"] == "Q4_K"
    assert set(planned) == set(SHAPES["llama-3.1-70b"].tensors)


def test_size_of_a_published_file() -> None:
    """llama.cpp's README for quantisation gives 4.58 GiB for Llama 3.1 8B in Q4_K_M, 4.89 bits per weight."""
    shape = SHAPES["llama-3.1-8b"]
    size = data_bytes(shape, "Q4_K_M")
    assert f"{size / 2**30:.2f}" == "4.58"
    assert f"{8 * size / shape.n_params:.2f}" == "4.89" or f"{8 * size / shape.n_params:.2f}" == "4.90"


@pytest.mark.parametrize("type", ["F32", "F16", "Q8_0"])
def test_jax_engine_gives_the_same_logits_as_llama_cpp(tmp_path: Path, type: str) -> None:
    from llamalab.engines.jax import JaxEngine

    shape = changed_shape("llama-3.2-1b", n_layers=1, dim=64, n_heads=2, n_kv_heads=1, ffn_dim=64, vocab_size=300)
    made = write_synthetic(shape, tmp_path / "x.gguf", type)
    ids = [3, 90, 41, 7]
    with LlamaCppEngine(made.path, n_ctx=64, n_seq=1, n_threads=1, type_k="f32", type_v="f32") as engine:
        expected = engine.logits(ids)
    with JaxEngine(made.path, n_ctx=64, dtype="float32") as jax_engine:
        np.testing.assert_allclose(jax_engine.logits(ids), expected, atol=0.1)


def test_header_says_the_shape(tmp_path: Path) -> None:
    shape = changed_shape("llama-3.2-1b", n_layers=1, dim=64, n_heads=2, n_kv_heads=1, ffn_dim=96, vocab_size=300)
    path = write_synthetic(shape, tmp_path / "x.gguf", "Q8_0").path
    fields = gguf.GGUFReader(path).fields
    said = {key.removeprefix("llama."): field.contents() for key, field in fields.items() if key.startswith("llama.")}
    assert said["block_count"] == 1
    assert (said["embedding_length"], said["feed_forward_length"]) == (64, 96)
    assert (said["attention.head_count"], said["attention.head_count_kv"]) == (2, 1)
    assert (said["context_length"], said["vocab_size"], said["rope.freq_base"]) == (131_072, 300, 500_000.0)
    assert fields["general.file_type"].contents() == 7


def test_rope_table_is_that_of_the_scaling(tmp_path: Path) -> None:
    from llamalab.llama.rope import rope_divisors

    shape = changed_shape("llama-3.1-8b", n_layers=1, dim=256, n_heads=2, n_kv_heads=1, ffn_dim=32, vocab_size=100)
    path = write_synthetic(shape, tmp_path / "x.gguf", "F16").path
    (table,) = [t.data for t in gguf.GGUFReader(path).tensors if t.name == "rope_freqs.weight"]
    np.testing.assert_allclose(table, rope_divisors(128, 500_000.0, shape.config.rope_scaling), rtol=1e-6)
    assert table[-1] == 8
    assert "rope_freqs.weight" not in write_synthetic(TINY, tmp_path / "y.gguf", "F16").types


def test_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    files = [
        write_synthetic(TINY, tmp_path / f"{i}.gguf", "Q4_K_M", seed=seed).path for i, seed in enumerate((5, 5, 6))
    ]
    first, again, other = (path.read_bytes() for path in files)
    assert first == again
    assert first != other


def test_no_two_rows_are_alike_in_any_matrix(tmp_path: Path) -> None:
    shape = changed_shape("custom", n_layers=2, dim=1024, n_heads=4, ffn_dim=64, vocab_size=2000)
    tensors = gguf.GGUFReader(write_synthetic(shape, tmp_path / "x.gguf", "Q4_0").path).tensors
    rows = [row.tobytes() for t in tensors if len(t.shape) == 2 and t.shape[0] == 1024 for row in np.asarray(t.data)]
    types = {t.tensor_type.name for t in tensors}
    assert types == {"F32", "Q4_0", "Q6_K"}
    assert len(rows) == len(set(rows)) > 8000


def test_values_have_the_spread_that_keeps_signals_their_size(tmp_path: Path) -> None:
    tensors = gguf.GGUFReader(write_synthetic(TINY, tmp_path / "x.gguf", "F32").path).tensors
    for tensor in tensors:
        values = np.asarray(tensor.data)
        if values.ndim == 2:
            assert values.std() == pytest.approx(values.shape[1] ** -0.5, rel=0.03), tensor.name
            assert abs(values.mean()) < 0.01
        else:
            assert (values == 1).all()


def test_header_alone_is_a_hole(tmp_path: Path) -> None:
    """A 70B in F16: 141 GB to read, next to nothing on the disk."""
    shape = SHAPES["llama-3.1-70b"]
    types = {name: "F16" for name, size in shape.tensors.items() if len(size) > 1}
    write_header(shape, tmp_path / "x.gguf", types)
    stat = (tmp_path / "x.gguf").stat()
    assert stat.st_size > 2 * shape.n_params
    assert stat.st_blocks * 512 < 200_000
    assert list(tmp_path.iterdir()) == [tmp_path / "x.gguf"]


@pytest.mark.parametrize(
    ("types", "message"),
    [
        ({"blk.7.ffn_up.weight": "F16"}, "no tensor blk.7"),
        ({"blk.0.ffn_up.weight": "Q9_K"}, "Q9_K"),
        ({"blk.0.ffn_up.weight": "Q4_K"}, "no whole blocks of 256"),
    ],
)
def test_header_refuses_types_that_cannot_be(tmp_path: Path, types: dict[str, str], message: str) -> None:
    shape = changed_shape("custom", n_layers=1, dim=64, n_heads=4, ffn_dim=64, vocab_size=100)
    with pytest.raises(ConfigError, match=message):
        write_header(shape, tmp_path / "x.gguf", types)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Matrices of 48 MiB each, and nothing as large in memory."""
    shape = changed_shape("custom", n_layers=1, dim=1024, n_heads=8, ffn_dim=12_288, vocab_size=100)
    write_synthetic(TINY, tmp_path / "first.gguf", "F32")
    tracemalloc.start()
    try:
        made = write_synthetic(shape, tmp_path / "x.gguf", "F32")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert made.size_bytes > 150e6
    assert peak < 30e6


@pytest.mark.slow
def test_rows_of_an_8b_are_written_in_less_than_2_gib(tmp_path: Path) -> None:
    """In a process of its own, whose data may not grow beyond that."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30));"
        "from pathlib import Path; from llamalab.lab.shapes import changed_shape;"
        "from llamalab.lab.synth import write_synthetic; from llamalab.engines.machine import peak_memory;"
        "write_synthetic(changed_shape('llama-3.1-8b', n_layers=1), Path(sys.argv[1]), sys.argv[2]);"
        "print(peak_memory())"
    )
    for type in ("F16", "Q4_K_M"):
        command = [sys.executable, "-c", code, str(tmp_path / f"{type}.gguf"), type]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert int(done.stdout) < 1 << 30


LIMITED = """
import resource, sys
from pathlib import Path
from llamalab.errors import ModelFileError
from llamalab.lab.shapes import changed_shape
from llamalab.lab.synth import planned_types, write_synthetic
shape = changed_shape("custom", n_layers=1, dim=256, n_heads=4, ffn_dim=256, vocab_size=2000)
planned_types(shape, "Q8_0")
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    write_synthetic(shape, Path(sys.argv[1]), "Q8_0", force=True)
except ModelFileError as error:
    print(error)
"""


def test_file_that_becomes_too_large_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "old.gguf").write_bytes(b"old")
    for name in ("new.gguf", "old.gguf"):
        command = [sys.executable, "-c", LIMITED, str(tmp_path / name)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert f"{name} cannot be written: it is larger" in said
    assert [path.name for path in tmp_path.iterdir()] == ["old.gguf"]
    assert (tmp_path / "old.gguf").read_bytes() == b"old"


def test_full_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    with pytest.raises(ModelFileError, match=r"needs [\d,]+ bytes; .* has 100,000 free"):
        write_synthetic(TINY, tmp_path / "x.gguf", "Q8_0")
    assert not list(tmp_path.iterdir())


def test_disk_that_fills_up_meanwhile_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ModelFileError, match=r"the disk is full\. Nothing was left behind"):
        write_synthetic(TINY, tmp_path / "x.gguf", "Q8_0", progress=fail)
    assert not list(tmp_path.iterdir())


def test_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_synthetic(TINY, tmp_path / "x.gguf", "Q8_0", progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_progress_ends_at_all_bytes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    made = write_synthetic(TINY, tmp_path / "x.gguf", "Q8_0", progress=lambda *step: seen.append(step))
    assert seen[-1][0] == seen[-1][1]
    assert made.size_bytes > seen[-1][1] > 0.9 * data_bytes(TINY, "Q8_0")


def test_target_that_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"old")
    with pytest.raises(ConfigError, match="exists already; --force"):
        write_synthetic(TINY, tmp_path / "x.gguf", "Q8_0")
    with pytest.raises(ConfigError, match="no regular file"):
        write_synthetic(TINY, Path("/dev/null"), "Q8_0", force=True)
    with pytest.raises(ConfigError, match="is a folder"):
        write_synthetic(TINY, tmp_path, "Q8_0", force=True)
    with pytest.raises(ModelFileError, match="cannot be written"):
        write_synthetic(TINY, tmp_path / "x.gguf" / "y.gguf", "Q8_0")
    with pytest.raises(ConfigError, match="seed"):
        write_synthetic(TINY, tmp_path / "y.gguf", "Q8_0", seed=-1)
    assert write_synthetic(TINY, tmp_path / "x.gguf", "Q8_0", force=True).size_bytes > 100_000


def test_unknown_type_gets_the_nearest_name() -> None:
    assert file_type_named("q4_k_m") == "Q4_K_M"
    with pytest.raises(ConfigError, match=r"no type 'Q4_KM'.*Did you mean Q4_K_M\?"):
        planned_types(TINY, "Q4_KM")


def test_every_file_type_of_llama_cpp_is_offered_but_one() -> None:
    assert FILE_TYPES["Q4_K_M"] == 15
    numbers = collections.Counter(FILE_TYPES.values())
    assert set(numbers.values()) == {1}
    known = {t.value for t in gguf.LlamaFileType} - {gguf.LlamaFileType.GUESSED}
    assert known - set(numbers) == {39}  # NVFP4: llama.cpp has no quantiser for it
