"""Tiny random models, written on the spot: seeded, a few hundred kilobytes, real tokenisers.

They stand in for downloaded models in every test that needs an engine: what they say means nothing, how
they say it (ids, log probabilities, stops, schemas) is what the tests look at.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np

LAYERS, WIDTH, HEADS, KV_HEADS, FFN = 2, 64, 4, 2, 128
CONTEXT = 512
CONTROL = ("<|bos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|eos|>")
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
WORDS = ("the", "and", "ing", "her", "tion", "hello", "world", "code", "access", "true", "false", "name", "age", "é")


def write_bpe(
    path: Path,
    *,
    seed: int = 0,
    template: str | None = TEMPLATE,
    layers: int = LAYERS,
    context: int = CONTEXT,
    extra_tokens: int = 0,
    sampling: dict[str, float] | None = None,
    weights: bool = True,
    quantised: bool = False,
    architecture: str = "llama",
    pre: str = "gpt-2",
) -> Path:
    """A Llama with a byte-level BPE of 256 bytes, some merges and six control tokens; F32, or Q8_0."""
    tokens, merges = _byte_level_bpe()
    tokens += [f"<unused{i}>" for i in range(extra_tokens)]
    normal = len(tokens)
    tokens += CONTROL
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([1] * normal + [3] * len(CONTROL))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index("<|bos|>"))
    writer.add_eos_token_id(tokens.index("<|eos|>"))
    writer.add_eot_token_id(tokens.index("<|end|>"))
    writer.add_add_bos_token(True)
    if template is not None:
        writer.add_chat_template(template)
    for key, value in (sampling or {}).items():
        if isinstance(value, int):
            writer.add_int32(f"general.sampling.{key}", value)
        else:
            writer.add_float32(f"general.sampling.{key}", value)
    _write_llama(writer, len(tokens), seed=seed, layers=layers, context=context, weights=weights, quantised=quantised)
    return path


def write_spm(path: Path, *, seed: int = 0) -> Path:
    """A Llama with a SentencePiece vocabulary (byte fallback, space prefix), as Llama 2 has."""
    pieces = [f"▁{w}" for w in WORDS] + [w for w in WORDS if len(w) > 1] + ["▁"]
    pieces += sorted({c for w in WORDS for c in w} | set("abcdefghijklmnopqrstuvwxyz.,:'\"{}[]0123456789"))
    # SentencePiece merges two neighbours only into a piece that exists: every prefix of a word has to.
    pieces += sorted({w[:n] for w in (*WORDS, *(f"▁{w}" for w in WORDS)) for n in range(2, len(w))} - set(pieces))
    pieces = list(dict.fromkeys(pieces))
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + pieces
    types = [2, 3, 3] + [6] * 256 + [1] * len(pieces)
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces))]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny-spm")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(True)
    _write_llama(writer, len(tokens), seed=seed, layers=LAYERS, context=CONTEXT, weights=True)
    return path


def write_bert(path: Path) -> Path:
    """A one-layer BERT: an embedding model, which cannot continue a text."""
    rng = np.random.default_rng(0)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"▁{w}" for w in WORDS)]
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.CLS)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 5 + [1] * len(WORDS))
    writer.add_token_type_count(2)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_eos_token_id(3)
    writer.add_unk_token_id(1)
    writer.add_mask_token_id(4)
    writer.add_pad_token_id(0)
    block = "blk.0."
    sizes = {
        "token_embd.weight": (len(tokens), WIDTH),
        "token_types.weight": (2, WIDTH),
        "position_embd.weight": (64, WIDTH),
    }
    for name in ("token_embd_norm", block + "attn_output_norm", block + "layer_output_norm"):
        sizes |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
    for name, rows, columns in (
        *((f"attn_{part}", WIDTH, WIDTH) for part in ("q", "k", "v", "output")),
        ("ffn_up", FFN, WIDTH),
        ("ffn_down", WIDTH, FFN),
    ):
        sizes |= {f"{block}{name}.weight": (rows, columns), f"{block}{name}.bias": (rows,)}
    for name, size in sizes.items():
        writer.add_tensor(name, rng.normal(size=size).astype(np.float32))
    _finish(writer)
    return path


def write_lora(path: Path, *, seed: int = 1, rank: int = 4, width: int = WIDTH) -> Path:
    """A LoRA adapter on the first layer's query and output projections."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 16.0)
    for name in ("attn_q", "attn_output"):
        writer.add_tensor(f"blk.0.{name}.weight.lora_a", rng.normal(size=(rank, width)).astype(np.float32))
        writer.add_tensor(f"blk.0.{name}.weight.lora_b", rng.normal(size=(width, rank)).astype(np.float32))
    _finish(writer)
    return path


def once(folder: Path, name: str, write: Callable[[Path], object]) -> Path:
    """`folder/name`, written by whichever test process comes first."""
    path = folder / name
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            part = folder / f"{name}.part"
            write(part)
            part.rename(path)
    return path


def _byte_level_bpe() -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level BPE over `WORDS`, with and without a leading space."""
    alphabet = _bytes_to_unicode()
    tokens = [alphabet[b] for b in range(256)]
    merges: list[str] = []
    for word in [*WORDS, *(f" {w}" for w in WORDS)]:
        symbols = [alphabet[b] for b in word.encode()]
        while len(symbols) > 1:
            pair = f"{symbols[0]} {symbols[1]}"
            symbols[:2] = [symbols[0] + symbols[1]]
            if pair not in merges:
                merges.append(pair)
                tokens.append(symbols[0])
    return tokens, merges


def _bytes_to_unicode() -> list[str]:
    """GPT-2's printable stand-in for each byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest: Iterator[int] = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(rest)) for b in range(256)]


def _write_llama(
    writer: gguf.GGUFWriter,
    n_vocab: int,
    *,
    seed: int,
    layers: int,
    context: int,
    weights: bool,
    quantised: bool = False,
) -> None:
    writer.add_context_length(context)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(n_vocab)
    if weights:
        for name, value in llama_weights(n_vocab, seed=seed, layers=layers):
            if quantised and value.ndim == 2:
                q8 = gguf.GGMLQuantizationType.Q8_0
                writer.add_tensor(name, gguf.quants.quantize(value, q8), raw_dtype=q8)
            else:
                writer.add_tensor(name, value)
    _finish(writer)


def llama_weights(n_vocab: int, *, seed: int, layers: int = LAYERS) -> Iterator[tuple[str, np.ndarray]]:
    """Names and values of all tensors, scaled so that the logits spread over a few nats."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, gain: float = 1.0) -> np.ndarray:
        return (rng.normal(size=(rows, columns)) * gain / np.sqrt(columns)).astype(np.float32)

    kv = WIDTH * KV_HEADS // HEADS
    yield "token_embd.weight", matrix(n_vocab, WIDTH, 8.0)
    for i in range(layers):
        yield f"blk.{i}.attn_norm.weight", np.ones(WIDTH, np.float32)
        yield f"blk.{i}.attn_q.weight", matrix(WIDTH, WIDTH, 2.0)
        yield f"blk.{i}.attn_k.weight", matrix(kv, WIDTH, 2.0)
        yield f"blk.{i}.attn_v.weight", matrix(kv, WIDTH)
        yield f"blk.{i}.attn_output.weight", matrix(WIDTH, WIDTH)
        yield f"blk.{i}.ffn_norm.weight", np.ones(WIDTH, np.float32)
        yield f"blk.{i}.ffn_gate.weight", matrix(FFN, WIDTH)
        yield f"blk.{i}.ffn_up.weight", matrix(FFN, WIDTH)
        yield f"blk.{i}.ffn_down.weight", matrix(WIDTH, FFN)
    yield "output_norm.weight", np.ones(WIDTH, np.float32)
    yield "output.weight", matrix(n_vocab, WIDTH, 2.0)


def reference_logits(
    ids: list[int], *, n_vocab: int, seed: int = 0, layers: int = LAYERS, sharpness: float = 1.0, theta: float = 10000.0
) -> np.ndarray:
    """Logits [T, n_vocab] of the model that `write_bpe` writes, computed in float64 from the definition.

    `sharpness` multiplies the query projections, `theta` is the base of the rotary frequencies.

    RMS norm, rotary embedding on neighbouring pairs, grouped-query attention and SwiGLU as in the Llama
    papers; written from them, with nothing shared with the code under test.
    """
    w = {name: value.astype(np.float64) for name, value in llama_weights(n_vocab, seed=seed, layers=layers)}
    x, n, head = w["token_embd.weight"][ids], len(ids), WIDTH // HEADS
    angles = np.outer(np.arange(n), theta ** (-np.arange(0, head, 2) / head))
    cos, sin = np.cos(angles)[:, None, :], np.sin(angles)[:, None, :]

    def norm(value: np.ndarray, gain: np.ndarray) -> np.ndarray:
        return value / np.sqrt((value**2).mean(-1, keepdims=True) + 1e-5) * gain

    def rotate(value: np.ndarray) -> np.ndarray:
        even, odd = value[..., 0::2], value[..., 1::2]
        return np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(value.shape)

    for i in range(layers):
        h = norm(x, w[f"blk.{i}.attn_norm.weight"])
        q = sharpness * rotate((h @ w[f"blk.{i}.attn_q.weight"].T).reshape(n, HEADS, head))
        k = rotate((h @ w[f"blk.{i}.attn_k.weight"].T).reshape(n, KV_HEADS, head))
        v = (h @ w[f"blk.{i}.attn_v.weight"].T).reshape(n, KV_HEADS, head)
        k, v = (np.repeat(t, HEADS // KV_HEADS, axis=1) for t in (k, v))
        scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(head)
        scores = np.where(np.tril(np.ones((n, n), bool)), scores, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hts,shd->thd", p / p.sum(-1, keepdims=True), v).reshape(n, WIDTH)
        x = x + mixed @ w[f"blk.{i}.attn_output.weight"].T
        h = norm(x, w[f"blk.{i}.ffn_norm.weight"])
        gate = h @ w[f"blk.{i}.ffn_gate.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w[f"blk.{i}.ffn_up.weight"].T)) @ w[f"blk.{i}.ffn_down.weight"].T
    return norm(x, w["output_norm.weight"]) @ w["output.weight"].T


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
