"""What a model takes in memory, computed from its header alone: nothing is loaded, on any machine the same.

Source: llama.cpp's own allocation rules, at the version that llama-cpp-python 0.3.36 carries (src/llama-kv-cache.cpp,
src/llama-graph.cpp, src/llama-model.cpp, and the work area of ggml's CPU backend).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamalab.checkpoints.stored import Stored
from llamalab.engines.context import padded
from llamalab.engines.gguf_header import Header

CACHES = frozenset(
    "llama qwen2 qwen2moe qwen3 qwen3moe gemma gemma2 gemma3 gpt-oss mistral3 phi2 phi3 starcoder starcoder2 stablelm "
    "gpt2 gptneox falcon bloom mpt baichuan internlm2 minicpm granite granitemoe smollm3 olmo olmo2 olmoe command-r "
    "cohere2 deepseek deepseek2 openelm nemotron exaone exaone4 glm4 chatglm".split()
)
"""Architectures with plain KV caches, one for each layer, whose size follows from the header."""

RECURRENT = frozenset({"mamba", "mamba2", "lfm2"})
"""Architectures whose layers, all of them or those without KV heads, keep a state of one size for each sequence."""

GRAPHS = frozenset({"llama", "qwen2", "qwen3", "mistral3", "smollm3"})
"""Architectures whose computation has the shape of a dense Llama's."""

_WINDOW_PERIODS = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2, "cohere2": 4, "olmo2": 4}
"""Of so many layers the last one sees every token, where the header does not say it itself."""

_WINDOWS = {"gemma2": 4096}
"""Tokens of a sliding window where the header does not say it itself."""

_KEPT_FLOATS = ("F32", "F16", "BF16")
_PLAIN_CACHES = ("f32", "f16", "bf16")
_ROTATION = 64  # quantised caches are rotated by Hadamard matrices of this size at least
_K_BLOCK_BYTES, _K_BLOCK = 292, 256
_BLOCK_BYTES, _BLOCK = 34, 32


@dataclass(frozen=True, slots=True)
class Setting:
    """What is asked of a model.

    Attributes:
        n_ctx: tokens of one sequence.
        n_seq: sequences, each with cells of its own.
        type_k: of the K cache, see `CACHE_TYPES`.
        type_v: of the V cache.
        flash_attn: whether attention is computed without keeping its scores.
        n_batch: most tokens given to llama.cpp at once.
        n_ubatch: most tokens computed at once.
    """

    n_ctx: int
    n_seq: int
    type_k: str
    type_v: str
    flash_attn: bool
    n_batch: int
    n_ubatch: int

    @property
    def cells(self) -> int:
        """Tokens that each sequence has room for."""
        return padded(self.n_ctx)

    @property
    def tokens(self) -> int:
        """Tokens of the largest computation."""
        return min(self.n_batch, self.n_ubatch, self.cells * self.n_seq)


@dataclass(frozen=True, slots=True)
class Buffers:
    """What a context takes beside the weights, bytes; None: not known.

    Attributes:
        kv: keys and values of the tokens (for recurrent layers: their state).
        compute: what one computation keeps between its steps.
        output: rows of logits.
    """

    kv: int | None
    compute: int | None
    output: int | None


@dataclass(frozen=True, slots=True)
class Sizes:
    """The numbers of a header that decide what a computation takes.

    Attributes:
        dim: width of the residual stream.
        ffn_dim: largest hidden width of a feed-forward block.
        n_heads: most query heads of a layer.
        n_kv_heads: most KV heads of a layer.
        key_length: values per head of queries and keys.
        value_length: values per head of values.
        n_vocab: tokens.
        n_states: float32 values that recurrent layers keep for each sequence.
    """

    dim: int
    ffn_dim: int
    n_heads: int
    n_kv_heads: int
    key_length: int
    value_length: int
    n_vocab: int
    n_states: int = 0


def sizes(header: Header, fields: Mapping[str, Any], tensors: Mapping[str, Stored]) -> Sizes:
    """What the header says; 0 for what it does not."""
    arch = header.architecture
    embedding = tensors.get("token_embd.weight")
    return Sizes(
        dim=largest(fields.get(f"{arch}.embedding_length")),
        ffn_dim=largest(fields.get(f"{arch}.feed_forward_length")),
        n_heads=header.heads,
        n_kv_heads=max(header.heads_kv, default=0),
        key_length=header.key_length,
        value_length=header.value_length,
        n_vocab=embedding.shape[0] if embedding is not None else 0,
        n_states=_states(header, fields),
    )


def buffers(header: Header, size: Sizes, setting: Setting) -> Buffers:
    """The buffers of a context, as far as the formula knows the architecture."""
    kv = compute = None
    if header.architecture in RECURRENT and size.n_states:
        kv = sum(cache_layers(header, setting)) + 4 * size.n_states * setting.n_seq
    elif header.architecture in CACHES and header.heads_kv:
        kv = sum(cache_layers(header, setting))
    if header.architecture in GRAPHS and size.ffn_dim:
        compute = compute_bytes(size, setting)
    return Buffers(kv=kv, compute=compute, output=4 * size.n_vocab * setting.n_seq if size.n_vocab else None)


def cache_layers(header: Header, setting: Setting) -> list[int]:
    """Bytes of each layer's KV cache: every layer keeps all tokens, those with a sliding window too.

    The engine has it so (llama.cpp's `swa_full`), because a prompt that begins like the last one can then go on where
    the two part; see `windowed_saving` for what windows alone would take.
    """
    cells = setting.cells * setting.n_seq
    # Of a recurrent architecture, layers without KV heads have no part in the cache at all.
    as_wide_as_they_are = setting.flash_attn or header.architecture in RECURRENT
    return header.layer_cache_bytes(cells, setting.type_k, setting.type_v, flash_attn=as_wide_as_they_are)


def windowed_saving(header: Header, fields: Mapping[str, Any], setting: Setting) -> int:
    """Bytes by which the KV cache would be smaller if layers with a sliding window kept only what they can see."""
    arch = header.architecture
    window = largest(fields.get(f"{arch}.attention.sliding_window")) or _WINDOWS.get(arch, 0)
    if not window or arch not in _WINDOW_PERIODS:
        return 0
    pattern = _window_pattern(arch, fields.get(f"{arch}.attention.sliding_window_pattern"), len(header.heads_kv))
    kept = padded(min(setting.cells, window + setting.tokens)) * setting.n_seq
    least = header.layer_cache_bytes(kept, setting.type_k, setting.type_v, flash_attn=setting.flash_attn)
    full = cache_layers(header, setting)
    return sum(a - b for a, b, windowed in zip(full, least, pattern, strict=True) if windowed)


def compute_bytes(size: Sizes, setting: Setting) -> int:
    """Compute buffer of a dense Llama: its inputs, and the stage that keeps most at once.

    Fitted on llama.cpp's layouts of 576 contexts (widths of 256 to 4096, grouped heads and not, 512 to 32,768 tokens,
    both kinds of attention, caches in f16 and q8_0, vocabularies of 512 and 128,256). Where the queries together are
    as wide as the residual stream and the feed-forward block at least 2.5 times as wide, as in every published Llama,
    it is within 0.01 MiB of all of them. Elsewhere llama.cpp's allocator leaves holes, or finds some: a narrower
    feed-forward block came out up to a third too large with flash attention (by 1 MiB), and queries of another width
    (Qwen 3 4B, Mistral Nemo) up to 18% too large or 12% too small.
    """
    tokens, floats = setting.tokens, 4 * setting.tokens
    residual, hidden = floats * size.dim, floats * size.ffn_dim
    queries, values = floats * size.n_heads * size.key_length, floats * size.n_kv_heads * size.value_length
    indices = 2 * 8 * tokens + 2 * 4 * tokens
    logits = 4 * setting.n_seq * (size.n_vocab + size.dim)
    if not setting.flash_attn:
        mask = floats * setting.cells
        indices += 8 * tokens * size.n_kv_heads * size.value_length - 8 * tokens
        scores = floats * setting.cells * size.n_heads
        attention = scores + 2 * residual + 2 * queries + max(residual, values)
        return mask + indices + max(attention, 3 * hidden + 3 * residual, logits)
    mask = 2 * tokens * setting.cells
    plain = setting.type_v in _PLAIN_CACHES
    feed_forward = 3 * hidden + 2 * residual + max((2 if plain else 1) * residual, queries)
    rotations = 0
    if not plain and size.key_length % _ROTATION == 0:
        rotations = 4 * (size.key_length**2 + _ROTATION**2)
    return mask + indices + rotations + max(feed_forward, 3 * residual + 4 * queries, logits)


def work_bytes(size: Sizes, setting: Setting, types: Iterable[str]) -> int:
    """Work area of ggml's CPU backend: the second operand of a product, converted to the type that the first one takes.

    llama.cpp reports it nowhere. The largest product counts: without flash attention that is scores times values.

    Args:
        size: of the model.
        setting: what is asked of it.
        types: of the model's matrices, by ggml's names.
    """
    widest = max(size.ffn_dim, size.dim, size.n_heads * size.key_length)
    found = max((_operand_bytes(setting.tokens * widest, type) for type in types), default=0)
    if not setting.flash_attn:
        scores = size.n_heads * setting.tokens * setting.cells
        found = max(found, _operand_bytes(scores, setting.type_v.upper()))
    return found


def _operand_bytes(values: int, type: str) -> int:
    """Bytes of float32 values once they are what ggml multiplies a matrix of `type` with."""
    if type == "F32":
        return 0
    if type in _KEPT_FLOATS:
        return 2 * values
    if "_K" in type or (type.startswith("IQ") and type != "IQ4_NL") or type.startswith("TQ"):
        return values * _K_BLOCK_BYTES // _K_BLOCK
    return values * _BLOCK_BYTES // _BLOCK


def _window_pattern(arch: str, given: object, n_layers: int) -> Sequence[bool]:
    if isinstance(given, list):
        return [bool(value) for value in (*given, *[False] * n_layers)][:n_layers]
    period = given if isinstance(given, int) and given else _WINDOW_PERIODS.get(arch, 1)
    return [i % period < period - 1 for i in range(n_layers)]


def _states(header: Header, fields: Mapping[str, Any]) -> int:
    """Float32 values of recurrent state: the last inputs of a convolution, and what a state space model remembers."""

    def number(name: str) -> int:
        return largest(fields.get(f"{header.architecture}.{name}"))

    if header.architecture == "lfm2":
        recurrent = sum(heads == 0 for heads in header.heads_kv)
        return recurrent * number("embedding_length") * max(0, number("shortconv.l_cache") - 1)
    if header.architecture in RECURRENT:
        inner, state = number("ssm.inner_size"), number("ssm.state_size")
        kept = max(0, number("ssm.conv_kernel") - 1) * (inner + 2 * number("ssm.group_count") * state)
        return number("block_count") * (kept + state * inner)
    return 0


def largest(value: object) -> int:
    """A number, or the largest of an array of them; 0 for anything else."""
    values = value if isinstance(value, list) else [value]
    return max((int(v) for v in values if isinstance(v, int | float) and math.isfinite(v)), default=0)
