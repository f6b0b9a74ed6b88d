"""A model of Llama 3.2 1B's shape with random weights and a made-up vocabulary, for speed measurements.

What it says is noise; how long it takes does not depend on that. The file is written once, in F16, in
pieces of one tensor, and quantised by llama.cpp; only the quantised file is kept.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama with tied embeddings."""

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    context: int


LLAMA_1B = Shape("llama-1b", 16, 2048, 32, 8, 8192, 128_256, 8192)
SMALL = Shape("llama-small", 2, 256, 8, 4, 512, 128_256, 2048)
CONTROL_TOKENS = 256
POOL_VALUES = 1 << 24


def cache_folder() -> Path:
    """Where such files are kept, under the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "llamalab"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def quantised_model(shape: Shape, kind: str = "Q4_K_M") -> Path:
    """The file of `shape` in `kind`; made at the first call (some minutes for 1B, 2.5 GB while it lasts)."""
    path = cache_folder() / f"{shape.name}-random-{kind}.gguf"
    if not path.exists():
        wide, part = path.with_suffix(".f16"), path.with_suffix(".part")
        write_f16(wide, shape)
        quantise(wide, part, kind)
        wide.unlink()
        part.rename(path)
    return path


def write_f16(path: Path, shape: Shape) -> None:
    """Write the model in F16, norms in F32; at most one tensor in memory."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(f"{shape.name}-random")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500_000.0)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_vocab_size(shape.vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    tokens, merges = made_up_bpe(shape.vocab - CONTROL_TOKENS)
    control = [f"<|control_{i}|>" for i in range(CONTROL_TOKENS)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens + control)
    writer.add_token_types([1] * len(tokens) + [3] * CONTROL_TOKENS)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(len(tokens))
    writer.add_eos_token_id(len(tokens) + 1)
    for name, size, dtype in tensors(shape):
        writer.add_tensor_info(name, size, np.dtype(dtype), int(np.prod(size)) * np.dtype(dtype).itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(0)
    pool = rng.standard_normal(POOL_VALUES, dtype=np.float32)
    for name, size, dtype in tensors(shape):
        if name.endswith("norm.weight"):
            writer.write_tensor_data(np.ones(size, dtype))
            continue
        values = np.resize(np.roll(pool, int(rng.integers(POOL_VALUES))), int(np.prod(size)))
        writer.write_tensor_data((values / np.sqrt(size[-1])).astype(dtype).reshape(size))
    writer.close()


def quantise(source: Path, target: Path, kind: str) -> None:
    """To `kind`, such as Q4_K_M, by llama.cpp."""
    from llamalab.engines.native import api

    params = api.llama_model_quantize_default_params()
    params.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.nthread = os.cpu_count() or 1
    if api.llama_model_quantize(os.fsencode(source), os.fsencode(target), params):
        raise SystemExit(f"llama.cpp could not quantise {source}")


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...], type]]:
    """Name, size and type of every tensor, in the file's order."""
    width, kv = shape.width, shape.width * shape.kv_heads // shape.heads
    yield "token_embd.weight", (shape.vocab, width), np.float16
    for i in range(shape.layers):
        block = f"blk.{i}."
        yield block + "attn_norm.weight", (width,), np.float32
        yield block + "attn_q.weight", (width, width), np.float16
        yield block + "attn_k.weight", (kv, width), np.float16
        yield block + "attn_v.weight", (kv, width), np.float16
        yield block + "attn_output.weight", (width, width), np.float16
        yield block + "ffn_norm.weight", (width,), np.float32
        yield block + "ffn_gate.weight", (shape.ffn, width), np.float16
        yield block + "ffn_up.weight", (shape.ffn, width), np.float16
        yield block + "ffn_down.weight", (width, shape.ffn), np.float16
    yield "output_norm.weight", (width,), np.float32


def made_up_bpe(count: int) -> tuple[list[str], list[str]]:
    """`count` tokens and their merges: bytes, JSON's own pairs, and strings of letters of a natural length."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    stand_ins = iter(range(256, 512))
    alphabet = [chr(b) if b in printable else chr(next(stand_ins)) for b in range(256)]
    tokens, merges = list(alphabet), []
    known = set(tokens)

    def merge(left: str, right: str) -> None:
        if left + right not in known and len(tokens) < count:
            known.add(left + right)
            tokens.append(left + right)
            merges.append(f"{left} {right}")

    for pair in ('{"', '":', '",', ',"', '"}', "[{", "}]", "},", '["', '"]'):
        merge(*pair)
    for tens in "0123456789":
        for ones in "0123456789":
            merge(tens, ones)
    rng = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkjqxzETAOINSHRDLUCMFWYPVBGKJQXZ"
    space = alphabet[ord(" ")]
    words = [*letters[:26], *(space + c for c in letters[:30])]
    for c in letters[:30]:
        merge(space, c)
    while len(tokens) < count:
        left, right = rng.choice(words), rng.choice(letters[:26])
        if len(left) < 12 and left + right not in known:
            merge(left, right)
            words.append(left + right)
    return tokens, merges
