"""`llamalab demo` on the built-in model: every part, in plain text in a pipe."""

from __future__ import annotations

import re

from tests.cli.conftest import Cli


def test_the_tour_shows_every_part(cli: Cli) -> None:
    result = cli("demo")
    assert result.code == 0
    assert result.err == ""
    assert "\x1b[" not in result.out
    for title in ("The model", "Chat", "JSON by a schema", "Log probabilities", "Speed here", "Next"):
        assert f"\n{title}\n" in result.out
    assert "48213" in result.out
    assert re.search(r"[\d,]+ tokens/s read .* [\d,]+ tokens/s written", result.out)


def test_the_right_answer_is_found_more_probable(cli: Cli) -> None:
    totals = [float(found) for found in re.findall(r"^.*  (-\d+\.\d\d)$", cli("demo").out, re.MULTILINE)]
    assert len(totals) == 2
    assert totals[0] > totals[1]
