"""What a response is worth: predicted from its judge score, corrected where it has a label.

R = f(S) + (L/q) (Y - f(S)), with f cross-fitted by prompt; on the judge's scale R = S.

Dimension key: n rows, G prompts, L labelled rows, N nodes of the calibration, B columns (replicates).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from llamalab.ope.calibration import CrossFit, cross_fit
from llamalab.ope.study import BoolArray, FloatArray, IntArray, Study


@dataclass(frozen=True, slots=True)
class FreshDraws:
    """Mean prediction over a policy's fresh draws, prompt by prompt.

    Attributes:
        known: (G,) True: the prompt has draws.
        mean: (G, N), to be multiplied by a fit; on the judge's scale (G, 1), the means themselves. 0 where unknown.
    """

    known: BoolArray
    mean: csr_array

    def predicted(self, fit_NB: FloatArray, weight_GB: FloatArray, size_G: FloatArray | IntArray) -> FloatArray:
        """(G, B) m: the mean over the draws of a prompt; for prompts without any, the mean of the others.

        Any m that knows nothing of the logged response leaves a doubly robust estimate unbiased; this one is simplest.
        """
        means = np.asarray(self.mean @ fit_NB)
        if not self.known.all():
            weight_GB = weight_GB * (size_G * self.known)[:, None]
            means[~self.known] = (weight_GB * means).sum(axis=0) / weight_GB.sum(axis=0)
        return means


@dataclass(frozen=True, slots=True)
class Outcome:
    """The worth of logged responses and fresh draws, for any weights of the prompts.

    Attributes:
        calibration: None on the judge's scale.
        rows: (n, N), to be multiplied by a fit; on the judge's scale (n, 1), the scores.
        labelled: (L,) rows with a label that counts.
        label: (L,) labels.
        ratio: (L,) 1/q.
        complete: whether R needs no prediction: every row is labelled, or the scale is the judge's.
        draws: of each policy that has any.
    """

    calibration: CrossFit | None
    rows: csr_array
    labelled: IntArray
    label: FloatArray
    ratio: FloatArray
    complete: bool
    draws: Mapping[str, FreshDraws]

    def fit(self, weight_GB: FloatArray) -> FloatArray:
        """(N, B) the calibration under these weights of the prompts; on the judge's scale (1, B) ones."""
        return np.ones((1, weight_GB.shape[1])) if self.calibration is None else self.calibration.fit(weight_GB)


def outcome_of(study: Study, *, scale: str, folds: int = 5, seed: int = 0) -> Outcome:
    """Prepare a study on the oracle's or the judge's scale.

    Raises:
        InputError: too few labels for the oracle's scale, or labels chosen by hand.
    """
    calibration = cross_fit(study, folds=folds, seed=seed) if scale == "oracle" else None

    def at(scores: FloatArray, prompt: IntArray) -> csr_array:
        return csr_array(scores[:, None]) if calibration is None else calibration.at(scores, calibration.fold[prompt])

    draws = {}
    logged = np.bincount(study.prompt, minlength=study.n_prompts) > 0
    for policy, drawn in study.draws.items():
        if logged[drawn.prompt].any():
            count = np.bincount(drawn.prompt, minlength=study.n_prompts)
            where = (drawn.prompt, np.arange(len(drawn.prompt)))
            average = csr_array((1.0 / count[drawn.prompt], where), shape=(study.n_prompts, len(drawn.prompt)))
            draws[policy] = FreshDraws(count > 0, average @ at(drawn.judge, drawn.prompt))
    labelled = np.flatnonzero(study.labelled) if calibration is not None else np.empty(0, np.int64)
    ratio = np.ones(len(labelled)) if study.fully_labelled else 1.0 / study.label_probability[labelled]
    return Outcome(
        calibration,
        at(study.judge, study.prompt),
        labelled,
        study.label[labelled],
        ratio,
        calibration is None or study.fully_labelled,
        draws,
    )
