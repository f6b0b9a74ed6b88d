"""What an endpoint of the OpenAI shape answers to `/completions`, as one kind of record.

What differs is the shape of `logprobs`: lists side by side (OpenAI's first one; vLLM, llama-cpp-python, Fireworks with
a number) or one object per token (Fireworks with `true`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llamalab.errors import ProviderError


@dataclass(frozen=True, slots=True)
class Completion:
    """What an endpoint answered.

    Attributes:
        text: the prompt, where it was to be repeated, and what was generated.
        tokens: text of each token, as the endpoint writes it.
        logprobs: of each token, nats; None where the endpoint gives none (the first of a text).
        offsets: where each token begins, in characters; None: the endpoint does not say.
        ids: of the tokens; None: the endpoint does not say.
        n_prompt: tokens of the prompt, as the endpoint counts them (BOS included).
        n_generated: tokens that were generated.
        model: who answered, by its own name.
        tops: most probable tokens at each position, text to nats; empty where there are none. None: not given.
    """

    text: str
    tokens: tuple[str, ...]
    logprobs: tuple[float | None, ...]
    offsets: tuple[int, ...] | None
    ids: tuple[int, ...] | None
    n_prompt: int
    n_generated: int
    model: str
    tops: tuple[Mapping[str, float], ...] | None = None


def parse_completion(answer: Any, *, where: str) -> Completion:
    """An answer's JSON as a record.

    Args:
        answer: the decoded JSON.
        where: it came from, for messages.

    Raises:
        ProviderError: it has another shape.
    """
    try:
        choice, usage = answer["choices"][0], answer["usage"]
        text, found = choice["text"], choice.get("logprobs")
        if not isinstance(found, Mapping):
            raise ProviderError(
                f"{where} gives no log probabilities with completions. Teacher forcing needs an endpoint that repeats "
                "the prompt with them (Fireworks, vLLM, llama-cpp-python with logits_all)."
            )
        rows = found.get("content")
        lists = found if rows is None else _side_by_side(rows)
        tokens, logprobs = tuple(lists["tokens"]), tuple(lists["token_logprobs"])
        offsets, ids = lists.get("text_offset"), lists.get("token_ids")
        completion = Completion(
            text=text,
            tokens=tokens,
            logprobs=logprobs,
            offsets=tuple(offsets) if offsets else None,
            ids=tuple(ids) if ids else None,
            n_prompt=int(usage["prompt_tokens"]),
            n_generated=int(usage.get("completion_tokens") or 0),
            model=str(answer.get("model", "")),
            tops=_tops(lists.get("top_logprobs"), len(tokens)),
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ProviderError(
            f"{where} answers in a shape that is not that of completions ({type(error).__name__}: {error})."
        ) from error
    same = (completion.logprobs, completion.offsets, completion.ids)
    if any(values is not None and len(values) != len(tokens) for values in same):
        raise ProviderError(f"{where} gives {len(tokens)} tokens and another number of values, offsets or ids.")
    if not all(isinstance(token, str) for token in tokens) or not all(map(_is_value, logprobs)):
        raise ProviderError(f"{where} gives tokens that are no text, or log probabilities that are no numbers.")
    return completion


def _side_by_side(rows: Any) -> dict[str, Any]:
    """One object per token as lists."""
    lists: dict[str, Any] = {
        "tokens": [row["token"] for row in rows],
        "token_logprobs": [row.get("logprob") for row in rows],
        "top_logprobs": [{top["token"]: top["logprob"] for top in row.get("top_logprobs") or ()} for row in rows],
    }
    for name, key in (("text_offset", "text_offset"), ("token_ids", "token_id")):
        if all(row.get(key) is not None for row in rows):
            lists[name] = [row[key] for row in rows]
    return lists


def _tops(rows: Any, count: int) -> tuple[Mapping[str, float], ...] | None:
    """The most probable tokens, which only explain a fault: in another shape they are left out."""
    if not isinstance(rows, list) or len(rows) != count:
        return None
    return tuple(row if isinstance(row, Mapping) and all(map(_is_value, row.values())) else {} for row in rows)


def _is_value(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
