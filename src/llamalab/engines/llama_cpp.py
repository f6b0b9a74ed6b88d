"""The llama.cpp engine: GGUF files, on the low-level API of llama-cpp-python.

Many requests run at once (`schedule.py`), draws are llama.cpp's own (`sampling.py`), JSON schemas are held
by token masks (`constrain.py`). The same seed gives the same text every time a request runs alone; beside
others, sums are formed in another order and the last bits of the logits differ.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamalab.engine import Event, GenerateRequest, ModelInfo
from llamalab.engines import machine
from llamalab.engines.adapted import AdaptedModel
from llamalab.engines.batch_scorer import FAST_TEXTS, SEQUENCES, BatchScorer
from llamalab.engines.context import context_length, context_parameters, on_gpu, padded, sequences
from llamalab.engines.events import EventStream
from llamalab.engines.gguf_header import Header
from llamalab.engines.kernels import kernels_for, offered
from llamalab.engines.model_info import describe
from llamalab.engines.native import api, forget_errors, native_reason
from llamalab.engines.options import Options, parse_options
from llamalab.engines.request import check_mode, check_request, check_score, checked_ids, checked_text
from llamalab.engines.response import Queue, Response
from llamalab.engines.sampling import Sampler
from llamalab.engines.schedule import Scheduler
from llamalab.engines.scorer import ROWS, Scorer, score_window, strict_options
from llamalab.engines.weights import checked_header, weight_bytes
from llamalab.errors import ConfigError, EngineError, InputError, ModelFileError, OutOfMemory
from llamalab.scored import Scored, ScoreMode, ScoreRequest

if TYPE_CHECKING:
    import numpy as np

    from llamalab.engines.llama_cpp_logits import BlockOutputs, LogitsReader
    from llamalab.engines.request import Ids


class LlamaCppEngine:
    """A GGUF model behind llama.cpp; an `Engine`. A context manager: leaving it closes the engine.

    Args:
        path: the .gguf file; of a split model, any part.
        options: see `llamalab.engines.options.Options`.

    Raises:
        ConfigError: an unknown option, or one that cannot be.
        ModelNotFound: no such file.
        ModelFileError: a file that cannot be run; says why.
        OutOfMemory: weights and context do not fit, with both numbers.
    """

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        self._closed = True
        self._lock = threading.RLock()  # the collector may close an engine while another one closes
        self.options = parse_options(options)
        file = Path(path).expanduser().absolute()
        header = checked_header(file, vocab_only=self.options.vocab_only)
        self._n_ctx = context_length(header, self.options)
        self._n_seq = sequences(header, self.options, self._n_ctx)
        if not self.options.vocab_only:
            _check_memory(file, header, self.options, self._n_ctx, self._n_seq)
        kernels = kernels_for(header, self.options, scoring=self._n_seq == 0)
        self._model = AdaptedModel(file, header, self.options, kernels)
        self._weights = self._model.weights
        self._scored: AdaptedModel | None = None  # the same weights, where scoring wants them in another form
        self._contexts: list[int] = []
        self._scheduler: Scheduler | None = None
        self._scorers: dict[str, Scorer | BatchScorer] = {}
        self._reader: LogitsReader | None = None
        try:
            if not self.options.vocab_only:
                self._start()
            self._info = describe(self._weights, file, self._n_ctx)
        except BaseException:
            self._free()
            raise
        self._closed = False

    @property
    def info(self) -> ModelInfo:
        """What the loaded model is."""
        return self._info

    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Token ids of `text`, no BOS; with `parse_special` the text of a control token becomes that token.

        Raises:
            InputError: text that is not valid Unicode, with the position.
        """
        self._check_open()
        return self._weights.vocabulary.tokenize(text, parse_special=parse_special)

    def detokenize(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Text of `ids`; control tokens are left out unless `special`. Broken UTF-8 becomes U+FFFD."""
        self._check_open()
        return self._weights.vocabulary.detokenize(ids, special=special)

    def token_bytes(self, id: int, *, special: bool = False) -> bytes:
        """The bytes of one token, possibly half a character."""
        self._check_open()
        return self._weights.vocabulary.bytes_of(id, special=special)

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[Event]:
        """Generate all requests together; events come as they happen, `Generation` last for each.

        Everything is checked before this returns. Closing the iterator (`close()`), or leaving it to the
        garbage collector, ends what is still in progress.

        Raises:
            InputError: an empty prompt, or an id outside the vocabulary.
            ContextOverflow: a prompt longer than the context.
            SchemaError: a schema or grammar that cannot be compiled.
            ConfigError: sampling settings that mean nothing.
        """
        scheduler = self._running()
        queue: Queue = deque()
        responses: list[Response] = []
        try:
            for number, request in enumerate(requests):
                responses.append(self._prepare(number, request, queue))
            scheduler.submit(responses)
        except BaseException:
            for response in responses:
                response.sampler.free()
            raise
        return EventStream(scheduler, responses, queue)

    def score(self, requests: Sequence[ScoreRequest], *, mode: ScoreMode = "strict") -> list[Scored]:
        """Log probabilities of each response given its prefix, in one pass; prefixes that requests share, once.

        Raises:
            InputError: an id outside the vocabulary.
            ContextOverflow: prefix and response together longer than the context.
            ConfigError: a decoding or a mode that means nothing.
        """
        self._check_loaded()
        size = self._weights.vocabulary.size
        asked = [check_score(n, request, n_ctx=self._n_ctx, n_vocab=size) for n, request in enumerate(requests)]
        return self._scorer_of(mode).score(asked)

    def logits(self, ids: Sequence[int], *, rows: slice | None = None) -> np.ndarray[Any, Any]:
        """Logits of one full forward pass over `ids`; see `LogitsEngine`. Prompts of over `n_batch` run in batches."""
        tokens = self._checked_ids(ids)
        begin, end, _ = (rows or slice(None)).indices(len(tokens))
        return self._logits_reader().rows(tokens, begin, max(begin, end))

    def stepped_logits(self, ids: Sequence[int], first: int) -> np.ndarray[Any, Any]:
        """The rows first ... T-1 of `logits`, one token at a time through the cache; see `LogitsEngine`."""
        tokens = self._checked_ids(ids)
        if not 0 <= first < len(tokens):
            raise InputError(f"The first row must be from 0 to {len(tokens) - 1}, not {first}.")
        return self._logits_reader().stepped(tokens, first)

    def hidden(self, ids: Sequence[int]) -> list[np.ndarray[Any, Any]] | None:
        """The residual stream after each block, float32, (T, D) each; None for what llama.cpp names otherwise."""
        return self._logits_reader().hidden(self._checked_ids(ids)) or None

    def close(self) -> None:
        """Free everything. Any later call raises `EngineError`."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._free()

    def __enter__(self) -> LlamaCppEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _prepare(self, number: int, request: GenerateRequest, queue: Queue) -> Response:
        vocabulary = self._weights.vocabulary
        check_request(number, request, n_ctx=self._n_ctx)
        prompt = checked_ids(request.prompt_ids, vocabulary.size, f"Request {number}, prompt")
        constraint = None if request.schema is None else self._weights.compiler.compile(request.schema)
        sampler = Sampler(request, vocabulary, constraint, n_ctx=self._n_ctx)
        return Response(number, request, prompt, sampler, queue, n_ctx=self._n_ctx, stop_ids=vocabulary.stop_ids)

    def _checked_ids(self, ids: Sequence[int]) -> Ids:
        self._check_loaded()
        return checked_text(ids, self._weights.vocabulary.size, n_ctx=self._n_ctx)

    def _scorer_of(self, mode: ScoreMode) -> Scorer | BatchScorer:
        """What scores in this mode, on a context of its own; made at first use."""
        check_mode(mode)
        with self._lock:
            self._check_open()
            if mode not in self._scorers:
                self._scorers[mode] = self._new_scorer(mode)
            return self._scorers[mode]

    def _new_scorer(self, mode: ScoreMode) -> Scorer | BatchScorer:
        size, movable = self._weights.vocabulary.size, self._movable
        if mode == "fast" and movable:
            window, cells = score_window(size, self.options), FAST_TEXTS * padded(self._n_ctx)
            context = self._new_context(SEQUENCES, window, cells=cells, model=self._scored_model())
            return BatchScorer(context, size, window=window, n_batch=api.llama_n_batch(context), cells=cells)
        options = strict_options(self.options) if mode == "strict" else self.options
        window, fill = score_window(size, options), ROWS if mode == "strict" and movable else 1
        context = self._new_context(1, window, options=options, spare=fill - 1, model=self._scored_model())
        return Scorer(context, size, window=window, n_batch=api.llama_n_batch(context), fill=fill, movable=movable)

    def _scored_model(self) -> AdaptedModel:
        """The model as scores are made with it, whether the engine generates as well or not."""
        kernels = kernels_for(self._weights.header, self.options, scoring=True)
        if kernels == self._model.kernels:
            return self._model
        if self._scored is None:
            self._model.check_unchanged()
            _check_copy(self._weights.path, self.options)
            self._scored = AdaptedModel(self._weights.path, self._weights.header, self.options, kernels)
        return self._scored

    def _logits_reader(self) -> LogitsReader:
        from llamalab.engines.llama_cpp_logits import BlockOutputs, LogitsReader

        with self._lock:
            self._check_open()
            if self._reader is None:
                size = self._weights.vocabulary.size
                window = score_window(size, self.options)
                tap = BlockOutputs()
                context = self._new_context(1, window, tap=tap)
                batch = api.llama_n_batch(context)
                self._reader = LogitsReader(context, size, window=window, n_batch=batch, tap=tap)
            return self._reader

    def _start(self) -> None:
        """Context and scheduler."""
        options, model = self.options, self._weights.model
        self._movable = not (api.llama_model_is_recurrent(model) or api.llama_model_is_hybrid(model))
        if not self._n_seq:
            return
        context = self._new_context(self._n_seq, options.n_outputs_max or self._n_seq, generating=True)
        self._scheduler = Scheduler(
            context,
            self._weights.vocabulary,
            n_seq=self._n_seq,
            n_batch=api.llama_n_batch(context),
            movable=self._movable,
            keep=options.cache_prompts,
        )

    def _new_context(
        self,
        n_seq: int,
        n_outputs: int,
        *,
        tap: BlockOutputs | None = None,
        options: Options | None = None,
        spare: int = 0,
        cells: int | None = None,
        model: AdaptedModel | None = None,
        generating: bool = False,
    ) -> int:
        """A context for `n_seq` sequences: each with a cache of its own, or all in one of so many `cells`."""
        options, model = options or self.options, model or self._model
        n_ctx = self._n_ctx + spare
        params = context_parameters(self._weights.header, options, n_ctx=n_ctx, n_seq=n_seq, n_outputs=n_outputs)
        if cells is not None:
            params.n_ctx, params.kv_unified = cells, True
        if tap is not None:
            params.cb_eval = tap.callback
        forget_errors()
        with offered(model.kernels, generating=generating):
            context = api.llama_init_from_model(model.weights.model, params)
        if not context:
            reason = native_reason()
            if "alloc" in reason:
                raise OutOfMemory(f"A context of {n_ctx} tokens for {n_seq} sequences does not fit ({reason}).")
            raise ConfigError(f"llama.cpp cannot run the model with these options: {reason}.")
        self._contexts.append(context)
        if not api.llama_get_memory(context):
            raise ModelFileError(f"{self._weights.path} is no model that continues a text (an embedding model?).")
        if api.llama_n_ctx(context) != params.n_ctx or api.llama_n_ctx_seq(context) != (cells or padded(n_ctx)):
            raise EngineError(
                f"llama.cpp made a context of {api.llama_n_ctx(context)} tokens where {params.n_ctx} were asked for: "
                "binding and library do not fit together. Install llama-cpp-python>=0.3.36,<0.3.37."
            )
        model.adapt(context)
        return int(context)

    def _running(self) -> Scheduler:
        self._check_open()
        self._check_loaded()
        if self._scheduler is None:
            raise EngineError("The model was loaded with n_seq=0: it can score and show its logits, not generate.")
        return self._scheduler

    def _check_loaded(self) -> None:
        self._check_open()
        if self.options.vocab_only:
            raise EngineError("The model was loaded with vocab_only=True: it can tokenise text, nothing else.")

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("This engine is closed.")

    def _free(self) -> None:
        if self._scheduler is not None:
            self._scheduler.close()
        for scorer in self._scorers.values():
            scorer.close()
        if self._reader is not None:
            self._reader.close()
        for context in self._contexts:
            api.llama_free(context)
        self._contexts = []
        if self._scored is not None:
            self._scored.free()
        self._model.free()


def _check_memory(path: Path, header: Header, options: Options, n_ctx: int, n_seq: int) -> None:
    """Refuse what cannot be allocated, before anything is.

    A mapped file needs no memory of its own, and with a GPU the memory is not this one: neither is counted.
    """
    if on_gpu(options):
        return
    cache = header.cache_bytes(padded(n_ctx), options.type_k, options.type_v) * n_seq
    weights = weight_bytes(path) if options.load_mode in ("read", "mlock") else 0
    available = machine.available_memory()
    if available is not None and cache + weights > available:
        parts = [f"the KV cache of {n_seq} x {n_ctx} tokens {_gib(cache)}"] + [f"the weights {_gib(weights)}"] * (
            weights > 0
        )
        raise OutOfMemory(
            f"{path.name} needs {_gib(cache + weights)} of memory ({', '.join(parts)}) and {_gib(available)} are free. "
            "Use a smaller n_ctx or n_seq, a cache of type_k='q8_0' and type_v='q8_0', or a smaller model."
        )


def _check_copy(path: Path, options: Options) -> None:
    """Refuse to read the weights a second time, in the form that scores want, where they do not fit."""
    available = machine.available_memory()
    size = weight_bytes(path) if options.load_mode in ("read", "mlock") and not on_gpu(options) else 0
    if available is not None and size > available:
        raise OutOfMemory(
            f"Scores take the weights of {path.name} as they lie in the file, beside those that texts are written "
            f"with, and need {_gib(size)} more; {_gib(available)} are free. Open an engine for scores alone (n_seq=0), "
            "map the file (load_mode='mmap'), or score with kernels='repacked'."
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
