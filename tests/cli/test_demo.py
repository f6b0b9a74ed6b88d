"""`llamalab demo` on the built-in model: every part, in plain text in a pipe."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from llamalab.arena.config import load_config
from llamalab.arena.prompts import read_prompts
from llamalab.cli import demo
from tests.arena import test_known_truth
from tests.cli.conftest import Cli

EXAMPLE = Path(__file__).parents[2] / "examples" / "known_truth"


@pytest.fixture(autouse=True)
def no_arena(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arena of the tour takes most of its minute."""
    monkeypatch.setattr(demo, "_example", lambda: None)


def test_the_tour_shows_every_part(cli: Cli, tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arena is a small one here; that of the tour is examples/known_truth."""
    small = test_known_truth.write(tmp_path / "arena", tiny_gguf)
    monkeypatch.setattr(demo, "_example", lambda: small.path)
    monkeypatch.setattr(demo, "PROMPTS", test_known_truth.PROMPTS)
    result = cli("demo")
    assert result.code == 0
    assert result.err == ""
    assert "\x1b[" not in result.out
    parts = ("The model", "Chat", "JSON by a schema", "Log probabilities", "Speed here", "An arena with known truth")
    for title in (*parts, "A text that no context holds", "Next"):
        assert f"\n{title}\n" in result.out
    assert '{"op":"find","text":"access code of the Blue Harbor vault"}' in result.out
    assert "The answer is 48213, by line 71,429: " in result.out
    assert "48213" in result.out
    assert re.search(r"^policy +verdict +value +95% interval +truth +ESS *$", result.out, re.MULTILINE)
    (report,) = re.findall(r"with pictures in (\S+report\.html)", result.out)
    assert Path(report).is_file()
    assert re.search(r"[\d,]+ tokens/s read .* [\d,]+ tokens/s written", result.out)


def test_the_right_answer_is_found_more_probable(cli: Cli) -> None:
    totals = [float(found) for found in re.findall(r"^.*  (-\d+\.\d\d)$", cli("demo").out, re.MULTILINE)]
    assert len(totals) == 2
    assert totals[0] > totals[1]


def test_the_arena_of_the_tour_has_what_it_promises() -> None:
    """200 prompts with 20 answers and more, the right one first, and an oracle that knows it."""
    spec = importlib.util.spec_from_file_location("known_truth_judge", EXAMPLE / "judge.py")
    assert spec is not None
    assert spec.loader is not None
    judge = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(judge)
    config = load_config(EXAMPLE / "arena_config.yaml")
    prompts = read_prompts(config.prompts)
    assert len(prompts) == demo.PROMPTS == 200
    assert config.clone == "pi_clone"
    for prompt in prompts:
        answers = prompt["candidates"]
        assert len(set(answers)) == len(answers) >= 20
        assert judge.oracle(prompt["prompt"], answers[0], prompt) == 1.0
        assert all(0 <= judge.judge(prompt["prompt"], each, prompt) <= 1 for each in answers)
