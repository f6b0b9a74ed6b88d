"""Weights that llama.cpp holds a second time, in an order that suits this processor.

Which types it copies differs between processors, and no header says it. So it is learnt here: a model of one block,
with one matrix of the type in question and a hole for data, is really loaded.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import gguf

from llamalab.checkpoints.ggml_types import GGML_TYPES
from llamalab.checkpoints.stored import Stored, byte_size
from llamalab.engines.native import api, captured_lines
from llamalab.engines.options import Options
from llamalab.engines.weights import model_parameters

Kind = tuple[str, int, bool]
"""What decides whether a matrix is copied: its type, its rows modulo 16, and whether it belongs to experts."""

_ROWS = 16  # no rule of llama.cpp asks for more than a multiple of this
_DIM, _FFN, _VOCAB, _EXPERTS = 512, 4096, 32, 2
_BUFFER = re.compile(r"(\S+) model buffer size =\s*([\d.]+) MiB")
_ALIGNMENT = 32
_NOT_MULTIPLIED = ("token_embd", "position_embd", "token_types", "per_layer_token_embd", "rope_freqs", "ssm_conv1d")


def multiplied(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The matrices that something is multiplied with; the embedding too where it is the output projection as well."""
    tied = "output.weight" not in tensors
    return {
        name: tensor
        for name, tensor in tensors.items()
        if len(tensor.shape) > 1
        and name.endswith(".weight")
        and ((tied and name == "token_embd.weight") or not any(part in name for part in _NOT_MULTIPLIED))
    }


def kind_of(tensor: Stored) -> Kind:
    """What decides whether this matrix is copied."""
    return tensor.dtype, tensor.shape[-2] % _ROWS, len(tensor.shape) > 2


def copied_bytes(tensors: Mapping[str, Stored], learnt: Callable[[Sequence[Kind]], Sequence[float]]) -> dict[str, int]:
    """Bytes of the copy of each tensor that has one.

    Args:
        tensors: of the model.
        learnt: gives `learn`'s answer for each kind.
    """
    candidates = multiplied(tensors)
    kinds = sorted({kind_of(tensor) for tensor in candidates.values()})
    shares = dict(zip(kinds, learnt(kinds), strict=True))
    found = {name: round(tensor.nbytes * shares[kind_of(tensor)]) for name, tensor in candidates.items()}
    return {name: size for name, size in found.items() if size}


@cache
def learn(type: str, rows: int, experts: bool) -> float:
    """Size of llama.cpp's copy of a matrix of this kind, as a share of the matrix: 0.0 where it makes none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "block.gguf"
        write_block(path, type, _FFN + rows, experts=experts)
        with captured_lines() as lines:
            model = api.llama_model_load_from_file(
                os.fsencode(path), model_parameters(Options(load_mode="mmap", n_gpu_layers=0))
            )
        if not model:
            return 0.0
        api.llama_model_free(model)
    sizes = [
        float(size) * 2**20
        for name, size in _BUFFER.findall("\n".join(lines))
        if not name.startswith("CPU_Mapped") and name != "CPU"
    ]
    share = sum(sizes) / (byte_size(type, (_FFN + rows, _DIM)) * (_EXPERTS if experts else 1))
    return round(share, 1) if abs(share - round(share, 1)) < 0.02 else share


def write_block(path: Path, type: str, rows: int, *, experts: bool) -> None:
    """A Llama of one block whose `ffn_up` is of `type` and has `rows` rows; its data is a hole, read as zeros."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(_DIM)
    writer.add_block_count(1)
    writer.add_feed_forward_length(rows)
    writer.add_head_count(_DIM // 64)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(_VOCAB)
    writer.add_tokenizer_model("none")
    block, middle, many = "blk.0.", "_exps" if experts else "", (_EXPERTS,) if experts else ()
    tensors: dict[str, tuple[tuple[int, ...], str]] = {
        "token_embd": ((_VOCAB, _DIM), "F32"),
        "output_norm": ((_DIM,), "F32"),
        block + "attn_norm": ((_DIM,), "F32"),
        **{block + f"attn_{name}": ((_DIM, _DIM), "F32") for name in ("q", "k", "v", "output")},
        block + "ffn_norm": ((_DIM,), "F32"),
        block + f"ffn_gate{middle}": ((*many, rows, _DIM), "F16"),
        block + f"ffn_up{middle}": ((*many, rows, _DIM), type),
        block + f"ffn_down{middle}": ((*many, _DIM, rows), "F16"),
    }
    if experts:
        writer.add_expert_count(_EXPERTS)
        writer.add_expert_used_count(1)
        tensors[block + "ffn_gate_inp"] = ((_EXPERTS, _DIM), "F32")
    write_hole(writer, path, {f"{name}.weight": tensor for name, tensor in tensors.items()})


def write_hole(writer: gguf.GGUFWriter, path: Path, tensors: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
    """Write the header that `writer` has, with tensors of these shapes and types; their data is a hole."""
    data = 0
    for name, (shape, kind) in tensors.items():
        size = byte_size(kind, shape)
        # Not by its own method: that refuses types that gguf-py does not know and llama.cpp does.
        writer.tensors[0][name] = gguf.gguf_writer.TensorInfo(shape, GGML_TYPES[kind].number, size)
        data += _aligned(size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(_aligned(file.seek(0, 2)) + data)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
