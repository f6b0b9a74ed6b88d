"""JSON schemas as token masks, by llguidance.

At every step the mask has one bit per token: those after which the text can still become a document that
the schema allows. Documents are compact (no optional whitespace), so the schema bounds their length as
tightly as it can.
"""

from __future__ import annotations

import json
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from llguidance.llamacpp import lltokenizer_from_vocab

from llamalab.engine import Schema
from llamalab.engines.vocabulary import Vocabulary
from llamalab.errors import EngineError, SchemaError

_COMPACT = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
_KEPT = 32


class Compiler:
    """Compiles schemas for one vocabulary. Building it takes about half a second for 128k tokens."""

    def __init__(self, tokenizer: LLTokenizer, size: int) -> None:
        """Compile for `tokenizer`; `size` is the width of a row of logits."""
        self._tokenizer = tokenizer
        self._size = size
        self._matchers: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def of_llama_cpp(cls, vocabulary: Vocabulary) -> Compiler:
        """For a model file of llama.cpp."""
        ends = _ends(vocabulary.stop_ids if vocabulary.exists else frozenset(), vocabulary.eos_id)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # llguidance calls an old name of the binding
            tokenizer = lltokenizer_from_vocab(vocabulary.pointer, eos_token=ends)
        return cls(tokenizer, vocabulary.size)

    @classmethod
    def of_tokens(
        cls,
        tokens: Sequence[bytes],
        control: frozenset[int],
        stop_ids: frozenset[int],
        eos_id: int | None,
        tokenize: Callable[[str], list[int]],
    ) -> Compiler:
        """For a tokeniser of any kind.

        Args:
            tokens: the bytes of each; names of control tokens.
            control: which of them no text is made of.
            stop_ids: tokens that end a response.
            eos_id: the first among them, if it is one of them.
            tokenize: text to ids.
        """
        ends = _ends(stop_ids, eos_id)
        wrapper = TokenizerWrapper(_Tokens(tokens, control, ends[0], tokenize))
        return cls(LLTokenizer(wrapper, n_vocab=len(tokens), eos_token=ends), len(tokens))

    def compile(self, schema: Schema) -> Constraint:
        """A fresh constraint for one response.

        Raises:
            SchemaError: not JSON, no schema, or one that llguidance cannot compile; says why.
        """
        text = schema_text(schema)
        with self._lock:
            matcher = self._matchers.get(text)
            if matcher is None:
                matcher = self._matchers[text] = self._build(text)
                while len(self._matchers) > _KEPT:
                    self._matchers.popitem(last=False)
            self._matchers.move_to_end(text)
            return Constraint(matcher.deep_copy(), self._size)

    def _build(self, text: str) -> LLMatcher:
        try:
            grammar = LLMatcher.grammar_from_json_schema(text, overrides=_COMPACT)  # type: ignore[arg-type]
            matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        except ValueError as error:
            raise SchemaError(f"The JSON schema cannot be compiled: {error}") from error
        if matcher.is_error():
            raise SchemaError(f"The JSON schema cannot be compiled: {_one_line(matcher.get_error())}")
        return matcher


class Constraint:
    """The state of one response under a schema."""

    __slots__ = ("_address", "_allowed", "_bits", "_bytes", "_forbidden", "_matcher", "_size")

    def __init__(self, matcher: LLMatcher, size: int) -> None:
        self._matcher = matcher
        self._size = size
        self._allowed = np.zeros((size + 31) // 32, dtype=np.int32)
        self._forbidden = np.zeros_like(self._allowed)
        self._bits = self._forbidden.view(np.uint8)
        self._address = self._allowed.ctypes.data
        self._bytes = self._allowed.nbytes

    @property
    def complete(self) -> bool:
        """The document is finished: nothing can follow."""
        return self._matcher.is_stopped()

    def forbidden(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which tokens may not come next, one bool per token.

        Raises:
            EngineError: llguidance gave up (a schema too complex to follow).
        """
        self._matcher.unsafe_compute_mask_ptr(self._address, self._bytes)
        if self._matcher.is_error():
            raise EngineError(f"The schema could not be followed: {_one_line(self._matcher.get_error())}")
        np.invert(self._allowed, out=self._forbidden)
        return np.unpackbits(self._bits, count=self._size, bitorder="little").view(np.bool_)

    def advance(self, token: int) -> None:
        """Take the token that was drawn.

        Raises:
            EngineError: the token was not allowed.
        """
        if not self._matcher.consume_token(token):
            raise EngineError(f"The schema could not be followed: {_one_line(self._matcher.get_error())}")


class _Tokens:
    """A tokeniser in the form that llguidance asks for."""

    bos_token_id: int | None = None

    def __init__(
        self, tokens: Sequence[bytes], control: frozenset[int], eos_id: int, tokenize: Callable[[str], list[int]]
    ) -> None:
        self.tokens = list(tokens)
        self.special_token_ids = sorted(control)
        self.eos_token_id = eos_id
        self._tokenize = tokenize

    def __call__(self, text: str | bytes) -> list[int]:
        return self._tokenize(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)


def schema_text(schema: Schema) -> str:
    """A JSON schema as JSON text.

    Raises:
        SchemaError: not valid JSON, or neither an object nor a boolean.
    """
    value: Any = schema
    if isinstance(schema, str):
        try:
            value = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise SchemaError(f"The JSON schema is not valid JSON: {error}.") from error
    if not isinstance(value, Mapping | bool):
        raise SchemaError(f"A JSON schema is an object, not {type(value).__name__}.")
    try:
        return json.dumps(value if isinstance(value, bool) else dict(value), ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise SchemaError(f"The JSON schema is not valid JSON: {error}.") from error


def _ends(stop_ids: frozenset[int], eos_id: int | None) -> list[int]:
    """Tokens that end a document, the proper one first.

    Raises:
        SchemaError: there are none.
    """
    if not stop_ids:
        raise SchemaError("This model has no end-of-text token, so no schema can be enforced.")
    return sorted(stop_ids, key=lambda end: end != eos_id)


def _one_line(message: str) -> str:
    return " ".join(message.split())[:400] or "unknown reason"
