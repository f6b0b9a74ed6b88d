"""A real data set, 1,000 prompts of Chatbot Arena with three targets: who is refused, and by which figures.

The figures are of the data themselves (NumPy gives them in three lines); skipped where the data are not there.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llamalab.arena.evaluation import evaluate
from llamalab.arena.results import Results
from llamalab.arena.run_folder import read_run

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "arena_sample"

pytestmark = pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"no data at {SAMPLE}")


@pytest.fixture(scope="module")
def results() -> Results:
    rows = read_run(SAMPLE)
    return evaluate(replace(rows, settings=replace(rows.settings, direct=False, replicates=50)))


def judge_scale(results: Results, policy: str, estimator: str) -> float:
    found = {value.estimator: value.value for value in results.policy(policy).values if value.scale == "judge"}
    number = found[estimator]
    assert number is not None
    return number


def test_unhelpful_is_refused_though_its_weighted_mean_looks_well(results: Results) -> None:
    policy = results.policy("unhelpful")
    assert (policy.verdict.state, policy.headline) == ("REFUSED", None)
    assert policy.diagnostics is not None
    assert policy.diagnostics.ess == pytest.approx(0.0078, abs=5e-5)
    assert judge_scale(results, "unhelpful", "snips") == pytest.approx(0.844, abs=5e-4)
    assert judge_scale(results, "unhelpful", "ips") == pytest.approx(0.004, abs=5e-4)
    assert judge_scale(results, "unhelpful", "draws") == pytest.approx(0.245, abs=5e-4)


def test_the_other_prompt_is_refused(results: Results) -> None:
    policy = results.policy("parallel_universe_prompt")
    assert (policy.verdict.state, policy.headline) == ("REFUSED", None)
    assert policy.diagnostics is not None
    assert policy.diagnostics.ess == pytest.approx(0.0034, abs=5e-5)
    assert judge_scale(results, "parallel_universe_prompt", "ips") == pytest.approx(18, abs=0.5)
    assert "raw_ips" in [reason.gate for reason in policy.verdict.reasons]


def test_the_clone_fails_against_the_base(results: Results) -> None:
    aa = results.aa
    assert aa is not None
    assert aa.state == "FAILED"
    assert aa.ess == pytest.approx(0.215, abs=5e-4)
    assert aa.share_equal == pytest.approx(0.898)
    assert aa.mean_weight == pytest.approx(1.28, abs=5e-3)
    assert results.policy("clone").headline is None


@pytest.mark.slow
def test_direct_estimates_stand_beside_them() -> None:
    """What the library gives on the same draws, called by itself."""
    cje = pytest.importorskip("cje")
    rows = read_run(SAMPLE)
    data = {
        "base": [
            {"prompt_id": row.prompt_id, "judge_score": row.judge, "oracle_label": row.label, "draw_idx": 0}
            for row in rows.rows
        ],
        "clone": [{"prompt_id": row.prompt_id, "judge_score": row.judge, "draw_idx": 0} for row in rows.draws["clone"]],
    }
    expected = cje.analyze_dataset(fresh_draws_data=data, estimator_config={"inference_method": "cluster_robust"})
    values = {value.estimator: value for value in evaluate(rows).policy("clone").values if value.scale == "oracle"}
    assert values["direct"].value == pytest.approx(expected.estimates[1], rel=1e-6)
