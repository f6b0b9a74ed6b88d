"""The quantisation told from the tensors is the one that llama.cpp's own quantiser was asked for."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest

from llamalab.checkpoints.gguf_file import read_gguf_file
from llamalab.checkpoints.stored import Stored
from llamalab.engines.native import captured_lines
from llamalab.lab.file_types import FILE_TYPES as OFFERED
from llamalab.lab.quantisation import FILE_TYPES, contradicts, file_type_name, quantisation_from_tensors

LINE = re.compile(r"\[\s*\d+/\s*\d+\]\s+(\S+).*type =\s+(\S+),(?:.*\((\w+)\))?")

Tensors = Mapping[str, Stored]


def write_header(
    path: Path,
    *,
    layers: int = 2,
    width: int = 256,
    heads: int = 8,
    kv_heads: int = 8,
    experts: int = 0,
    tied: bool = False,
) -> Path:
    """A float model of which only the header exists: its weights are a hole."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(256)
    writer.add_tokenizer_model("no_vocab")
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(2)
    kv = width // heads * kv_heads
    ffn = {"ffn_gate": (2 * width, width), "ffn_up": (2 * width, width), "ffn_down": (width, 2 * width)}
    if experts:
        ffn = {f"{name}_exps": (experts, *shape) for name, shape in ffn.items()} | {"ffn_gate_inp": (experts, width)}
    inside = {
        "attn_q": (width, width),
        "attn_k": (kv, width),
        "attn_v": (kv, width),
        "attn_output": (width, width),
        **ffn,
    }
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (256, width), "output_norm": (width,)}
    shapes |= {} if tied else {"output": (256, width)}
    for layer in range(layers):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in inside.items()}
        shapes |= {f"blk.{layer}.{name}": (width,) for name in ("attn_norm", "ffn_norm")}
    size = 0
    for name, shape in shapes.items():
        nbytes = 4 * int(np.prod(shape))
        writer.add_tensor_info(f"{name}.weight", shape, np.dtype(np.float32), nbytes)
        size += nbytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + size + 64)
    return path


def planned(source: Path, number: int, *, pure: bool = False, imatrix: bool = False) -> Tensors:
    """The tensors as the quantiser would write them, by its own dry run."""
    params: Any = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.dry_run, params.pure, params.nthread = number, True, pure, 1
    values = (ctypes.c_float * 1)(1.0)
    given = (llama_cpp.llama_model_imatrix_data * 2)()
    given[0].name, given[0].data, given[0].size = b"any", values, 1
    if imatrix:
        params.imatrix = given
    with captured_lines() as lines:
        assert llama_cpp.llama_model_quantize(str(source).encode(), b"/nowhere/none.gguf", params) == 0
    types = {m[1]: (m[3] or m[2]).upper() for line in lines if (m := LINE.search(line))}
    before = read_gguf_file(source).tensors
    assert types.keys() == before.keys()
    return {name: Stored(t.path, 0, types[name], t.shape) for name, t in before.items()}


SHAPES: dict[str, dict[str, Any]] = {
    "llama-2": {"layers": 32},
    "llama-3": {"layers": 32, "kv_heads": 2},
    "tied": {"layers": 16, "kv_heads": 2, "tied": True},
    "mixtral": {"layers": 32, "kv_heads": 2, "experts": 8},
    "two layers": {"layers": 2},
    "one layer": {"layers": 1, "kv_heads": 2},
    "rows of 896": {"layers": 24, "width": 896, "heads": 14, "kv_heads": 2, "tied": True},
}

ALIKE = {
    # A dense model has no experts to put into MXFP4: the quantiser writes plain Q8_0.
    **{(shape, "MXFP4_MOE"): "Q8_0" for shape in SHAPES if shape != "mixtral"},
    # Of rows of 896, Q2_K and Q3_K both become Q4_0, and all of IQ3 becomes IQ4_NL: the way down alone is left to tell.
    ("rows of 896", "Q2_K"): "Q3_K_S",
    ("rows of 896", "IQ3_XS"): "IQ3_S",
    ("rows of 896", "IQ3_XXS"): "IQ4_NL",
}
"""What cannot be told apart."""


@pytest.mark.parametrize("shape", SHAPES)
def test_every_type_is_told_from_its_tensors(tmp_path: Path, shape: str) -> None:
    source = write_header(tmp_path / "f32.gguf", **SHAPES[shape])
    wrong = {}
    for name, number in OFFERED.items():
        tensors = planned(source, number)
        found = quantisation_from_tensors(tensors)
        if found != ALIKE.get((shape, name), name):
            wrong[name] = found
        if ALIKE.get((shape, name)) not in ("Q8_0", "IQ4_NL"):
            assert contradicts(name, found, tensors.values()) is None
    assert wrong == {}


def test_an_importance_matrix_changes_nothing_about_it(tmp_path: Path) -> None:
    source = write_header(tmp_path / "f32.gguf", layers=16, kv_heads=2)
    for name in ("IQ3_XXS", "IQ4_XS", "Q4_0", "Q5_0", "IQ2_S", "Q2_K_S"):
        assert quantisation_from_tensors(planned(source, OFFERED[name], imatrix=True)) == name


def test_one_type_throughout_is_told_from_its_mixtures(tmp_path: Path) -> None:
    source = write_header(tmp_path / "f32.gguf", layers=16)
    for name in ("Q4_K_S", "Q4_K_M"):
        tensors = planned(source, OFFERED[name], pure=True)
        found = quantisation_from_tensors(tensors)
        assert found == "Q4_K"
        assert contradicts(name, found, tensors.values()) == f"{name}, but the tensors are those of Q4_K"


def test_other_names_are_held_to_their_type(tmp_path: Path) -> None:
    tensors = planned(write_header(tmp_path / "f32.gguf", layers=8), OFFERED["Q4_K_M"])
    for name in ("Q4_K_M", "UD-Q4_K_XL", "Q4_K_L", None):
        assert contradicts(name, "Q4_K_M", tensors.values()) is None
    for name in ("Q4_K_S", "Q8_0", "UD-Q5_K_XL", "Q5_K_M", "F16"):
        assert contradicts(name, "Q4_K_M", tensors.values()) == f"{name}, but the tensors are those of Q4_K_M"


def test_rows_too_short_for_a_type_are_the_reason_given(tmp_path: Path) -> None:
    tensors = planned(write_header(tmp_path / "f32.gguf", width=64), OFFERED["Q4_K_M"])
    found = quantisation_from_tensors(tensors)
    assert found == "Q5_0"
    said = contradicts("Q4_K_M", found, tensors.values())
    assert said is not None
    assert said.startswith("Q4_K_M, but the tensors are those of Q5_0: its rows are no multiple of 256")


def test_numbers_of_file_types_are_those_of_llama_cpp() -> None:
    assert {name: file_type_name(number) for name, number in OFFERED.items()} == {name: name for name in OFFERED}
    assert FILE_TYPES[llama_cpp.LLAMA_FTYPE_MOSTLY_NVFP4] == "NVFP4"
    assert file_type_name(1024 + 15) is None
    assert file_type_name("Q4_K_M") is None
    assert file_type_name(999) == "unknown (999)"


def test_a_file_without_matrices_has_no_quantisation() -> None:
    assert quantisation_from_tensors({}) is None
