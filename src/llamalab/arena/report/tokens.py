"""Which tokens of a response carry its log ratio."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from llamalab.arena.report.words import clean, signed
from llamalab.arena.results import TokenRatio

_LEVELS = (0.1, 0.5, 1.5)
"""Nats from which a token is shaded lightly, more, and most."""


def view(tokens: Sequence[TokenRatio]) -> Markup:
    """A response whose tokens are shaded by what each adds to the log ratio; the number stands in a tooltip."""
    return Markup("").join(_shaded(token) for token in tokens)


def carriers(tokens: Sequence[TokenRatio], most: int = 6) -> list[tuple[str, str]]:
    """The tokens that add or take most: (text, nats in words), the largest first; what is never given comes first."""
    moved = [token for token in tokens if token.log_ratio is None or abs(token.log_ratio) >= _LEVELS[0]]
    moved.sort(key=lambda token: float("-inf") if token.log_ratio is None else -abs(token.log_ratio))
    return [(_shown(clean(token.text)), _nats(token)) for token in moved[:most]]


def _shaded(token: TokenRatio) -> Markup:
    # A line end has no width of its own, so its shade would not be seen.
    text = clean(token.text).replace("\n", "↵\n")
    level = _level(token.log_ratio)
    if not level:
        return Markup("{}").format(text)
    unit = "" if token.log_ratio is None else " nats"
    return Markup('<span class="{}" title="{}{}">{}</span>').format(level, _nats(token), unit, text)


def _level(log_ratio: float | None) -> str:
    if log_ratio is None:
        return "never"
    steps = sum(abs(log_ratio) >= level for level in _LEVELS)
    return f"{'more' if log_ratio > 0 else 'less'}{steps}" if steps else ""


def _nats(token: TokenRatio) -> str:
    return "never given by the target" if token.log_ratio is None else signed(token.log_ratio, 2)


def _shown(text: str) -> str:
    """A token on one line: white space that would not be seen is written."""
    return text.replace("\n", "↵").replace("\t", "⇥").replace(" ", "\N{OPEN BOX}") if text.strip() != text else text
