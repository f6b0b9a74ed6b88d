"""Chats in the shape of OpenAI's API: OpenAI itself, DeepSeek, Fireworks, llama-server, vLLM, LM Studio, LiteLLM."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llamalab.engine import FinishReason, SamplingParams, Usage
from llamalab.engines.connection import Connection
from llamalab.engines.remote_shape import (
    Asked,
    Means,
    Said,
    broken_off,
    count,
    object_of,
    text_of,
    without,
    wrong_shape,
)
from llamalab.errors import ConfigError, ProviderError, ProviderUnavailable

_NEUTRAL: Mapping[str, Any] = {
    "top_k": 0,
    "min_p": 0.0,
    "top_p": 1.0,
    "temperature": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "stream_options": {"include_usage": True},
}
"""Fields that not every server of this shape knows. They are sent all the same: llama-server has its own defaults."""

_CONTEXT = ("max_model_len", "n_ctx", "context_length", "context_window", "max_context_length")
_TEMPORARY = "insufficient_system_resource"  # DeepSeek's word for an answer that it stopped for want of machines


@dataclass(frozen=True, slots=True)
class OpenAIShape:
    """See `Shape`.

    Attributes:
        means: see `Shape`.
        open: takes fields beyond OpenAI's own: top_k, min_p, repeat_penalty.
    """

    means: tuple[Means, ...] = ("schema", "strict", "json", "none")
    open: bool = True
    path: str = "/chat/completions"

    def body(self, asked: Asked) -> dict[str, Any]:
        """See `Shape`.

        Raises:
            ConfigError: a way to draw that the server does not have.
        """
        body: dict[str, Any] = {"model": asked.model, "messages": list(asked.messages), "stream": asked.stream}
        if asked.stream:
            body["stream_options"] = {"include_usage": True}
        if asked.params is not None:
            body |= self._sampling(asked.params)
        if asked.schema is not None and asked.means in ("schema", "strict"):
            schema = asked.schema if asked.strict is None else asked.strict.schema
            held = {"name": "answer", "strict": True, "schema": dict(schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": held}
        elif asked.schema is not None and asked.means == "json":
            body["response_format"] = {"type": "json_object"}
        if "max_tokens" in asked.without and "max_tokens" in body:  # the name that OpenAI's later models insist on
            body["max_completion_tokens"] = body["max_tokens"]
        return without(body, asked.without, _NEUTRAL) | dict(asked.extra)

    def neutral(self) -> Mapping[str, Any]:
        """See `Shape`."""
        return _NEUTRAL

    def said(self, answer: Any, where: str) -> Said:
        """See `Shape`."""
        found = _checked(answer, where)
        choice = _choice(found, where)
        message = choice.get("message")
        if not isinstance(message, Mapping):
            raise wrong_shape(where, "there is no message")
        text = text_of(message.get("content"), where)
        if not text and message.get("refusal"):
            raise ProviderError(f"{where} declines to answer: {' '.join(str(message['refusal']).split())[:300]}")
        usage = _usage(found)
        return Said(text, _reason(choice.get("finish_reason"), where, usage), usage, str(found.get("model", "")))

    def pieces(self, lines: Iterable[bytes], where: str) -> Iterator[str | Said]:
        """See `Shape`."""
        text: list[str] = []
        ended, model, usage = None, "", None
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                break
            found = _checked(object_of(data, where), where)
            model = str(found.get("model") or model)
            usage = _usage(found) or usage
            if not found.get("choices"):  # the last one holds the counts alone
                continue
            choice = _choice(found, where)
            delta = choice.get("delta")
            if isinstance(delta, Mapping) and (piece := text_of(delta.get("content"), where)):
                text.append(piece)
                yield piece
            ended = choice.get("finish_reason") or ended
        if ended is None:
            raise broken_off(where)
        yield Said("".join(text), _reason(ended, where, usage), usage, model)

    def context_length(self, connection: Connection, model: str, *, end: float) -> int | None:
        """See `Shape`; vLLM, llama-server and some services tell it with the list of their models."""
        answer = connection.get("/models", end=end, retries=0)
        rows = answer.get("data") if isinstance(answer, Mapping) else None
        known = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
        row = next((row for row in known if row.get("id") == model), known[0] if len(known) == 1 else {})
        meta = row.get("meta")
        facts = {**(meta if isinstance(meta, Mapping) else {}), **row}
        return next((found for name in _CONTEXT if (found := count(facts.get(name)))), None)

    def _sampling(self, params: SamplingParams) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "temperature": params.temperature,
            "top_p": params.top_p,
            "frequency_penalty": params.frequency_penalty,
            "presence_penalty": params.presence_penalty,
        }
        beyond = {
            "top_k": (params.top_k, 0),
            "min_p": (params.min_p, 0.0),
            "repeat_penalty": (params.repeat_penalty, 1),
        }
        for name, (value, off) in beyond.items():
            if value != off and not self.open:
                raise ConfigError(f"This provider has no {name}. Leave it out.")
            if value != off or (self.open and name in _NEUTRAL):
                fields[name] = value
        if params.max_tokens is not None:
            fields["max_tokens"] = params.max_tokens
        if params.seed is not None:
            fields["seed"] = params.seed
        if params.stop:
            fields["stop"] = list(params.stop)
        return fields


def _checked(answer: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(answer, Mapping):
        raise wrong_shape(where, "no object")
    if (error := answer.get("error")) and not answer.get("choices"):
        said = error.get("message", error) if isinstance(error, Mapping) else error
        raise ProviderUnavailable(f"{where} gave up: {' '.join(str(said).split())[:300]}")
    return answer


def _choice(found: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    choices = found.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise wrong_shape(where, "there are no choices")
    return choices[0]


def _reason(name: Any, where: str, usage: Usage | None) -> FinishReason:
    if name == "content_filter":
        raise ProviderError(f"{where} withholds the answer: its content filter stopped it.")
    if name == _TEMPORARY:
        raise ProviderUnavailable(f"{where} stopped the answer for want of machines.", usage=usage)
    return "length" if name in ("length", "max_tokens") else "stop"


def _usage(found: Mapping[str, Any]) -> Usage | None:
    """Tokens as the server counts them; None where it does not."""
    usage = found.get("usage")
    if not isinstance(usage, Mapping):
        return None
    prompt, output = count(usage.get("prompt_tokens")), count(usage.get("completion_tokens"))
    if prompt is None or output is None:
        return None
    cached = count(usage.get("prompt_cache_hit_tokens"))  # DeepSeek
    if cached is None:
        cached = count(_inner(usage, "prompt_tokens_details").get("cached_tokens"))
    if cached is None:
        cached = count(_inner(found, "timings").get("cache_n"))  # llama-server
    cached = min(cached or 0, prompt)
    reasoning = count(_inner(usage, "completion_tokens_details").get("reasoning_tokens")) or 0
    return Usage(prompt - cached, cached, output, min(reasoning, output))


def _inner(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = found.get(name)
    return value if isinstance(value, Mapping) else {}
