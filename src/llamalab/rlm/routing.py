"""Whether a question is answered directly, from the whole text at once, or by a run, and what decides it.

A run pays its prompt again in every turn. So where a text fits the model's window, it is often cheaper, and more
certain, to show it as it is. Both are predicted in the model's own tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

from llamalab.engine import Message
from llamalab.rlm.answer import Route
from llamalab.rlm.budget import Budget
from llamalab.rlm.protocol import Protocol, direct_messages
from llamalab.rlm.providers import Provider
from llamalab.rlm.text import Context
from llamalab.rlm.tree import Settings, Tree, prompt_tokens

TURNS: Mapping[Protocol, int] = {"compact": 3, "full": 4}
"""Turns of a typical run."""
SAID: Mapping[Protocol, int] = {"compact": 24, "full": 60}
"""Tokens that a root says in a turn."""
SHOWN: Mapping[Protocol, int] = {"compact": 48, "full": 250}
"""Tokens that it is shown after one."""
DIRECT_REPLY = 400
"""Tokens that a direct answer may have."""
_DENSEST = 16  # characters a token has at most, on average over a text


def choose_route(
    tree: Tree, budget: Budget, question: str, context: Context, fence: str, first: list[Message]
) -> Route:
    """Direct or run.

    Args:
        tree: of the run; not of a replay.
        budget: of this run.
        question: that is asked.
        context: documents.
        fence: around data.
        first: the messages that a run would begin with.
    """
    settings = tree.settings
    if not settings.bypass_enabled:
        return Route("rlm", "bypass_enabled is false")
    threshold = settings.bypass_threshold
    if threshold != "auto" and context.n_chars >= threshold:
        return Route("rlm", f"{context.n_chars:,} characters are not below bypass_threshold, {threshold:,}")
    roots = tree.models.of("root")
    window = min(provider.model.info.context_length for provider in roots)
    if context.n_chars > window * _DENSEST:
        return Route("rlm", f"{context.n_chars:,} characters do not fit the window of {window:,} tokens")
    messages = direct_messages(settings.protocol, question, context, fence, answer=settings.answer_schema)
    prompt = prompt_tokens(tree.models, "root", messages)
    direct = prompt + SAID[settings.protocol]
    if prompt + DIRECT_REPLY > window:
        why = f"{prompt:,} tokens do not fit the window of {window:,} with a reply of {DIRECT_REPLY}"
        return Route("rlm", why, direct)
    left = budget.tokens_left
    if left is not None and prompt + DIRECT_REPLY > left:
        return Route("rlm", f"{prompt:,} tokens do not fit max_tokens, of which {left:,} are left", direct)
    run = run_tokens(settings, prompt_tokens(tree.models, "root", first), max(map(_of_cached, roots)))
    if threshold != "auto":
        why = f"{context.n_chars:,} characters are below bypass_threshold, {threshold:,}"
        return Route("direct", why, direct, run)
    if direct <= run:
        why = f"the text fits the window, and a run would cost about {run:,} tokens, not {direct:,}"
        return Route("direct", why, direct, run)
    return Route("rlm", f"a run costs about {run:,} tokens, a direct answer {direct:,}", direct, run)


def run_tokens(settings: Settings, first: int, of_cached: float) -> int:
    """Tokens that a typical run costs.

    Args:
        settings: of the run.
        first: tokens of its first prompt.
        of_cached: what a token costs that the provider has cached, as a share of a fresh one.
    """
    turns, said, shown = TURNS[settings.protocol], SAID[settings.protocol], SHOWN[settings.protocol]
    fresh = first + (turns - 1) * (said + shown)
    again = sum(first + turn * (said + shown) for turn in range(turns - 1))
    return round(fresh + again * of_cached + turns * said)


def _of_cached(provider: Provider) -> float:
    if provider.price_in <= 0 or provider.price_cached is None:
        return 1.0
    return min(provider.price_cached / provider.price_in, 1.0)
