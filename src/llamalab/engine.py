"""The waist: what every engine and every chat model is, whatever runs underneath.

`Engine` takes token ids and gives token ids and log probabilities; `ChatModel` takes messages and gives
text. Everything above floor 2 is written against these two protocols and the frozen records here.

Units: log probabilities are natural logarithms (nats); times are seconds; deadlines are absolute values
of `time.monotonic()`. A cancel flag is a `threading.Event`: set it, and the request ends at its next token.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

from llamalab.scored import Scored, ScoreMode, ScoreRequest

if TYPE_CHECKING:
    import numpy as np

FinishReason: TypeAlias = Literal["stop", "length", "deadline", "cancelled"]
"""Why a response ended: by itself or a stop string; at a token limit; at its deadline; by the caller."""

SchemaSupport: TypeAlias = Literal["exact", "json", "none"]
"""exact: no output can break the schema; json: valid JSON, the schema is only asked for; none: neither."""

Schema: TypeAlias = Mapping[str, Any] | str
"""A JSON schema, as a mapping or as JSON text."""

Message: TypeAlias = Mapping[str, Any]
"""One chat message: at least `role` ("system", "user", "assistant", "tool") and `content`."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. The defaults draw from the model's own distribution, unchanged.

    Attributes:
        max_tokens: most tokens to generate; None: until the context is full.
        temperature: 0 takes the most probable token.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set whose mass reaches p; 1 keeps all.
        min_p: keep tokens at least this fraction as probable as the best; 0 keeps all.
        repeat_penalty: divides positive and multiplies negative logits of recent tokens; 1 is off.
        frequency_penalty: subtracted per earlier occurrence, in logits.
        presence_penalty: subtracted once if the token occurred, in logits.
        penalty_last_n: how many recent tokens the penalties look at; -1: the whole context.
        seed: of the sampler; None draws a fresh one (reported in `Generation.seed`).
        stop: strings that end the response; they are not part of it.
        ignore_eos: go on past end-of-generation tokens (for benchmarks).
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_last_n: int = 64
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a loaded model is.

    Attributes:
        name: as the file or the provider calls it.
        provider: "llama_cpp", "jax", ...
        path: the model file or folder, absolute; None where there is none.
        architecture: as the file names it, e.g. "llama".
        n_params: exact number of parameters.
        size_bytes: of the weights.
        context_length: the context the model was trained for, tokens.
        n_ctx: the context one request can use here, tokens.
        n_vocab: size of the vocabulary.
        bos_id: beginning-of-sequence token, None where the model has none.
        eos_id: end-of-sequence token, None where the model has none.
        stop_ids: every token that ends a generation (EOS, end of turn, ...).
        add_bos: the model was trained with BOS in front (nobody adds it silently: see `Engine`).
        special_tokens: text of each control token to its id.
        chat_template: the model's own Jinja template, None where it has none.
        sampling: sampling settings that the file recommends (`SamplingParams` field to value).
    """

    name: str
    provider: str
    path: str | None
    architecture: str
    n_params: int
    size_bytes: int
    context_length: int
    n_ctx: int
    n_vocab: int
    bos_id: int | None
    eos_id: int | None
    stop_ids: frozenset[int]
    add_bos: bool
    special_tokens: Mapping[str, int]
    chat_template: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One response to generate.

    Attributes:
        prompt_ids: the whole prompt, BOS included if the model wants one. Not empty.
        params: how to sample.
        schema: JSON schema that the response must satisfy; decoding is constrained by it.
        grammar: GBNF grammar instead of a schema.
        logprobs: None: no log probabilities; n: those of each chosen token and of the n most probable.
        deadline: `time.monotonic()` value at which the response ends with reason "deadline".
        cancel: when set, the response ends with reason "cancelled".
    """

    prompt_ids: Sequence[int]
    params: SamplingParams = SamplingParams()
    schema: Schema | None = None
    grammar: str | None = None
    logprobs: int | None = None
    deadline: float | None = None
    cancel: threading.Event | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log probabilities of one generated token.

    Attributes:
        id: the token.
        raw: log softmax of the model's logits, nats.
        sampled: under the distribution it was drawn from (after penalties, truncation, temperature and
            constraint), nats; 0.0 when drawn greedily.
        top: the most probable tokens by `raw`, as (id, raw), best first.
    """

    id: int
    raw: float
    sampled: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one reply.

    Attributes:
        fresh: prompt tokens computed for this request.
        cached: prompt tokens taken from a cache.
        output: generated tokens, the one that ended the response included.
        reasoning: the part of `output` that is hidden reasoning.
    """

    fresh: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of one reply.

    Attributes:
        queued: waiting for a free sequence.
        prompt: from the start of the work to the first token.
        generation: from the first token to the last.
    """

    queued: float = 0.0
    prompt: float = 0.0
    generation: float = 0.0


@dataclass(frozen=True, slots=True)
class Token:
    """Event: request number `request` of the call generated token `id`.

    `text` is what became readable by it: never half a character, and nothing that may yet turn out to be
    the beginning of a stop string; so it can be empty, or longer than the token.
    """

    request: int
    id: int
    text: str
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """Event, the last of each request: the whole response.

    Attributes:
        request: number of the request in the call, from 0.
        text: of the response, without stop string and end token; equals the joined `Token.text`.
        ids: every generated token, the end token included where `finish_reason` is "stop" by one.
        finish_reason: why it ended.
        logprobs: one per id, where asked for.
        usage: token counts.
        timings: seconds.
        seed: of the sampler.
        schema_mode: how the schema was held; None where none was given.
    """

    request: int
    text: str
    ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None = None
    usage: Usage = Usage()
    timings: Timings = Timings()
    seed: int | None = None
    schema_mode: SchemaSupport | None = None


Event: TypeAlias = Token | Generation


class Engine(Protocol):
    """One loaded model behind one runtime.

    Batch first: a list of requests is the unit. No call adds a BOS by itself: whoever builds the ids says
    so. All methods may be called from several threads.
    """

    @property
    def info(self) -> ModelInfo: ...

    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Token ids of `text`. With `parse_special`, the text of a control token becomes that token."""
        ...

    def detokenize(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Text of `ids`; control tokens are left out unless `special`. Broken UTF-8 becomes U+FFFD."""
        ...

    def token_bytes(self, id: int, *, special: bool = False) -> bytes:
        """The bytes of one token, possibly half a character."""
        ...

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[Event]:
        """Generate all requests together; events come as they happen, `Generation` last for each.

        Raises:
            InputError: an empty prompt, or an id outside the vocabulary.
            ContextOverflow: a prompt longer than the context. Raised before any work is done.
            SchemaError: a schema or grammar that cannot be compiled.
        """
        ...

    def score(self, requests: Sequence[ScoreRequest], *, mode: ScoreMode = "strict") -> list[Scored]:
        """Log probabilities of each response given its prefix, in one pass over its tokens."""
        ...

    def close(self) -> None:
        """Free everything. Any later call raises `EngineError`."""
        ...


@runtime_checkable
class LogitsEngine(Engine, Protocol):
    """An engine that shows its logits, so that two runtimes of one model can be compared number by number.

    Ids are used as they are: nothing is added in front. A file whose matrices have more rows than the tokeniser has
    tokens gives a logit for each row.
    """

    def logits(self, ids: Sequence[int], *, rows: slice | None = None) -> np.ndarray[Any, Any]:
        """Logits of one full forward pass over `ids`.

        Args:
            ids: T tokens, at least one.
            rows: which of the T rows to return, a slice of step 1; None: all of them. The pass is the same.

        Returns:
            float32, (T, V): row t is what the model expects after ids[0] ... ids[t].

        Raises:
            InputError: no ids, or one outside the vocabulary.
            ContextOverflow: more ids than the context holds.
        """
        ...

    def stepped_logits(self, ids: Sequence[int], first: int) -> np.ndarray[Any, Any]:
        """The rows first ... T-1 of `logits`, from the cache: ids[:first] at once, the rest one token at a time.

        Returns:
            float32, (T - first, V).

        Raises:
            As `logits`; InputError also for a `first` outside 0 ... T-1.
        """
        ...

    def hidden(self, ids: Sequence[int]) -> list[np.ndarray[Any, Any]] | None:
        """The residual stream after each block, float32, (T, D) each; None where the runtime does not show it."""
        ...


@dataclass(frozen=True, slots=True)
class ChatInfo:
    """What a chat model is.

    Attributes:
        name: of the model.
        provider: how it is reached.
        context_length: tokens that prompt and reply may have together.
        schema_support: what a schema given to `chat` is worth.
        sampling: recommended sampling settings (`SamplingParams` field to value).
    """

    name: str
    provider: str
    context_length: int
    schema_support: SchemaSupport
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Number of tokens; `exact` is False where `n` is only an upper bound."""

    n: int
    exact: bool


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a reply while it streams."""

    text: str
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A chat model's whole answer. Attributes as in `Generation`; `model` names who answered."""

    text: str
    ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    model: str
    logprobs: tuple[TokenLogprob, ...] | None = None
    schema_mode: SchemaSupport | None = None
    seed: int | None = None


ChatEvent: TypeAlias = Delta | Reply


class ChatModel(Protocol):
    """Messages in, text out. Safe from several threads."""

    @property
    def info(self) -> ChatInfo: ...

    def count_tokens(self, messages: Sequence[Message]) -> TokenCount:
        """Tokens of the whole prompt that `chat` would send for `messages`."""
        ...

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        schema: Schema | None = None,
        deadline: float | None = None,
        cancel: threading.Event | None = None,
    ) -> Reply:
        """Answer `messages`; `params=None` uses what the model recommends.

        Raises:
            ContextOverflow: the conversation does not fit, with both numbers.
            SchemaError: the schema cannot be compiled.
        """
        ...

    def stream(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        schema: Schema | None = None,
        deadline: float | None = None,
        cancel: threading.Event | None = None,
        logprobs: int | None = None,
    ) -> Iterator[ChatEvent]:
        """As `chat`, in pieces: deltas, then the whole reply."""
        ...

    def close(self) -> None:
        """Free what this chat model holds."""
        ...
