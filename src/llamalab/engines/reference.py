"""What the engines on somebody else's model code have in common: one sequence, its cache, and plain logits.

They exist to be compared with, so they are simple: requests run one after another, and draws are made here, in NumPy.
"""

from __future__ import annotations

import secrets
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from llamalab.checkpoints.checkpoint import Checkpoint
from llamalab.engine import Event, FinishReason, GenerateRequest, Generation, Timings, Token, TokenLogprob, Usage
from llamalab.engines.checkpoint_engine import DEFAULT_CONTEXT, CheckpointEngine
from llamalab.engines.machine import available_memory
from llamalab.engines.reduction import joined, reduce, scored
from llamalab.engines.request import Asked, check_mode, check_request, check_score, checked_ids, checked_text
from llamalab.engines.sampling_params import LARGEST_SEED, penalised
from llamalab.engines.streaming import TextStream
from llamalab.errors import ConfigError, EngineError, InputError, OutOfMemory, SchemaError
from llamalab.scored import Scored, ScoreMode, ScoreRequest

Logits = np.ndarray[Any, Any]


class ReferenceEngine(CheckpointEngine):
    """One model behind PyTorch code of others; a `LogitsEngine`. A context manager: leaving it closes the engine."""

    @abstractmethod
    def _new_cache(self) -> Any:
        """An empty cache for one sequence."""

    @abstractmethod
    def _run(self, cache: Any, ids: Sequence[int], start: int, rows: slice) -> Logits:
        """Run `ids` at positions start ... after what the cache holds, and add them to it.

        Returns:
            float32 logits of `rows` of `ids`.
        """

    @abstractmethod
    def hidden(self, ids: Sequence[int]) -> list[Logits]:
        """The residual stream after each block, float32, (T, D) each."""

    def logits(self, ids: Sequence[int], *, rows: slice | None = None) -> Logits:
        """Logits of one full forward pass over `ids`; see `LogitsEngine`."""
        tokens = self._checked(ids)
        with self._lock:
            return self._run(self._new_cache(), tokens, 0, rows or slice(None))

    def stepped_logits(self, ids: Sequence[int], first: int) -> Logits:
        """The rows first ... T-1 of `logits`, one token at a time through the cache; see `LogitsEngine`."""
        tokens = self._checked(ids)
        if not 0 <= first < len(tokens):
            raise InputError(f"The first row must be from 0 to {len(tokens) - 1}, not {first}.")
        with self._lock:
            cache = self._new_cache()
            if first:
                self._run(cache, tokens[:first], 0, slice(0, 0))
            stepped = [self._run(cache, tokens[t : t + 1], t, slice(None)) for t in range(first, len(tokens))]
        return np.concatenate(stepped)

    def score(self, requests: Sequence[ScoreRequest], *, mode: ScoreMode = "strict") -> list[Scored]:
        """Log probabilities of each response given its prefix; one by one in either mode.

        Raises:
            InputError: an id outside the vocabulary.
            ContextOverflow: prefix and response together longer than the context.
            ConfigError: a decoding or a mode that means nothing.
        """
        self._check_open()
        check_mode(mode)
        n_ctx, n_vocab = self.info.n_ctx, self.info.n_vocab
        asked = [check_score(n, request, n_ctx=n_ctx, n_vocab=n_vocab) for n, request in enumerate(requests)]
        return [self._score(each) for each in asked]

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[Event]:
        """Generate the requests one after another; events come as they happen, `Generation` last for each.

        Raises:
            InputError: an empty prompt, or an id outside the vocabulary.
            ContextOverflow: a prompt longer than the context.
            ConfigError: sampling settings that mean nothing, or penalties.
            SchemaError: a schema or a grammar.
        """
        self._check_open()
        prompts = []
        for number, request in enumerate(requests):
            check_request(number, request, n_ctx=self.info.n_ctx)
            where = f"Request {number}, prompt"
            prompts.append(checked_ids(request.prompt_ids, self.info.n_vocab, where).tolist())
            if penalised(request.params):
                raise ConfigError(f"The {self.info.provider} engine draws without penalties; llama_cpp has them.")
            if request.schema is not None or request.grammar is not None:
                raise SchemaError(
                    f"The {self.info.provider} engine holds no schema and no grammar; load the model with llama_cpp."
                )
        return self._events(requests, prompts)

    def _events(self, requests: Sequence[GenerateRequest], prompts: Sequence[list[int]]) -> Iterator[Event]:
        submitted = time.monotonic()
        for number, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
            yield from self._generate(number, request, prompt, submitted)

    def _generate(self, number: int, request: GenerateRequest, prompt: list[int], submitted: float) -> Iterator[Event]:
        params = request.params
        seed = params.seed if params.seed is not None else secrets.randbelow(LARGEST_SEED + 1)
        random = np.random.default_rng(seed)
        room = self.info.n_ctx - len(prompt)
        limit = room if params.max_tokens is None else min(params.max_tokens, room)
        stops = frozenset() if params.ignore_eos else self.info.stop_ids
        text = TextStream(params.stop)
        ids: list[int] = []
        pieces: list[str] = []
        logprobs: list[TokenLogprob] = []
        began = first = last = time.monotonic()
        reason: FinishReason | None = _ended(request) or ("length" if limit == 0 else None)
        cache = self._new_cache()
        while reason is None:
            start = len(prompt) + len(ids) - 1 if ids else 0
            with self._lock:
                self._check_open()
                (row,) = self._run(cache, ids[-1:] or prompt, start, slice(-1, None))
            id, logprob = draw(row, request, random)
            last = time.monotonic()
            first = first if ids else last
            ids.append(id)
            if id in stops:
                piece, reason = "", "stop"
            else:
                piece = text.push(self.token_bytes(id))
                reason = "stop" if text.stopped else "length" if len(ids) == limit else _ended(request)
            piece += text.finish() if reason is not None else ""
            pieces.append(piece)
            if logprob is not None:
                logprobs.append(logprob)
            yield Token(number, id, piece, logprob)
        yield Generation(
            request=number,
            text="".join(pieces),
            ids=tuple(ids),
            finish_reason=reason,
            logprobs=None if request.logprobs is None else tuple(logprobs),
            usage=Usage(fresh=len(prompt) if ids else 0, output=len(ids)),
            timings=Timings(queued=began - submitted, prompt=first - began, generation=last - first),
            seed=seed,
        )

    def _score(self, asked: Asked) -> Scored:
        if asked.end <= asked.first:
            return scored(joined([], asked.decodings), unscored=len(asked.response))
        rows = self.logits(asked.ids.tolist(), rows=slice(asked.first, asked.end))
        reduced = reduce(rows, asked.ids[asked.first + 1 :], asked.decodings)
        return scored(reduced, unscored=len(asked.response) - len(reduced.raw))

    def _checked(self, ids: Sequence[int]) -> list[int]:
        self._check_open()
        found: list[int] = checked_text(ids, self.info.n_vocab, n_ctx=self.info.n_ctx).tolist()
        return found


def draw(row: Logits, request: GenerateRequest, random: np.random.Generator) -> tuple[int, TokenLogprob | None]:
    """The next token from one row of logits, in llama.cpp's order: top-k, top-p, min-p, temperature, draw.

    Raises:
        EngineError: the logits are not finite.
    """
    logits = row.astype(np.float64)
    if not np.isfinite(logits).all():
        raise EngineError("The model's logits are not finite: its weights are damaged, or its dtype is too narrow.")
    raw = _log_softmax(logits)
    if request.params.temperature == 0:
        id, sampled = int(logits.argmax()), 0.0
    else:
        kept = np.flatnonzero(_kept(raw, request))
        scaled = _log_softmax(raw[kept] / request.params.temperature)
        choice = int(random.choice(len(kept), p=np.exp(scaled)))
        id, sampled = int(kept[choice]), float(scaled[choice])
    if request.logprobs is None:
        return id, None
    best = np.argsort(-raw, kind="stable")[: request.logprobs]
    return id, TokenLogprob(id, float(raw[id]), sampled, tuple((int(i), float(raw[i])) for i in best))


def default_context(checkpoint: Checkpoint, n_ctx: int | None) -> int:
    """Tokens of one sequence: as asked, or what the model was trained for, at most 4096.

    Raises:
        ConfigError: no whole number above 0.
    """
    if n_ctx is None:
        return min(checkpoint.config.max_seq_len, DEFAULT_CONTEXT)
    if isinstance(n_ctx, bool) or not isinstance(n_ctx, int) or n_ctx < 1:
        raise ConfigError(f"n_ctx must be a whole number above 0, not {n_ctx!r}.")
    return n_ctx


def check_memory(checkpoint: Checkpoint, size: int) -> None:
    """Refuse weights of `size` bytes that do not fit, before they are read.

    Raises:
        OutOfMemory: with both numbers.
    """
    free = available_memory()
    if free is not None and size > free:
        raise OutOfMemory(
            f"The weights of {checkpoint.path} take {size / 2**30:.2f} GiB here and {free / 2**30:.2f} GiB are free."
        )


def _log_softmax(logits: Logits) -> Logits:
    """In float64."""
    shifted = logits - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def _kept(raw: Logits, request: GenerateRequest) -> Logits:
    """Which tokens the truncations leave, as booleans."""
    params = request.params
    order = np.argsort(-raw, kind="stable")
    if params.top_k:
        order = order[: params.top_k]
    p = np.exp(raw[order])
    p /= p.sum()
    before = np.cumsum(p) - p
    order = order[(before < params.top_p) & (p >= params.min_p * p[0])]
    kept = np.zeros(len(raw), bool)
    kept[order] = True
    return kept


def _ended(request: GenerateRequest) -> FinishReason | None:
    if request.cancel is not None and request.cancel.is_set():
        return "cancelled"
    return "deadline" if request.deadline is not None and time.monotonic() >= request.deadline else None
