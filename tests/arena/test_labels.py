"""Labels: a random slice with a known probability, or a file whose every line is checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamalab.arena.judges import ToJudge
from llamalab.arena.labels import label, uniform
from llamalab.arena.settings import JudgeSettings, OracleSettings
from llamalab.errors import InputError


def responses(count: int, per_prompt: int = 1) -> list[ToJudge]:
    return [
        ToJudge(f"p0/{prompt}/{draw}", "?", "yes", "yes" if prompt % 2 else "no", {"prompt_id": f"{prompt}"})
        for prompt in range(count)
        for draw in range(per_prompt)
    ]


def oracle(**settings: Any) -> OracleSettings:
    return OracleSettings((0.0, 1.0), JudgeSettings("exact_match", (0.0, 1.0)), **settings)


def of_file(path: Path, *rows: Any, **settings: Any) -> OracleSettings:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines))
    return OracleSettings((0.0, 1.0), file=path, **settings)


def test_each_response_is_drawn_on_its_own_with_the_probability_that_is_written() -> None:
    """4,000 Bernoulli draws with p = 0.3: within four standard deviations (29) of 1,200."""
    rows = list(label(responses(4000), oracle(fraction=0.3)))
    assert 1084 < len(rows) < 1316
    assert {row["probability"] for row in rows} == {0.3}


def test_the_draw_looks_random_and_does_not_go_by_prompts() -> None:
    chances = np.array([[uniform(seed, f"p0/{number}/0") for number in range(500)] for seed in range(8)])
    counts = np.histogram(chances, bins=20, range=(0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 43.8  # chi-square with 19 degrees of freedom, p = 0.001
    assert np.abs(np.corrcoef(chances) - np.eye(8)).max() < 0.2


def test_a_stopped_run_labels_what_is_left_and_nothing_else() -> None:
    whole = list(label(responses(50), oracle(fraction=0.5)))
    done = [row["response_id"] for row in whole[:7]]
    assert list(label(responses(50), oracle(fraction=0.5), done)) == whole[7:]


def test_another_seed_is_another_draw() -> None:
    drawn = [{row["response_id"] for row in label(responses(50), oracle(fraction=0.5, seed=seed))} for seed in (0, 1)]
    assert drawn[0] != drawn[1]


def test_all_are_labelled_where_the_fraction_is_one() -> None:
    assert [row["label"] for row in label(responses(4), oracle())] == [0.0, 1.0, 0.0, 1.0]


def test_an_oracle_that_fails_leaves_an_error_and_no_label() -> None:
    rows = list(label([ToJudge("a", "?", "yes"), ToJudge("b", "?", "yes", "yes")], oracle()))
    assert rows[0]["error"] == "no_reference"
    assert "label" not in rows[0]
    assert rows[1] == {"response_id": "b", "label": 1.0, "probability": 1.0}


def test_a_file_labels_responses_by_their_ids_or_by_prompts_that_have_one(tmp_path: Path) -> None:
    settings = of_file(
        tmp_path / "labels.jsonl",
        {"response_id": "p0/1/0", "label": 0.5, "probability": 0.2},
        "",
        {"prompt_id": "0", "label": 1},
        fraction=0.4,
    )
    assert list(label(responses(3), settings)) == [
        {"response_id": "p0/0/0", "label": 1.0, "probability": 0.4},
        {"response_id": "p0/1/0", "label": 0.5, "probability": 0.2},
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt_id": "0", "label": 1}, "prompt '0' has 2 responses"),
        ({"prompt_id": "9", "label": 1}, "no prompt '9'"),
        ({"response_id": "p0/9/0", "label": 1}, "no response 'p0/9/0'"),
        ({"label": 1}, "neither 'response_id' nor 'prompt_id'"),
        ({"response_id": "p0/0/0"}, "'label' must be a number, not None"),
        ({"response_id": "p0/0/0", "label": True}, "'label' must be a number"),
        ('{"response_id": "p0/0/0", "label": NaN}', "'label' must be a number"),
        ({"response_id": "p0/0/0", "label": 2}, "label 2 is not between 0 and 1"),
        ({"response_id": "p0/0/0", "label": 1, "probability": 0}, "probability 0 of being labelled"),
        ({"response_id": "p0/1/1", "label": 1}, "has a label in line 1 already"),
        ("[1]", "a label is an object"),
        ("{", "not valid JSON"),
    ],
)
def test_a_line_that_cannot_be_used_is_refused_with_its_number(tmp_path: Path, row: Any, message: str) -> None:
    settings = of_file(tmp_path / "labels.jsonl", {"response_id": "p0/1/1", "label": 1}, row)
    with pytest.raises(InputError) as refused:
        list(label(responses(3, per_prompt=2), settings))
    assert message in str(refused.value)
    assert "labels.jsonl, line 2" in str(refused.value)


def test_a_file_without_labels_and_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no label"):
        list(label(responses(2), of_file(tmp_path / "empty.jsonl")))
    with pytest.raises(InputError, match="cannot be read"):
        list(label(responses(2), OracleSettings((0.0, 1.0), file=tmp_path / "absent.jsonl")))
