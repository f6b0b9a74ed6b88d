"""A checkpoint of any format, opened and not yet read.

Every format's reader gives a `Checkpoint`: the shape, and the tensors under Meta's names, each read when it is
asked for. Engines turn it into weights (`load_weights`), writers into another format; neither knows where it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from llamalab.checkpoints.vocabulary import Vocabulary
from llamalab.errors import ModelFileError
from llamalab.llama.config import LlamaConfig

Array: TypeAlias = np.ndarray[Any, Any]
Format: TypeAlias = Literal["gguf", "safetensors", "meta"]

EMBEDDING, NORM, OUTPUT = "tok_embeddings.weight", "norm.weight", "output.weight"
LAYER_NAMES = {
    "wq": "attention.wq",
    "wk": "attention.wk",
    "wv": "attention.wv",
    "wo": "attention.wo",
    "w1": "feed_forward.w1",
    "w2": "feed_forward.w2",
    "w3": "feed_forward.w3",
    "attention_norm": "attention_norm",
    "ffn_norm": "ffn_norm",
}
"""Fields of `LayerWeights` to Meta's names within a layer."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One stored matrix or vector.

    Attributes:
        name: Meta's, e.g. "layers.0.attention.wq.weight".
        shape: [out, in] of a matrix, (n,) of a vector.
        dtype: as it is stored, by ggml's name: "F32", "F16", "BF16", "Q8_0", "Q4_K", ...
        read: its values: query and key rows in Meta's interleaved order; float32, float16 or bfloat16 (ml_dtypes)
            as stored; float32 where it is stored quantised. Nothing of it stays in memory afterwards but what the
            caller keeps.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Array]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One model on disk.

    Attributes:
        path: file or folder.
        format: how it is stored.
        name: of the model, as the files say or the path is called.
        config: its shape.
        rope_source: where the RoPE scaling was taken from, in a few words ("config.json", "inferred: ...").
        tensors: by Meta's name, in the order of `tensor_shapes`; no "output.weight" where it is the embedding.
        vocabulary: the tokeniser.
        chat_template: Jinja source, None where there is none.
        notes: what a user should know about how it was read, one sentence each.
        sampling: settings that the files recommend, by the names of `SamplingParams`.
    """

    path: Path
    format: Format
    name: str
    config: LlamaConfig
    rope_source: str
    tensors: Mapping[str, Tensor]
    vocabulary: Vocabulary
    chat_template: str | None = None
    notes: tuple[str, ...] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tied(self) -> bool:
        """Whether the output projection is the embedding."""
        return OUTPUT not in self.tensors

    @property
    def n_params(self) -> int:
        """Exact number of parameters, a tied matrix counted once."""
        return sum(int(np.prod(tensor.shape)) for tensor in self.tensors.values())


def open_checkpoint(path: Path, *, rope_factor: float | None = None) -> Checkpoint:
    """Open a GGUF file, a Meta folder or a Hugging Face folder.

    Args:
        path: of the file or folder.
        rope_factor: takes the place of the RoPE scaling factor that the files say or imply; 1 means no scaling.

    Raises:
        ModelFileError: not a checkpoint, damaged, incomplete, or of an architecture that is not a Llama.
    """
    if path.is_dir():
        if (path / "params.json").is_file():
            from llamalab.checkpoints.meta import open_meta

            return open_meta(path, rope_factor=rope_factor)
        original = path / "original"  # a download from the hub without its safetensors: Meta's files within
        if (original / "params.json").is_file() and not any(path.glob("*.safetensors")):
            return open_checkpoint(original, rope_factor=rope_factor)
        if (path / "config.json").is_file():
            from llamalab.checkpoints.huggingface import open_huggingface

            return open_huggingface(path, rope_factor=rope_factor)
        raise ModelFileError(f"{path} holds no checkpoint: there is neither a params.json (Meta) nor a config.json.")
    from llamalab.checkpoints.gguf_reader import open_gguf

    return open_gguf(path, rope_factor=rope_factor)


def tensor_shapes(config: LlamaConfig, *, tied: bool) -> dict[str, tuple[int, ...]]:
    """Every tensor of a Llama by Meta's name, with its shape, in the order of Meta's files."""
    D, F, V = config.dim, config.ffn_dim, config.vocab_size
    N, M = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (V, D)}
    for i in range(config.n_layers):
        shapes |= {
            f"layers.{i}.attention.wq.weight": (N, D),
            f"layers.{i}.attention.wk.weight": (M, D),
            f"layers.{i}.attention.wv.weight": (M, D),
            f"layers.{i}.attention.wo.weight": (D, N),
            f"layers.{i}.feed_forward.w1.weight": (F, D),
            f"layers.{i}.feed_forward.w2.weight": (D, F),
            f"layers.{i}.feed_forward.w3.weight": (F, D),
            f"layers.{i}.attention_norm.weight": (D,),
            f"layers.{i}.ffn_norm.weight": (D,),
        }
    shapes[NORM] = (D,)
    return shapes if tied else shapes | {OUTPUT: (V, D)}


def checked(found: Mapping[str, Tensor], config: LlamaConfig, path: Path) -> dict[str, Tensor]:
    """The tensors in order, none missing, none of another shape, none that a Llama does not have.

    Raises:
        ModelFileError: names the tensor, and both shapes.
    """
    if config.n_layers > len(found):  # before a list of all their tensors is made
        raise ModelFileError(
            f"{path} is incomplete: its settings name {config.n_layers:,} layers, and there are {len(found):,} tensors."
        )
    expected = tensor_shapes(config, tied=OUTPUT not in found)
    missing = [name for name in expected if name not in found]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelFileError(f"{path} is incomplete: the tensor {missing[0]}{more} is missing.")
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise ModelFileError(
                f"{path}: the tensor {name} has the shape {list(found[name].shape)}; "
                f"the model's settings ask for {list(shape)}."
            )
    strange = sorted(set(found) - set(expected))
    if strange:
        raise ModelFileError(f"{path} holds a tensor that a Llama does not have: {strange[0]}.")
    return {name: found[name] for name in expected}
