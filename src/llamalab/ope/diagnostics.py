"""What the data say about an estimate: how far the logged responses cover the policy that is asked about.

Everything is of the raw weights exp(log ratio) unless it says otherwise. What the numbers mean for an estimate, and
where they refuse it, stands in `ope/gates.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """Of one target policy. None: it cannot be known from these data.

    Attributes:
        policy: its name.
        n: logged rows.
        prompts: distinct prompts, the clusters.
        ess: (sum w)^2 / sum w^2 over n, in (0, 1]; 0 where every weight is 0.
        n_ess: n times ess, the rows that the weighted ones are worth.
        ess_calibrated: the same of the weights' regression on the judge score, E[w|S].
        largest_share: largest weight over the sum of weights.
        largest_ten_share: ten largest weights over the sum.
        hill: tail index of the weights (Hill 1975, 5% largest); 2 or below: no finite variance.
        median_log_ratio: nats, of the rows inside the support.
        log_ratio_sd: standard deviation of the log ratios inside the support, nats.
        lognormal_ess: exp(-log_ratio_sd**2), the ess if log ratios were normal.
        mean_weight: mean raw weight; 1 in expectation.
        mean_weight_z: (mean_weight - 1) over its standard error, clustered by prompt.
        outside_support: share of rows that the target never gives, weight 0.
        share_equal: share of rows with a log ratio of exactly 0.
        largest_gap: largest |log ratio| inside the support, nats.
        judge_overlap: Bhattacharyya coefficient of the judge scores of base and target draws, 20 bins, in [0, 1].
        bennett_z: E_base[w/(1+w)] - E_target[1/(1+w)] over its standard error; 0 in expectation (Bennett 1976).
        typicality: share of logged rows whose surprisal per token under the target is at most its weighted 90%
            quantile.
        failure_rate: share of logged rows that have no log probability or no judge score.
    """

    policy: str
    n: int
    prompts: int
    ess: float
    n_ess: float
    ess_calibrated: float | None
    largest_share: float | None
    largest_ten_share: float | None
    hill: float | None
    median_log_ratio: float | None
    log_ratio_sd: float | None
    lognormal_ess: float | None
    mean_weight: float
    mean_weight_z: float | None
    outside_support: float
    share_equal: float
    largest_gap: float | None
    judge_overlap: float | None
    bennett_z: float | None
    typicality: float | None
    failure_rate: float
