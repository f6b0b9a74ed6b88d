"""Judge scores in terms of labels: monotone, cross-fitted by prompt, refitted under any weights of the prompts.

Dimension key: n rows, G prompts, K folds, N nodes (the distinct labelled scores outside each fold, fold after fold),
B columns (replicates).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from llamalab.errors import ConfigError, InputError
from llamalab.ope.isotonic import isotonic
from llamalab.ope.study import BoolArray, FloatArray, IntArray, Study


def assign_folds(
    prompt_ids: Sequence[str], folds: int, *, seed: int = 0, labelled: BoolArray | None = None
) -> IntArray:
    """(G,) fold of each prompt: by its name alone, so the order of rows decides nothing.

    Prompts are dealt out in the order of a hash, those with labels first: no fold is empty, and labels are spread
    evenly.

    Args:
        prompt_ids: names of prompts.
        folds: how many, at least 2.
        seed: another seed, another deal.
        labelled: (G,) which prompts have a labelled row.

    Raises:
        ConfigError: fewer than two folds.
    """
    if folds < 2:
        raise ConfigError(f"Cross-fitting takes at least 2 folds, not {folds}.")
    keys = [hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=16).digest() for name in prompt_ids]
    late = np.zeros(len(keys), dtype=bool) if labelled is None else ~labelled
    order = sorted(range(len(keys)), key=lambda at: (bool(late[at]), keys[at], prompt_ids[at]))
    fold = np.empty(len(keys), dtype=np.int64)
    fold[order] = np.arange(len(keys)) % folds
    return fold


@dataclass(frozen=True, slots=True)
class CrossFit:
    """A calibration ready to be fitted under any weights of the prompts.

    Attributes:
        fold: (G,) fold of each prompt.
        nodes: of each fit, the distinct scores it was fitted at, ascending: fit k leaves out fold k; a last fit, where
            it was asked for, leaves out nothing.
        mass_NG: weight of a prompt's labels at each node: the sum of 1/q.
        total_NG: the same of label times 1/q.
    """

    fold: IntArray
    nodes: tuple[FloatArray, ...]
    mass_NG: csr_array
    total_NG: csr_array

    def fit(self, weight_GB: FloatArray) -> FloatArray:
        """(N, B) f^(-k) at its nodes, with prompts weighing `weight_GB`: each column is one fit per fold."""
        mass_NB = self.mass_NG @ weight_GB
        mean_NB = (self.total_NG @ weight_GB) / mass_NB
        parts, start = [], 0
        for nodes in self.nodes:
            here = slice(start, start + len(nodes))
            parts.append(isotonic(mean_NB[here], mass_NB[here]))
            start += len(nodes)
        return np.concatenate(parts)

    def at(self, scores: FloatArray, which: IntArray) -> csr_array:
        """(rows, N): times a fit, f of each score by the fit with that number (the fold of its prompt, as a rule).

        Between nodes linear, beyond the outermost constant.
        """
        low, high, share = np.zeros(len(scores), np.int64), np.zeros(len(scores), np.int64), np.zeros(len(scores))
        start = 0
        for k, nodes in enumerate(self.nodes):
            rows = np.flatnonzero(which == k)
            inside = np.clip(scores[rows], nodes[0], nodes[-1])
            above = np.clip(np.searchsorted(nodes, inside), min(1, len(nodes) - 1), len(nodes) - 1)
            below = np.maximum(above - 1, 0)
            gap = nodes[above] - nodes[below]
            share[rows] = np.where(gap > 0, (inside - nodes[below]) / np.where(gap > 0, gap, 1.0), 0.0)
            low[rows], high[rows] = start + below, start + above
            start += len(nodes)
        row = np.arange(len(scores))
        data, columns = np.concatenate([1 - share, share]), np.concatenate([low, high])
        used = data != 0
        return csr_array((data[used], (np.tile(row, 2)[used], columns[used])), shape=(len(scores), start))


def cross_fit(study: Study, *, folds: int = 5, seed: int = 0, whole: bool = False) -> CrossFit:
    """The calibration of judge scores on a study's labels, cross-fitted by prompt.

    Labels weigh 1/q each, so that the fit is of the base policy's responses whichever were likelier to be labelled.
    Where fewer prompts than folds have labels, there are as many folds as such prompts.

    Args:
        study: with labels.
        folds: of prompts.
        seed: deals the prompts into folds.
        whole: add a last fit, on all labels.

    Raises:
        InputError: labels of fewer than two prompts, or labels chosen by hand.
        ConfigError: fewer than two folds.
    """
    rows = np.flatnonzero(study.labelled)
    prompts = np.unique(study.prompt[rows])
    if not study.random_labels and not study.fully_labelled:
        raise InputError(
            "The labelled rows were chosen by hand, so nothing can be calibrated on them: nobody knows how likely each "
            "was to be chosen. Label rows at random, label all of them, or evaluate on the judge's scale."
        )
    if len(prompts) < 2:
        found = "no row has a label" if not len(prompts) else "only one prompt has labels"
        raise InputError(
            f"A calibration takes labels of at least two prompts, but {found}. Raise the oracle's fraction, or "
            "evaluate on the judge's scale."
        )
    has_label = np.zeros(study.n_prompts, dtype=bool)
    has_label[prompts] = True
    fold = assign_folds(study.prompt_ids, min(folds, len(prompts)), seed=seed, labelled=has_label)

    scores, prompt, label = study.judge[rows], study.prompt[rows], study.label[rows]
    weight = 1.0 / study.label_probability[rows]
    nodes, at_node, of_row, start = [], [], [], 0
    for k in range(int(fold.max()) + 1 + whole):
        outside = np.flatnonzero(fold[prompt] != k)
        distinct, place = np.unique(scores[outside], return_inverse=True)
        nodes.append(distinct)
        at_node.append(start + place)
        of_row.append(outside)
        start += len(distinct)
    node, row = np.concatenate(at_node), np.concatenate(of_row)
    where, shape = (node, prompt[row]), (start, study.n_prompts)
    mass = csr_array((weight[row], where), shape=shape)
    total = csr_array(((weight * label)[row], where), shape=shape)
    return CrossFit(fold, tuple(nodes), mass, total)
