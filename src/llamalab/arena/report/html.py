"""The report as one HTML file: no network, no script, and nothing that comes from the data is markup."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from llamalab.arena.report import pictures, words
from llamalab.arena.report.checks import checks
from llamalab.arena.report.tokens import carriers, view
from llamalab.arena.results import PolicyResult, Results, Value
from llamalab.errors import InputError
from llamalab.ope import gates
from llamalab.ope.intervals import FEW_PROMPTS


@dataclass(frozen=True, slots=True)
class Gain:
    """What a policy does better than the base; of one comparison, turned so that the base comes second.

    Attributes:
        difference: policy less base.
        low: of the interval.
        high: of the interval.
        p_adjusted: of the comparison.
    """

    difference: float
    low: float
    high: float
    p_adjusted: float


def write_report(results: Results, path: Path) -> None:
    """Write the report of an evaluation, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(page(results).encode("utf-8", "replace"))
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error


def page(results: Results) -> str:
    """The report as text."""
    return _template().render(
        results=results,
        style=Markup(_own("report.css")),
        words=words,
        pictures=pictures,
        gates=gates,
        few_prompts=FEW_PROMPTS,
        digits=words.decimals(results),
        targets=[policy for policy in results.policies if policy.role != "base"],
        checks=checks(results),
        forest=pictures.forest_axis(results),
        fresh=any(pictures.fresh_draws(policy, results.scale) for policy in results.policies),
        gain=lambda policy: gain(results, policy),
        listed=listed,
        carriers=carriers,
        view=view,
    )


def gain(results: Results, policy: PolicyResult) -> Gain | None:
    """A policy against the base on the scale of the headline; None where they were not compared."""
    for each in results.comparisons:
        if each.scale != results.scale:
            continue
        if (each.first, each.second) == (policy.name, results.base):
            return Gain(each.difference, each.low, each.high, each.p_adjusted)
        if (each.second, each.first) == (policy.name, results.base):
            return Gain(-each.difference, -each.high, -each.low, each.p_adjusted)
    return None


def listed(policy: PolicyResult) -> list[tuple[str, list[Value]]]:
    """Every value of a policy, the oracle's scale first; a scale without values is left out."""
    scales = [(scale, [value for value in policy.values if value.scale == scale]) for scale in ("oracle", "judge")]
    return [(scale, values) for scale, values in scales if values]


def _clean(value: Any) -> Any:
    """What the template writes: text without what cannot be seen; markup of our own as it is."""
    return value if isinstance(value, Markup) else words.clean(value)


@cache
def _template() -> Template:
    # `finalize` and `autoescape` see every expression of the template, so none can be forgotten there.
    environment = Environment(
        autoescape=True, finalize=_clean, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": words.number,
        "outcome": words.outcome,
        "percent": words.percent,
        "signed": words.signed,
        "p_value": words.p_value,
    }
    return environment.from_string(_own("report.html.j2"))


def _own(name: str) -> str:
    """A file that lies beside this one."""
    return (files("llamalab.arena.report") / name).read_text(encoding="utf-8")
