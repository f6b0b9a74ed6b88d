"""How the report writes numbers, and what it calls things."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from llamalab.arena.results import PolicyResult, Results, Value
from llamalab.ope.gates import Reason

NONE = "\N{EM DASH}"
"""Where there is no number."""

_ESTIMATORS = {
    "ips": "IPS, raw weights",
    "snips": "SNIPS, self-normalised",
    "calibrated_ips": "calibrated IPS",
    "dr": "doubly robust",
    "stacked": "stacked estimators",
    "mean": "mean of its own responses",
    "direct": "direct, from its own fresh draws (cje-eval)",
    "draws": "plain mean of its own fresh draws",
}

STATES = {
    "SHOWN": "the data carry an estimate",
    "CAUTION": "diagnostics only, no number to quote",
    "REFUSED": "these data cannot say",
}

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters, and those that change the direction of writing."""


def estimator(name: str) -> str:
    """What an estimator is called."""
    return _ESTIMATORS.get(name, name)


def number(value: float | None, digits: int = 3) -> str:
    """A number with that many digits behind the point; three significant digits where it is far from one."""
    if value is None:
        return NONE
    if value == 0:
        return "0"
    if not 10**-digits <= abs(value) < 1e5:
        mantissa, _, power = f"{value:.2e}".partition("e")
        return minus(f"{mantissa} × 10{_raised(int(power))}")
    return minus(f"{value:,.{digits if abs(value) < 100 else 1 if abs(value) < 1000 else 0}f}")


def outcome(value: float | None, digits: int = 3) -> str:
    """A number on a scale of outcomes: what is nearer 0 than the digits show is 0 there."""
    if value is None or abs(value) >= 1:
        return number(value, digits)
    return minus(f"{round(value, digits) + 0.0:.{digits}f}")


def percent(share: float | None) -> str:
    """A share in percent, three significant digits; only exactly 0 and 1 are written as 0% and 100%."""
    if share is None:
        return NONE
    if share in (0.0, 1.0):
        return f"{100 * share:.0f}%"
    if share < 1e-5:
        return "< 0.001%"
    text = f"{100 * share:.3g}"
    return f"{'>99.9' if text == '100' else text}%"


def interval(value: Value, digits: int = 3) -> str:
    """An interval, from its low to its high end."""
    if value.low is None or value.high is None:
        return NONE
    return f"{outcome(value.low, digits)} to {outcome(value.high, digits)}"


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign."""
    return f"{'+' if value > 0 else ''}{outcome(value, digits)}"


def p_value(p: float) -> str:
    """A p-value, three digits at most."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def decimals(results: Results) -> int:
    """Digits behind the point that a difference of a thousandth of the scale needs."""
    low, high = results.outcome_range if results.scale == "oracle" else results.judge_range
    return max(0, 3 - round(math.log10(high - low))) if high > low else 3


def headline(results: Results) -> str:
    """What came out, in one sentence."""
    others = [policy for policy in results.policies if policy.role != "base"]
    targets = [policy for policy in others if policy.role != "clone"] or others  # a clone is no question
    shown = [policy for policy in targets if policy.headline is not None]
    if not targets:
        return "There is no other policy to compare with."
    if not shown:
        return f"These responses cannot say how {_names(targets)} would do."
    if len(shown) == len(targets):
        return f"These responses can say how {_names(targets)} would do."
    hidden = [policy for policy in targets if policy.headline is None]
    return f"These responses can say how {_names(shown)} would do. About {_names(hidden)} they cannot."


def told(results: Results) -> str:
    """How the targets compare with the base, in a sentence for each that differs and one for all others."""
    apart, alike = [], []
    for each in results.comparisons:
        if results.base not in (each.first, each.second):
            continue
        if each.p_adjusted < 1 - results.level:
            apart.append(each.sentence)
        else:
            alike.append(results.policy(each.first if each.second == results.base else each.second))
    if alike:
        apart.append(f"{_names(alike)} cannot be told apart from {results.base}.")
    return " ".join(apart)


def scale(results: Results) -> str:
    """What the headline numbers are of."""
    low, high = results.outcome_range if results.scale == "oracle" else results.judge_range
    ends = f"{number(low, 0) if low == int(low) else low:} to {number(high, 0) if high == int(high) else high}"
    if results.scale == "oracle":
        return f"mean outcome on the oracle’s scale, {ends}"
    doubt = "" if results.labelled else "; without labels nobody knows what a score is worth"
    return f"mean judge score, {ends}{doubt}"


def remedies(reasons: Sequence[Reason]) -> str:
    """What would help, each advice once: of sentences that begin alike, the first."""
    kept: dict[str, str] = {}
    for reason in reasons:
        for sentence in re.split(r"(?<=[.?!]) (?=[A-Z])", reason.remedy):
            kept.setdefault(sentence[:30], sentence)
    return " ".join(kept.values())


def clean(text: Any) -> str:
    """Text with what would not be seen, or would turn the text around it, made visible; line ends and tabs stay."""
    return _UNSEEN.sub(lambda found: _symbol(ord(found[0])), str(text).replace("\r\n", "\n"))


def minus(text: str) -> str:
    """With a minus sign in place of the hyphen."""
    return text.replace("-", "\N{MINUS SIGN}")


def _names(policies: list[PolicyResult]) -> str:
    names = [policy.name for policy in policies]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _raised(power: int) -> str:
    digits = str(abs(power)).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{'⁻' if power < 0 else ''}{digits}"


def _symbol(code: int) -> str:
    """What Unicode shows a control character as; its number for the others."""
    if code < 0x20:
        return chr(0x2400 + code)
    return "\N{SYMBOL FOR DELETE}" if code == 0x7F else f"[U+{code:04X}]"
