"""Quantising through llama.cpp: what is written, what is refused, and that nothing half-done is left."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import pytest

from llamalab.engines.ggml_quantize import quantised
from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.errors import ConfigError, ModelFileError, ModelNotFound
from llamalab.lab import quantize as module
from llamalab.lab.imatrix import read_imatrix
from llamalab.lab.quantize import quantize
from llamalab.lab.quantizer import _started, in_child, parsed
from llamalab.lab.shapes import changed_shape
from llamalab.lab.synth import planned_types, write_synthetic
from tests import tiny

SHAPE = changed_shape("custom", n_layers=1, dim=256, n_heads=4, n_kv_heads=2, ffn_dim=256, vocab_size=320)
MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer of rows of 256 in F32, whose matrices every type can hold."""
    return write_synthetic(SHAPE, tmp_path_factory.mktemp("wide") / "wide.gguf", "F32").path


@pytest.fixture(scope="module")
def importance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An importance matrix for `wide`: sums of squares over 10 inputs."""
    path = tmp_path_factory.mktemp("imatrix") / "imatrix.gguf"
    write_imatrix(path, {f"blk.0.{name}.weight": 256 for name in MATRICES})
    return path


def write_imatrix(path: Path, columns: dict[str, int], count: float = 10.0) -> None:
    """As llama.cpp's llama-imatrix writes them."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    for name, n in columns.items():
        writer.add_tensor(f"{name}.in_sum2", rng.uniform(1, 100, (1, n)).astype(np.float32))
        writer.add_tensor(f"{name}.counts", np.full((1, 1), count, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def same_tensors(one: Path, other: Path) -> bool:
    a, b = tensors(one), tensors(other)
    return a.keys() == b.keys() and all(np.array_equal(a[name].data, b[name].data) for name in a)


def test_matrices_are_what_the_definition_of_q8_0_says(tiny_gguf: Path, tmp_path: Path) -> None:
    """gguf-py's own quantiser gives the same bits."""
    done = quantize(tiny_gguf, tmp_path / "q8.gguf", "q8_0")
    before, after = tensors(tiny_gguf), tensors(tmp_path / "q8.gguf")
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        if tensor.tensor_type is gguf.GGMLQuantizationType.Q8_0:
            expected = gguf.quants.quantize(np.asarray(before[name].data), gguf.GGMLQuantizationType.Q8_0)
            np.testing.assert_array_equal(tensor.data, expected)
        else:
            np.testing.assert_array_equal(tensor.data, before[name].data)
    assert done.type == "Q8_0"
    assert done.written


def test_report_says_what_the_file_holds_and_a_dry_run_says_it_before(wide: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.gguf"
    planned = quantize(wide, target, "Q4_K_M", dry_run=True)
    assert not target.exists()
    done = quantize(wide, target, "Q4_K_M")
    assert dataclasses.replace(planned, written=True, size_bytes=done.size_bytes) == done
    after = tensors(target)
    assert done.size_bytes == target.stat().st_size
    assert done.bytes_after == sum(tensor.n_bytes for tensor in after.values())
    assert done.bytes_before == sum(tensor.n_bytes for tensor in tensors(wide).values())
    assert done.n_params == sum(tensor.n_elements for tensor in after.values()) == SHAPE.n_params
    assert done.bits_after == pytest.approx(8 * done.bytes_after / done.n_params)
    for share in done.types:
        of_type = [tensor for tensor in after.values() if tensor.tensor_type.name == share.type]
        assert (share.n_tensors, share.size_bytes) == (len(of_type), sum(tensor.n_bytes for tensor in of_type))
    with LlamaCppEngine(target, n_ctx=64, n_seq=1, n_threads=1) as engine:
        assert np.isfinite(engine.logits([1, 2, 3])).all()


@pytest.mark.parametrize("form", ["meta", "safetensors"])
def test_folder_gives_the_same_tensors_as_its_gguf(tiny_gguf: Path, tmp_path: Path, form: str) -> None:
    from llamalab.checkpoints.convert import convert

    convert(tiny_gguf, tmp_path / "folder", to=form)
    planned = quantize(tmp_path / "folder", tmp_path / "a.gguf", "Q8_0", dry_run=True)
    done = quantize(tmp_path / "folder", tmp_path / "a.gguf", "Q8_0")
    quantize(tiny_gguf, tmp_path / "b.gguf", "Q8_0")
    assert same_tensors(tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert planned.types == done.types
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "b.gguf", "folder"]


def test_split_model_becomes_one_file(tiny_gguf: Path, tmp_path: Path) -> None:
    content = gguf.GGUFReader(tiny_gguf)
    parts = split(content, tmp_path)
    quantize(tiny_gguf, tmp_path / "whole.gguf", "Q8_0")
    quantize(parts[1], tmp_path / "joined.gguf", "Q8_0")  # any part stands for all
    assert same_tensors(tmp_path / "joined.gguf", tmp_path / "whole.gguf")


def split(content: gguf.GGUFReader, folder: Path) -> list[Path]:
    """Two files with half of the tensors each, named as llama.cpp names them."""
    paths = [folder / f"tiny-{i:05d}-of-00002.gguf" for i in (1, 2)]
    half = len(content.tensors) // 2
    for number, (path, held) in enumerate(zip(paths, (content.tensors[:half], content.tensors[half:]), strict=True)):
        writer = gguf.GGUFWriter(path, "llama")
        for field in [] if number else content.fields.values():
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                kind = field.types[0]
                sub = field.types[-1] if kind is gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(field.name, field.contents(), kind, sub_type=sub)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(content.tensors))
        for tensor in held:
            writer.add_tensor(tensor.name, np.asarray(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


def test_quantised_source_is_refused_unless_that_is_wanted(tiny_q8_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"quantised already \(Q8_0\).*--requantize"):
        quantize(tiny_q8_gguf, tmp_path / "x.gguf", "Q4_0")
    assert not list(tmp_path.iterdir())
    done = quantize(tiny_q8_gguf, tmp_path / "x.gguf", "Q4_0", requantize=True)
    assert any("worse than one from the original" in note for note in done.notes)


def test_type_that_needs_an_importance_matrix_says_so_before_it_starts(wide: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"IQ2_XXS needs an importance matrix.*--imatrix"):
        quantize(wide, tmp_path / "x.gguf", "IQ2_XXS")
    assert not list(tmp_path.iterdir())


def test_importance_matrix_is_used_as_mean_squares(wide: Path, importance: Path, tmp_path: Path) -> None:
    """The bits are those that ggml gives for these weights, and not those for equal ones."""
    quantize(wide, tmp_path / "x.gguf", "Q4_K_S", imatrix=importance)
    name = "blk.0.ffn_up.weight"
    found = tensors(tmp_path / "x.gguf")[name]
    assert found.tensor_type.name == "Q4_K"
    (sums,) = [t.data for t in gguf.GGUFReader(importance).tensors if t.name == f"{name}.in_sum2"]
    values = np.asarray(tensors(wide)[name].data)
    expected = quantised(values, "Q4_K", importance=np.asarray(sums)[0] / np.float32(10))
    np.testing.assert_array_equal(found.data, expected)
    assert not np.array_equal(found.data, quantised(values, "Q4_K"))


def test_plan_of_a_shape_is_that_of_real_weights_with_an_importance_matrix(wide: Path, importance: Path) -> None:
    """IQ3_XXS is mixed in another way without one."""
    plan = in_child(wide, None, "IQ3_XXS", imatrix=importance)
    assert planned_types(SHAPE, "IQ3_XXS") == {step.name: step.after for step in plan.steps}
    without = in_child(wide, None, "IQ3_XXS")
    assert (plan.needs_importance, without.needs_importance) == (False, True)
    assert [step.after for step in plan.steps] != [step.after for step in without.steps]


def test_child_is_ended_with_the_block_that_started_it() -> None:
    with pytest.raises(KeyboardInterrupt), tempfile.TemporaryFile() as errors, _started("{}", errors) as child:
        raise KeyboardInterrupt
    assert child.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_type_that_needs_an_importance_matrix_works_with_one(wide: Path, importance: Path, tmp_path: Path) -> None:
    done = quantize(wide, tmp_path / "x.gguf", "IQ2_XXS", imatrix=importance)
    assert "IQ2_XXS" in {share.type for share in done.types}
    with LlamaCppEngine(tmp_path / "x.gguf", n_ctx=64, n_seq=1, n_threads=1) as engine:
        assert np.isfinite(engine.logits([1, 2, 3])).all()


def test_matrix_without_inputs_weighs_all_columns_alike(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "x.gguf", {"a": 4}, count=0)
    np.testing.assert_array_equal(read_imatrix(tmp_path / "x.gguf")["a"], np.ones(4))


def test_importance_matrix_of_another_model_is_refused(wide: Path, tmp_path: Path) -> None:
    write_imatrix(tmp_path / "sizes.gguf", {f"blk.0.{name}.weight": 128 for name in MATRICES})
    write_imatrix(tmp_path / "names.gguf", {"blk.7.ffn_up.weight": 256})
    for file, message in (("sizes.gguf", "has 128 values for blk.0"), ("names.gguf", "no values for")):
        with pytest.raises(ModelFileError, match=f"belongs to another model: it has {message}|{message}"):
            quantize(wide, tmp_path / "x.gguf", "Q4_K_M", imatrix=tmp_path / file)
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"old .dat file", "Older files"), (None, "no importance matrix: it has no tensor"), (b"", "is empty")],
)
def test_file_that_is_no_importance_matrix(wide: Path, tmp_path: Path, content: bytes | None, message: str) -> None:
    (tmp_path / "x.dat").write_bytes(wide.read_bytes() if content is None else content)
    with pytest.raises(ModelFileError, match=message):
        read_imatrix(tmp_path / "x.dat")


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_damaged_source_is_refused(tiny_gguf: Path, tmp_path: Path, share: float) -> None:
    content = tiny_gguf.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelFileError, match=r"cut\.gguf"):
        quantize(tmp_path / "cut.gguf", tmp_path / "x.gguf", "Q8_0")
    assert [path.name for path in tmp_path.iterdir()] == ["cut.gguf"]


def test_header_at_which_llama_cpp_ends_its_process_is_an_error_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An assertion in C++ takes the child with it, and nothing else."""
    finish = tiny._finish

    def with_experts(writer: gguf.GGUFWriter) -> None:
        for key, value in {"expert_count": 4, "expert_used_count": 2, "expert_group_count": 9}.items():
            writer.add_uint32(f"llama.{key}", value)
        finish(writer)

    monkeypatch.setattr(tiny, "_finish", with_experts)
    tiny.write_bpe(tmp_path / "odd.gguf")
    with pytest.raises(ModelFileError, match=r"odd\.gguf could not be quantised to Q8_0: .*ASSERT"):
        quantize(tmp_path / "odd.gguf", tmp_path / "x.gguf", "Q8_0")
    assert [path.name for path in tmp_path.iterdir()] == ["odd.gguf"]


LIMITED = """
import resource, sys
from pathlib import Path
from llamalab.errors import ModelFileError
from llamalab.lab.quantize import quantize
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    quantize(Path(sys.argv[1]), Path(sys.argv[2]), "Q8_0", force=True)
except ModelFileError as error:
    print(error)
"""


def test_full_disk_meanwhile_leaves_the_old_file_and_nothing_else(wide: Path, tmp_path: Path) -> None:
    (tmp_path / "old.gguf").write_bytes(b"old")
    command = [sys.executable, "-c", LIMITED, str(wide), str(tmp_path / "old.gguf")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "could not be quantised" in said
    assert "the disk is full" in said
    assert [path.name for path in tmp_path.iterdir()] == ["old.gguf"]
    assert (tmp_path / "old.gguf").read_bytes() == b"old"


def test_interrupt_leaves_nothing_behind(wide: Path, tmp_path: Path) -> None:
    def interrupt(doing: str, done: int, total: int) -> None:
        if doing == "quantising":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(wide, tmp_path / "x.gguf", "Q4_K_M", progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_failure_after_converting_a_folder_leaves_nothing_behind(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamalab.checkpoints.convert import convert

    def fail(*arguments: object, **options: object) -> None:
        raise ModelFileError("no")

    convert(tiny_gguf, tmp_path / "folder", to="meta")
    monkeypatch.setattr(module, "in_child", fail)
    with pytest.raises(ModelFileError):
        quantize(tmp_path / "folder", tmp_path / "x.gguf", "Q8_0")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_targets_that_are_in_the_way(tiny_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(tiny_gguf.read_bytes())
    with pytest.raises(ConfigError, match="name another target"):
        quantize(tmp_path / "x.gguf", tmp_path / "x.gguf", "Q8_0", force=True)
    with pytest.raises(ConfigError, match="--force replaces it"):
        quantize(tiny_gguf, tmp_path / "x.gguf", "Q8_0")
    with pytest.raises(ModelFileError, match="cannot be written"):
        quantize(tiny_gguf, tmp_path / "x.gguf" / "y.gguf", "Q8_0")
    with pytest.raises(ModelNotFound):
        quantize(tmp_path / "none.gguf", tmp_path / "y.gguf", "Q8_0")


def test_adapter_is_refused(tiny_lora: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a model"):
        quantize(tiny_lora, tmp_path / "x.gguf", "Q8_0")


def test_rows_that_are_no_whole_blocks_are_told(tiny_gguf: Path, tmp_path: Path) -> None:
    """Rows of 64 values: llama.cpp takes smaller blocks for them, of other types."""
    done = quantize(tiny_gguf, tmp_path / "x.gguf", "Q4_K_M", dry_run=True)
    assert "Q4_K" not in {share.type for share in done.types}
    assert any(note.startswith("15 of 21 tensors have rows that are no whole blocks") for note in done.notes)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "[  12/ 291] blk.0.ffn_up.weight - [ 4096, 14336, 1, 1], type = f16, size = 112.00 MiB -> 31.50 MiB (q4_K)",
            ("blk.0.ffn_up.weight", "F16", "Q4_K"),
        ),
        (
            "[   1/   3] a.weight - [ 64, 8, 1, 1], type =   bf16, converting to iq4_nl .. size = 1.00 MiB -> 0.5 MiB",
            ("a.weight", "BF16", "IQ4_NL"),
        ),
        ("[   3/   3] n.weight - [ 64, 1, 1, 1], type =    f32, size = 0.016 MiB", ("n.weight", "F32", "F32")),
        ("llama_model_loader: loaded meta data", None),
    ],
)
def test_lines_of_the_quantiser(line: str, expected: tuple[str, str, str] | None) -> None:
    step = parsed(line)
    assert (step and (step.name, step.before, step.after)) == expected
