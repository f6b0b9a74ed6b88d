"""What is in a model file, from its headers alone: no weights are loaded.

GGUF (split files too), Hugging Face folders of any architecture, Meta folders. What a header does not tell is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from llamalab.errors import ModelFileError, ModelNotFound

Format: TypeAlias = Literal["gguf", "safetensors", "meta"]

HASHED_UNASKED_BYTES = 64 << 20
"""Files up to this size get their SHA-256 without being asked for it."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file of weights.

    Attributes:
        path: absolute.
        size_bytes: on disk.
        sha256: hexadecimal; None where it is not known and was not asked for.
    """

    path: Path
    size_bytes: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as it is stored.

    Attributes:
        name: as the file calls it.
        shape: [out, in] of a matrix.
        dtype: by the file's name for it, e.g. "Q4_K" or "F8_E4M3".
        n_bytes: in the file.
        file: in which it lies.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    n_bytes: int
    file: Path


@dataclass(frozen=True, slots=True)
class TypeCount:
    """What is stored in one type: tensors, their values, their bytes."""

    n_tensors: int
    n_params: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class RopeInfo:
    """Rotary position embedding.

    Attributes:
        base: of the frequencies (theta).
        scaling: "llama3", "linear", "yarn", "longrope", ...; None for none.
        factor: of the scaling; of a table its largest divisor.
        original_context: tokens of context before the scaling.
        dimensions: values of a head that are rotated.
        table: the tensor that holds the divisors of the frequencies, where there is one.
    """

    base: float | None = None
    scaling: str | None = None
    factor: float | None = None
    original_context: int | None = None
    dimensions: int | None = None
    table: str | None = None


@dataclass(frozen=True, slots=True)
class ExpertsInfo:
    """Mixture of experts: how many there are, work on one token, are always at work; and their hidden width."""

    total: int
    used: int | None = None
    shared: int | None = None
    ffn_dim: int | None = None


@dataclass(frozen=True, slots=True)
class MlaInfo:
    """Multi-head latent attention: ranks of the latents, and values per head that are rotated."""

    kv_lora_rank: int
    q_lora_rank: int | None = None
    rope_head_dim: int | None = None


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A token with a part to play; `text` is None where the files do not tell it."""

    id: int
    text: str | None


@dataclass(frozen=True, slots=True)
class TokenizerInfo:
    """How text becomes tokens.

    Attributes:
        kind: "BPE", "SentencePiece", "WordPiece", "Unigram", ...; None if unknown.
        pre: llama.cpp's name of the pre-tokeniser.
        n_tokens: in the vocabulary.
        n_merges: of a BPE.
        add_bos: the model wants BOS in front.
        special: by part: "bos", "eos", "eot", "pad", "unk", ...
        control: text of every control token by its id.
    """

    kind: str | None = None
    pre: str | None = None
    n_tokens: int | None = None
    n_merges: int | None = None
    add_bos: bool | None = None
    special: Mapping[str, SpecialToken] = field(default_factory=dict)
    control: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Info:
    """A model as its headers describe it.

    Attributes:
        path: of the file (of a split model its first part) or folder, absolute.
        format: "gguf", "safetensors" or "meta".
        name: as the files say, or as the path is called.
        architecture: as the files say, e.g. "llama" or "LlamaForCausalLM".
        quantisation: from the tensors: "Q4_K_M", "BF16"; of a quantised Hugging Face folder the method.
        file_type: what `general.file_type` of a GGUF says about it.
        n_params: values in all tensors. A matrix that serves twice counts once; tables of rotary frequencies, which
            are no parameters, do not count.
        tensor_bytes: of all tensors.
        size_bytes: of all files of weights on disk.
        types: by type, most bytes first.
        context_length: tokens the model was trained for.
        n_layers: transformer blocks.
        dim: width of the residual stream.
        n_heads: query heads; of each layer where layers differ. So the two that follow.
        n_kv_heads: key and value heads.
        ffn_dim: hidden width of the feed-forward block.
        key_length: values per head in a key.
        value_length: values per head in a value.
        n_vocab: rows of the embedding.
        tied: the output projection is the embedding.
        sliding_window: tokens that a layer with a window sees.
        rope: None where nothing is said of it.
        experts: of a mixture of experts.
        mla: of multi-head latent attention.
        tokenizer: None where the files hold none.
        chat_template: Jinja source.
        licence: as the file says.
        quantised_by: as the file says.
        files: of weights.
        tensors: every one.
        metadata: every scalar of a GGUF's header, and every short array; the settings file of a folder.
        warnings: what contradicts itself or is odd, one sentence each.
    """

    path: Path
    format: Format
    name: str
    architecture: str | None
    quantisation: str | None
    n_params: int
    tensor_bytes: int
    types: Mapping[str, TypeCount]
    files: tuple[FileInfo, ...]
    tensors: tuple[TensorInfo, ...]
    file_type: str | None = None
    context_length: int | None = None
    n_layers: int | None = None
    dim: int | None = None
    n_heads: int | tuple[int, ...] | None = None
    n_kv_heads: int | tuple[int, ...] | None = None
    ffn_dim: int | tuple[int, ...] | None = None
    key_length: int | None = None
    value_length: int | None = None
    n_vocab: int | None = None
    tied: bool | None = None
    sliding_window: int | None = None
    rope: RopeInfo | None = None
    experts: ExpertsInfo | None = None
    mla: MlaInfo | None = None
    tokenizer: TokenizerInfo | None = None
    chat_template: str | None = None
    licence: str | None = None
    quantised_by: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of all files of weights."""
        return sum(file.size_bytes for file in self.files)

    @property
    def bits_per_weight(self) -> float | None:
        """8 tensor_bytes / n_params; None without tensors."""
        return 8 * self.tensor_bytes / self.n_params if self.n_params else None


def model_info(model: str | Path, *, sha256: bool = False, progress: Callable[[Path, int], None] | None = None) -> Info:
    """Describe a model without loading its weights.

    Args:
        model: a path, or whatever else names a model (`llamalab.checkpoints.locate`), with a provider or without.
        sha256: compute the files' SHA-256 however large they are; otherwise those of files up to 64 MiB, and of
            larger ones if it is known from before.
        progress: told which file is being hashed, and how many bytes of it are done.

    Raises:
        ModelNotFound: nothing under that name.
        ModelFileError: no model, damaged, cut off, or a part is missing.
    """
    path = _located(model)
    if path.is_dir():
        info = _folder_info(path)
    elif path.suffix in (".safetensors", ".pth"):
        raise ModelFileError(f"{path} is one file of a model in a folder; name the folder: {path.parent}.")
    else:
        from llamalab.lab.info_gguf import gguf_info

        info = gguf_info(path)
    return replace(info, files=tuple(_hashed(file, sha256, progress) for file in info.files))


def type_counts(tensors: Iterable[TensorInfo]) -> dict[str, TypeCount]:
    """Histogram of the tensors' types, most bytes first."""
    counts: dict[str, TypeCount] = {}
    for tensor in tensors:
        so_far = counts.get(tensor.dtype, TypeCount(0, 0, 0))
        counts[tensor.dtype] = TypeCount(
            so_far.n_tensors + 1, so_far.n_params + math.prod(tensor.shape), so_far.n_bytes + tensor.n_bytes
        )
    return dict(sorted(counts.items(), key=lambda item: -item[1].n_bytes))


def common_type(tensors: Iterable[TensorInfo]) -> str | None:
    """The type of most values in matrices; None without matrices."""
    counts = type_counts(tensor for tensor in tensors if len(tensor.shape) > 1)
    return max(counts, key=lambda kind: counts[kind].n_params, default=None)


def _folder_info(folder: Path) -> Info:
    """Of the folder, or of Meta's within a download from the hub that has no safetensors."""
    if (folder / "params.json").is_file():
        from llamalab.lab.info_meta import meta_info

        return meta_info(folder)
    if (folder / "original" / "params.json").is_file() and not any(folder.glob("*.safetensors")):
        return _folder_info(folder / "original")
    if (folder / "config.json").is_file():
        from llamalab.lab.info_huggingface import huggingface_info

        return huggingface_info(folder)
    raise ModelFileError(f"{folder} holds no model: there is neither a params.json (Meta) nor a config.json.")


def _located(model: str | Path) -> Path:
    if isinstance(model, Path):
        if not model.exists():
            raise ModelNotFound(f"There is no file or folder {model}.")
        return model.absolute()
    from llamalab.checkpoints.locate import locate
    from llamalab.engines import split_spec

    if not model:
        raise ModelFileError("The name of the model is empty.")
    return locate(split_spec(model)[1]).absolute()


def _hashed(file: FileInfo, asked: bool, progress: Callable[[Path, int], None] | None) -> FileInfo:
    from llamalab.checkpoints import checksum

    if not asked and file.size_bytes > HASHED_UNASKED_BYTES:
        return replace(file, sha256=checksum.known_sha256(file.path))
    report = None if progress is None else lambda done: progress(file.path, done)
    return replace(file, sha256=checksum.sha256(file.path, progress=report))
