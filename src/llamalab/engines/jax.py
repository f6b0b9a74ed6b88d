"""The JAX engine: Llama checkpoints of any format on CPUs, GPUs and TPUs.

Many requests run at once (`jax_schedule.py`); what a token costs is one pass of `llamalab.llama.model`. The same seed
gives the same text every time a request runs alone on the same machine with the same options.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llamalab.checkpoints.checkpoint import open_checkpoint
from llamalab.engine import Event, GenerateRequest
from llamalab.engines.checkpoint_engine import DEFAULT_CONTEXT, CheckpointEngine, describe
from llamalab.engines.events import EventStream
from llamalab.engines.request import check_mode, check_request, check_score, checked_ids, checked_text
from llamalab.engines.response import Queue, Response
from llamalab.engines.sampling_params import LARGEST_SEED
from llamalab.engines.tokenizer import Tokenizer, open_tokenizer
from llamalab.errors import ConfigError, InputError, SchemaError
from llamalab.scored import Scored, ScoreMode, ScoreRequest

try:
    import jax

    from llamalab.checkpoints.load import load_weights
    from llamalab.engines.jax_device import (
        WIDTHS,
        check_memory,
        default_sequences,
        keep_compilations,
        keeps_bfloat16,
    )
    from llamalab.engines.jax_logits import LogitsReader
    from llamalab.engines.jax_options import JaxOptions, parse_jax_options
    from llamalab.engines.jax_schedule import Draws, JaxScheduler
    from llamalab.engines.jax_scorer import JaxScorer
    from llamalab.llama.cache import KVCache
    from llamalab.llama.entropix import CLARIFYING_TOKEN, Entropix
    from llamalab.llama.entropix_cases import THRESHOLDS
    from llamalab.llama.mesh import parse_mesh, place, sharded_cache
    from llamalab.llama.products import on_cpu, quantize_int8
    from llamalab.llama.sampler import Plain
except ImportError as error:
    if (error.name or "").partition(".")[0] not in ("jax", "jaxlib", "ml_dtypes"):
        raise
    raise ConfigError(f"JAX cannot be imported ({error}). Install it with: pip install 'llamalab[jax]'") from error

if TYPE_CHECKING:
    from llamalab.engines.constrain import Compiler  # imports llguidance, which few runs need


class JaxEngine(CheckpointEngine):
    """A Llama checkpoint behind JAX; a `LogitsEngine`. A context manager: leaving it closes the engine.

    Args:
        path: a .gguf file, a Meta folder or a Hugging Face folder.
        options: see `llamalab.engines.jax_options.JaxOptions`.

    Attributes:
        options: as they were given, with defaults.

    Raises:
        ConfigError: an unknown option, or one that cannot be.
        ModelFileError: a checkpoint that cannot be run; says why.
        OutOfMemory: weights and cache do not fit, with both numbers.
    """

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        self.options = parse_jax_options(options)
        checkpoint = open_checkpoint(Path(path).expanduser().absolute(), rope_factor=self.options.rope_factor)
        config = self._config = checkpoint.config
        self._dtype = self.options.dtype or ("float32" if on_cpu() else "bfloat16")
        self._n_ctx = self.options.n_ctx or min(config.max_seq_len, DEFAULT_CONTEXT)
        n_seq = self.options.n_seq or default_sequences(config, self._n_ctx, WIDTHS[self._dtype])
        if self._n_ctx > config.max_seq_len:
            warnings.warn(
                f"The model was trained for {config.max_seq_len} tokens of context, less than n_ctx={self._n_ctx}.",
                stacklevel=2,
            )
        mesh = None if self.options.mesh is None else parse_mesh(self.options.mesh)
        n_devices = 1 if mesh is None else mesh.size
        keep = keeps_bfloat16(checkpoint, self.options)
        check_memory(checkpoint, WIDTHS[self._dtype], self._n_ctx, n_seq, n_devices, keep_bfloat16=keep)
        keep_compilations()
        where = None if mesh is None else place(mesh, config)
        weights = load_weights(checkpoint, dtype=self._dtype, keep_bfloat16=keep, place=where)
        if self.options.int8:
            weights = quantize_int8(weights)
        self._checkpoint = checkpoint
        self._compiler: Compiler | None = None
        size_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
        info = describe(checkpoint, provider="jax", n_ctx=self._n_ctx, size_bytes=size_bytes)
        super().__init__(info, open_tokenizer(checkpoint), checkpoint.notes)
        n_batch = self.options.n_batch or (512 if on_cpu() else 2048)

        def new_cache() -> KVCache:
            if mesh is None:
                new = KVCache.new(config, n_seq, self._n_ctx, self._dtype)
                cache: KVCache = jax.device_put(new, weights.norm.sharding)
                return cache
            return sharded_cache(mesh, config, n_seq, self._n_ctx, self._dtype)

        self._scheduler = JaxScheduler(
            weights,
            config,
            _sampler(self.options, self._tokenizer, config.vocab_size),
            _Pieces(self._tokenizer),
            new_cache,
            n_seq=n_seq,
            n_ctx=self._n_ctx,
            n_batch=n_batch,
            stop_ids=self.info.stop_ids,
            trace=self.options.trace,
        )
        self._reader = LogitsReader(weights, config, self._dtype, n_batch)
        self._weights = weights
        self._scorer: JaxScorer | None = None

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[Event]:
        """Generate all requests together; events come as they happen, `Generation` last for each.

        Everything is checked before this returns. Closing the iterator (`close()`), or leaving it to the
        garbage collector, ends what is still in progress.

        Raises:
            InputError: an empty prompt, or an id outside the vocabulary.
            ContextOverflow: a prompt longer than the context.
            SchemaError: a schema that cannot be compiled; a grammar.
            ConfigError: sampling settings that mean nothing.
        """
        self._check_open()
        queue: Queue = deque()
        responses = [self._prepare(number, request, queue) for number, request in enumerate(requests)]
        self._scheduler.submit(responses)
        return EventStream(self._scheduler, responses, queue)

    def score(self, requests: Sequence[ScoreRequest], *, mode: ScoreMode = "strict") -> list[Scored]:
        """Log probabilities of each response given its prefix, in one pass; prefixes that requests share, once.

        Raises:
            InputError: an id outside the vocabulary.
            ContextOverflow: prefix and response together longer than the context.
            ConfigError: a decoding or a mode that means nothing.
        """
        self._check_open()
        check_mode(mode)
        size = self._config.vocab_size
        asked = [check_score(n, request, n_ctx=self._n_ctx, n_vocab=size) for n, request in enumerate(requests)]
        with self._lock:
            self._check_open()
            if self._scorer is None:
                self._scorer = JaxScorer(self._weights, self._config, self._dtype, self._n_ctx)
            return self._scorer.score(asked, mode)

    def logits(self, ids: Sequence[int], *, rows: slice | None = None) -> np.ndarray[Any, Any]:
        """Logits of one full forward pass over `ids`; see `LogitsEngine`."""
        tokens = self._whole_text(ids)
        begin, end, _ = (rows or slice(None)).indices(len(tokens))
        with self._lock:
            self._check_open()
            return self._reader.rows(tokens, begin, max(begin, end))

    def stepped_logits(self, ids: Sequence[int], first: int) -> np.ndarray[Any, Any]:
        """The rows first ... T-1 of `logits`, one token at a time through the cache; see `LogitsEngine`."""
        tokens = self._whole_text(ids)
        if not 0 <= first < len(tokens):
            raise InputError(f"The first row must be from 0 to {len(tokens) - 1}, not {first}.")
        with self._lock:
            self._check_open()
            return self._reader.stepped(tokens, first)

    def hidden(self, ids: Sequence[int]) -> list[np.ndarray[Any, Any]]:
        """The residual stream after each block, float32, (T, D) each."""
        tokens = self._whole_text(ids)
        with self._lock:
            self._check_open()
            return self._reader.hidden(tokens)

    def _free(self) -> None:
        self._scheduler.close()
        del self._scheduler, self._reader, self._scorer, self._weights

    def _prepare(self, number: int, request: GenerateRequest, queue: Queue) -> Response:
        check_request(number, request, n_ctx=self._n_ctx)
        prompt = checked_ids(request.prompt_ids, self._config.vocab_size, f"Request {number}, prompt")
        if request.grammar is not None:
            raise SchemaError("The JAX engine holds JSON schemas, no GBNF grammars; load the model with llama_cpp.")
        constraint = None if request.schema is None else self._schemas().compile(request.schema)
        seed = request.params.seed if request.params.seed is not None else secrets.randbelow(LARGEST_SEED + 1)
        draws = Draws(request, seed, constraint)
        return Response(number, request, prompt, draws, queue, n_ctx=self._n_ctx, stop_ids=self.info.stop_ids)

    def _schemas(self) -> Compiler:
        """JSON schemas to constraints; built at first use."""
        from llamalab.engines.constrain import Compiler

        with self._lock:
            if self._compiler is None:
                vocabulary = self._checkpoint.vocabulary
                tokens = [self._tokenizer.token_bytes(id, special=True) for id in range(self._config.vocab_size)]
                self._compiler = Compiler.of_tokens(
                    tokens, vocabulary.control, self.info.stop_ids, vocabulary.eos_id, self._tokenizer.tokenize
                )
            return self._compiler

    def _whole_text(self, ids: Sequence[int]) -> np.ndarray[Any, Any]:
        self._check_open()
        return checked_text(ids, self._config.vocab_size, n_ctx=self._n_ctx)


class _Pieces:
    """What tokens read as, looked up once each."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}

    @property
    def texts(self) -> Mapping[int, str]:
        return self._texts

    def bytes_of(self, id: int) -> bytes:
        piece = self._tokenizer.token_bytes(id)
        with contextlib.suppress(UnicodeDecodeError):  # half a character
            self._texts[id] = piece.decode()
        return piece


def _sampler(options: JaxOptions, tokenizer: Tokenizer, n_vocab: int) -> Plain | Entropix:
    if options.sampler == "plain":
        return Plain()
    clarify = options.clarify
    if clarify == "auto":
        id, text = CLARIFYING_TOKEN
        clarify = id if id < n_vocab and tokenizer.token_bytes(id) == text else None
    elif clarify is not None and not 0 <= clarify < n_vocab:
        raise ConfigError(f"clarify={clarify} is no token of this model, whose vocabulary has {n_vocab}.")
    return Entropix(THRESHOLDS[options.thresholds], clarify=clarify)
