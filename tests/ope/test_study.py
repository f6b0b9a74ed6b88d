"""What a study refuses, and how it says so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from llamalab.errors import InputError
from llamalab.ope.study import Draws, Study
from tests.ope.cases import draw_study, make_world

STUDY = draw_study(make_world(), 0, prompts=10)


def spoiled(values: np.ndarray, value: float, row: int = 3) -> np.ndarray:
    values = values.astype(np.float64)
    values[row] = value
    return values


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_log_ratio_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(InputError, match=r"log ratio of sharp for the response in row 3"):
        replace(STUDY, log_ratio={"sharp": spoiled(STUDY.log_ratio["sharp"], value)})


def test_minus_infinity_is_a_weight_of_zero() -> None:
    replace(STUDY, log_ratio={"sharp": spoiled(STUDY.log_ratio["sharp"], -np.inf)}, draws={})


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, 1.1])
def test_a_judge_score_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(InputError, match=r"Row 3 has the judge score .* outside 0 to 1"):
        replace(STUDY, judge=spoiled(STUDY.judge, value))


def test_a_label_out_of_range_is_named_by_its_row_of_the_study() -> None:
    row = int(np.flatnonzero(STUDY.labelled)[1])
    with pytest.raises(InputError, match=f"Row {row} has the label 2"):
        replace(STUDY, label=spoiled(STUDY.label, 2, row))


@pytest.mark.parametrize("value", [0, -1, 1.5, np.nan])
def test_a_label_probability_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="Row 3 has the label probability"):
        replace(STUDY, label_probability=spoiled(STUDY.label_probability, value))


def test_a_prompt_id_given_twice_is_refused() -> None:
    with pytest.raises(InputError, match="'prompt 0' stands for several prompts"):
        replace(STUDY, prompt_ids=("prompt 0", *STUDY.prompt_ids[:-1]))


def test_columns_of_other_lengths_are_refused() -> None:
    with pytest.raises(InputError, match=r"label has shape \(5,\), but there are 20"):
        replace(STUDY, label=STUDY.label[:5])


def test_a_prompt_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match="row 0 names prompt 10, but prompts go from 0 to 9"):
        replace(STUDY, prompt=STUDY.prompt + 10)


def test_draws_are_checked_as_rows_are() -> None:
    with pytest.raises(InputError, match=r"draw of sharp, which is outside|draw of sharp"):
        replace(STUDY, draws={"sharp": Draws(np.array([0]), np.array([np.nan]))})
    with pytest.raises(InputError, match="fresh draws of 'nobody'"):
        replace(STUDY, draws={"nobody": Draws(np.array([0]), np.array([0.5]))})


def test_a_range_upside_down_is_refused() -> None:
    with pytest.raises(InputError, match="goes from 1 to 0"):
        replace(STUDY, judge_range=(1, 0))


def test_a_study_without_rows_is_refused() -> None:
    nothing = np.empty(0)
    with pytest.raises(InputError, match="without responses"):
        Study(nothing.astype(np.int64), (), nothing, nothing, nothing, {"sharp": nothing})
