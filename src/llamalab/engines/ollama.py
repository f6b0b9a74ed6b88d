"""Ollama's own API. Its copy of OpenAI's cannot set the context, whose default cuts conversations without a word."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from llamalab.engine import FinishReason, SamplingParams, Timings, Usage
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
from llamalab.errors import ProviderError, ProviderUnavailable

_NANOSECONDS = 1e-9


class OllamaShape:
    """See `Shape`."""

    path = "/api/chat"
    means: tuple[Means, ...] = ("schema", "json", "none")

    def body(self, asked: Asked) -> dict[str, Any]:
        """The options say everything: what is left out is taken from the model's own file."""
        options: dict[str, Any] = {"num_ctx": asked.n_ctx}
        if asked.params is not None:
            options |= _options(asked.params)
        body: dict[str, Any] = {
            "model": asked.model,
            "messages": list(asked.messages),
            "stream": asked.stream,
            # Servers that know these refuse what does not fit; older ones cut it, and are found out by their counts.
            "truncate": False,
            "shift": False,
            "options": options,
        }
        if asked.schema is not None and asked.means != "none":
            body["format"] = dict(asked.schema) if asked.means == "schema" else "json"
        return without(body, asked.without, self.neutral()) | dict(asked.extra)

    def neutral(self) -> Mapping[str, Any]:
        """See `Shape`."""
        return {"truncate": False, "shift": False}

    def said(self, answer: Any, where: str) -> Said:
        """See `Shape`."""
        found = _checked(answer, where)
        if found.get("done") is not True:
            raise broken_off(where)
        message = found.get("message")
        if not isinstance(message, Mapping):
            raise wrong_shape(where, "there is no message")
        text, thought = text_of(message.get("content"), where), text_of(message.get("thinking"), where)
        return _record(found, text, thought)

    def pieces(self, lines: Iterable[bytes], where: str) -> Iterator[str | Said]:
        """See `Shape`."""
        text: list[str] = []
        thought: list[str] = []
        for line in lines:
            if not line.strip():
                continue
            found = _checked(object_of(line, where), where)
            message = found.get("message")
            if isinstance(message, Mapping):
                thought.append(text_of(message.get("thinking"), where))
                if piece := text_of(message.get("content"), where):
                    text.append(piece)
                    yield piece
            if found.get("done") is True:
                yield _record(found, "".join(text), "".join(thought))
                return
        raise broken_off(where)

    def context_length(self, connection: Connection, model: str, *, end: float) -> int | None:
        """What the model was trained for."""
        answer = connection.post("/api/show", {"model": model}, end=end, retries=0)
        info = answer.get("model_info") if isinstance(answer, Mapping) else None
        if not isinstance(info, Mapping):
            return None
        return next((count(value) for name, value in info.items() if str(name).endswith(".context_length")), None)


def _options(params: SamplingParams) -> dict[str, Any]:
    options: dict[str, Any] = {
        "num_predict": -1 if params.max_tokens is None else params.max_tokens,
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "repeat_penalty": params.repeat_penalty,
        "repeat_last_n": params.penalty_last_n,
        "frequency_penalty": params.frequency_penalty,
        "presence_penalty": params.presence_penalty,
    }
    if params.seed is not None:
        options["seed"] = params.seed
    if params.stop:
        options["stop"] = list(params.stop)
    return options


def _checked(answer: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(answer, Mapping):
        raise wrong_shape(where, "no object")
    if "choices" in answer:
        raise ProviderError(
            f"{where} is no ollama: it answers as OpenAI's API does (llama-server does so). Set provider_type to "
            '"openai" and let base_url end in /v1.'
        )
    if answer.get("error"):
        raise ProviderUnavailable(f"{where} gave up: {' '.join(str(answer['error']).split())[:300]}")
    return answer


def _record(found: Mapping[str, Any], text: str, thought: str) -> Said:
    reason: FinishReason = "length" if found.get("done_reason") == "length" else "stop"
    prompt, output = count(found.get("prompt_eval_count")), count(found.get("eval_count"))
    usage = None
    if prompt is not None and output is not None:
        # It counts thoughts and words together; their lengths say what is whose.
        share = len(thought) / (len(thought) + len(text)) if thought else 0.0
        usage = Usage(fresh=prompt, output=output, reasoning=round(output * share))
    timings = Timings(
        prompt=(count(found.get("prompt_eval_duration")) or 0) * _NANOSECONDS,
        generation=(count(found.get("eval_duration")) or 0) * _NANOSECONDS,
    )
    return Said(text, reason, usage, str(found.get("model", "")), timings)
