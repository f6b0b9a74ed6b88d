"""The pages on results and on when to believe them say what the code does."""

from __future__ import annotations

import dataclasses
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from llamalab.arena.results import Results
from llamalab.ope import gates

DOCS = Path(__file__).parent.parent.parent / "docs"


@pytest.fixture(scope="module")
def maker() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "make_results_json.py"))


def test_the_page_of_results_is_current(maker: dict[str, Any]) -> None:
    """Otherwise: python docs/make_results_json.py."""
    assert (DOCS / "results-json.md").read_text(encoding="utf-8") == maker["page"]()


def test_every_record_says_what_each_of_its_fields_is(maker: dict[str, Any]) -> None:
    kinds = maker["_records"](Results)
    assert {kind.__name__ for kind in kinds} >= {
        "Results",
        "PolicyResult",
        "Value",
        "Verdict",
        "Diagnostics",
        "HeavyRow",
    }
    for kind in kinds:
        assert list(maker["described"](kind)) == [each.name for each in dataclasses.fields(kind)], kind


def test_thresholds_in_the_text_are_those_of_the_gates() -> None:
    text = (DOCS / "when-to-believe-it.md").read_text(encoding="utf-8")
    rows = dict(
        re.findall(r"^\| ([^|]+?) \| ([^|]+ \| [^|]+?) \|$", text.partition("## Every threshold")[2], re.MULTILINE)
    )

    def numbers(name: str) -> list[float]:
        return [float(number) for number in re.findall(r"\d+", name + rows[name])]

    assert numbers("ESS, share of rows") == pytest.approx([100 * gates.ESS_SHOWN, 100 * gates.ESS_CAUTION])
    assert numbers("ESS, rows") == [gates.N_ESS_SHOWN, gates.N_ESS_CAUTION]
    assert numbers("rows without a number") == [100 * gates.FAILURES_REFUSED]
    assert numbers("mean weight, from 100 effective rows") == [gates.N_ESS_SHOWN, gates.Z_REFUSED, 1]
    assert numbers("Bennett's identity") == [gates.Z_REFUSED, 0]
