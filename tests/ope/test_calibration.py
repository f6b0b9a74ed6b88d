"""Calibration of judge scores on labels, cross-fitted by prompt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from llamalab.errors import ConfigError, InputError
from llamalab.ope.calibration import assign_folds, cross_fit
from llamalab.ope.study import Study
from tests.ope.cases import draw_study, make_world

STUDY = draw_study(make_world(), 1, prompts=60)


def predictions(study: Study, weight: np.ndarray | None = None) -> np.ndarray:
    fitted = cross_fit(study)
    weight = np.ones(study.n_prompts) if weight is None else weight
    return np.asarray(fitted.at(study.judge, fitted.fold[study.prompt]) @ fitted.fit(weight[:, None]))[:, 0]


@pytest.mark.parametrize("weighted", [False, True])
def test_each_fold_is_scikit_learns_fit_on_the_other_prompts(weighted: bool) -> None:
    """With any weights of the prompts, and with labels that were likelier in some rows than in others."""
    rng = np.random.default_rng(0)
    study = replace(STUDY, label_probability=rng.uniform(0.2, 1, STUDY.n))
    weight = rng.standard_exponential(60) if weighted else np.ones(60)
    fold = cross_fit(study).fold[study.prompt]
    found = predictions(study, weight)
    for k in range(5):
        outside = study.labelled & (fold != k)
        mass = weight[study.prompt[outside]] / study.label_probability[outside]
        reference = IsotonicRegression(out_of_bounds="clip").fit(study.judge[outside], study.label[outside], mass)
        np.testing.assert_allclose(found[fold == k], reference.predict(study.judge[fold == k]), atol=1e-12)


def test_the_whole_fit_leaves_out_nothing() -> None:
    fitted = cross_fit(STUDY, whole=True)
    curve = fitted.fit(np.ones((60, 1)))[-len(fitted.nodes[-1]) :, 0]
    known = STUDY.labelled
    reference = IsotonicRegression().fit(STUDY.judge[known], STUDY.label[known])
    np.testing.assert_allclose(curve, reference.predict(fitted.nodes[-1]), atol=1e-12)
    np.testing.assert_array_equal(fitted.nodes[-1], np.unique(STUDY.judge[known]))


def test_labels_belong_to_responses_not_to_prompts() -> None:
    """A prompt with two labelled responses brings in both."""
    both = np.flatnonzero(np.bincount(STUDY.prompt[STUDY.labelled], minlength=60) == 2)[0]
    rows = np.flatnonzero(STUDY.prompt == both)
    assert cross_fit(STUDY).total_NG[:, [both]].sum() == pytest.approx(4 * STUDY.label[rows].sum() / 0.5)


def test_all_rows_of_a_prompt_are_in_one_fold() -> None:
    """A label never helps to predict another response to its own prompt."""
    fitted = cross_fit(STUDY)
    first = int(np.flatnonzero(STUDY.labelled)[0])
    moved = replace(STUDY, label=np.where(STUDY.prompt == STUDY.prompt[first], 1.0, STUDY.label))
    same = fitted.fold[STUDY.prompt] == fitted.fold[STUDY.prompt[first]]
    before, after = predictions(STUDY), predictions(moved)
    np.testing.assert_array_equal(before[same], after[same])
    assert not np.array_equal(before[~same], after[~same])


def test_folds_are_even_also_among_labelled_prompts() -> None:
    labelled = np.arange(23) % 3 == 0
    fold = assign_folds([f"p{at}" for at in range(23)], 5, labelled=labelled)
    assert np.ptp(np.bincount(fold, minlength=5)) <= 1
    assert np.ptp(np.bincount(fold[labelled], minlength=5)) <= 1


def test_folds_follow_names_not_order() -> None:
    names = [f"p{at}" for at in range(20)]
    fold = dict(zip(names, assign_folds(names, 4), strict=True))
    assert dict(zip(names[::-1], assign_folds(names[::-1], 4), strict=True)) == fold
    assert list(fold.values()) != list(assign_folds(names, 4, seed=1))


def test_labels_chosen_by_hand_calibrate_nothing() -> None:
    with pytest.raises(InputError, match="chosen by hand"):
        cross_fit(replace(STUDY, random_labels=False))


@pytest.mark.parametrize(("count", "message"), [(0, "no row has a label"), (1, "only one prompt has labels")])
def test_too_few_labels_are_refused(count: int, message: str) -> None:
    label = np.full(STUDY.n, np.nan)
    label[:count] = 0.5
    with pytest.raises(InputError, match=message):
        cross_fit(replace(STUDY, label=label))


def test_two_labelled_prompts_are_enough() -> None:
    label = np.full(STUDY.n, np.nan)
    label[[0, 2]] = 0.25, 0.75
    assert set(predictions(replace(STUDY, label=label)).tolist()) == {0.25, 0.75}


def test_one_fold_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2 folds"):
        cross_fit(STUDY, folds=1)
