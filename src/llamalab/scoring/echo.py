"""Which tokens of a repeated text are the response: found by character offset, and held against the tokens' own texts.

Offsets are counted from the end of the repeated text. At its beginning endpoints differ: some show BOS and count its
letters, some leave control tokens out of the text that they count in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

from llamalab.errors import ProviderError, TokenBoundaryError
from llamalab.scoring.completion import Completion

NO_LOGPROB = -9999.0
"""What endpoints write for minus infinity, which JSON does not have."""


def repeated(completion: Completion, text: str, *, where: str) -> int:
    """How many of a completion's tokens repeat `text`; those after them were generated.

    Raises:
        ProviderError: the endpoint did not repeat it.
    """
    listed = len(completion.tokens)
    count = listed - completion.n_generated
    # Some leave out the generated tokens, though they count them.
    if listed <= completion.n_prompt and not _ends_with(text, completion.tokens[:count]):
        count = listed if _ends_with(text, completion.tokens) else count
    # One control token in front, BOS, may be left out of the list.
    if text not in completion.text or count <= 0 or not completion.n_prompt - 1 <= count <= completion.n_prompt:
        raise ProviderError(
            f"{where} does not repeat the prompt with its log probabilities, though asked to (echo). The methods echo "
            "and continuation need that; llama-server, for one, does not have it."
        )
    return count


def response_tokens(
    completion: Completion,
    prompt: str,
    response: str,
    end: str = "",
    *,
    where: str,
    count_prompt: Callable[[], int] | None = None,
) -> range:
    """The positions of a response's tokens in a completion that repeats `prompt + response + end`.

    Args:
        completion: the endpoint's answer.
        prompt: text in front of the response.
        response: text to score, not empty.
        end: text of the control token behind it, "" for none; it is the last of the positions returned.
        where: the answer came from, for messages.
        count_prompt: asks the endpoint how many tokens the prompt alone has; for a response that begins with half a
            character behind control tokens without a text, where offsets do not decide.

    Raises:
        ProviderError: the endpoint did not repeat the text, or its tokens are not the text's.
        TokenBoundaryError: a token spans the end of the prompt and the beginning of the response.
    """
    last = repeated(completion, prompt + response + end, where=where)
    if end:
        last -= 1
        if completion.tokens[last] not in (end, ""):
            raise ProviderError(
                f"{where} reads the end of the response, {end!r}, as ordinary text (its last token is "
                f"{completion.tokens[last]!r}). Name the model's own end token with the option end, or score with "
                "finished=False."
            )
    starts = completion.offsets or tuple(accumulate(map(len, completion.tokens), initial=0))
    stop = starts[last] if last < len(starts) else starts[last - 1] + len(completion.tokens[last - 1])
    begin = stop - len(response)
    found = [position for position in range(last) if starts[position] == begin]
    if not found:
        raise _no_boundary(completion, starts, begin, last, prompt, where)
    # Several tokens begin at one place where all but the last have no text: control tokens of the prompt whose text is
    # left out, or the bytes of the response's first character.
    first = found[-1]
    if len(found) > 1 and not response[0].isascii():
        if count_prompt is None:
            raise _no_boundary(completion, starts, begin, last, prompt, where)
        first = last - (completion.n_prompt - bool(end) - count_prompt())
        if first not in found:
            raise _no_boundary(completion, starts, begin, last, prompt, where)
    _check_texts(completion.tokens[first:last], [*starts[first:last], stop], response, where)
    return range(first, last + bool(end))


def logprobs_at(completion: Completion, positions: range, *, where: str) -> list[float]:
    """The log probabilities at `positions`, nats.

    Raises:
        ProviderError: one is missing, no number, above 0, or stands for minus infinity.
    """
    values: list[float] = []
    for position in positions:
        value = completion.logprobs[position]
        if value is None or not NO_LOGPROB < value <= 1e-3:
            raise ProviderError(
                f"{where} gives {value} as the log probability of the token {completion.tokens[position]!r}: "
                + ("it has none for the first token of a text." if value is None else "that is none.")
            )
        values.append(min(float(value), 0.0))
    return values


def same_beginning(short: Sequence[object], long: Sequence[object]) -> bool:
    """Whether `long` begins with `short`."""
    return len(short) <= len(long) and list(long[: len(short)]) == list(short)


def is_readable(token: str) -> bool:
    """Whether an endpoint's text of a token is the token's text: not so for a part of a character."""
    return bool(token) and "\ufffd" not in token and not token.startswith("bytes:")


def _ends_with(text: str, tokens: Sequence[str]) -> bool:
    """Whether the last of the tokens may be the end of the text."""
    return bool(tokens) and (not is_readable(tokens[-1]) or text.endswith(tokens[-1]))


def _check_texts(tokens: Sequence[str], bounds: Sequence[int], response: str, where: str) -> None:
    """See that the tokens spell the response.

    Raises:
        ProviderError: they do not.
    """
    for number, token in enumerate(tokens):
        begin, end = bounds[number] - bounds[0], bounds[number + 1] - bounds[0]
        if response[begin:end] == token and end >= begin:
            continue
        # A part of a character has no text of its own, or one without that part; the whole character stands there.
        there = response[begin : max(end, begin + 1)]
        if not there.isascii() and (not is_readable(token) or there.endswith(token)):
            continue
        raise ProviderError(
            f"{where} repeats the response as other tokens than its text: {token!r} where {response[begin:end]!r} "
            f"stands (character {begin}). A text that the endpoint changes, or reads as a control token, cannot be "
            "scored there."
        )


def _no_boundary(
    completion: Completion, starts: Sequence[int], begin: int, last: int, prompt: str, where: str
) -> TokenBoundaryError:
    across = [completion.tokens[position] for position in range(last) if starts[position] < begin][-1:]
    return TokenBoundaryError(
        f"{where}: no token begins where the response does, after {prompt[-20:]!r}"
        f"{f' (the token {across[0]!r} spans both)' if across else ''}. In tokens there is no probability of this "
        "response given this prompt; move white space from the end of the prompt to the response, or score with a "
        "local engine."
    )
