"""The benchmark runs and says what it measured; what it measures is not asserted here."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_generate_benchmark_on_a_tiny_model(tiny_gguf: Path):
    command = [sys.executable, "benchmarks/generate.py", "--model", str(tiny_gguf), "--quick", "--no-startup", "--json"]
    done = subprocess.run(
        [*command, "--threads", "1"], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout)
    assert [line["what"] for line in result["comparisons"]] == [
        "1 request",
        "8 requests at once",
        "16 requests at once",
        "8 requests at once",
        "JSON schema, 32 tokens",
    ]
    assert all(line["ours"] > 0 and line["other"] > 0 for line in result["comparisons"])
    assert result["facts"]["tiny"]["texts of 32 tokens that a batch of 8 left unchanged"].endswith(" of 8")


@pytest.mark.slow
def test_jax_decode_benchmark_on_a_tiny_model(tmp_path: Path) -> None:
    """A Python without transformers is no failure: the output says so, and the other comparisons are made."""
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "benchmarks/jax_decode.py", "--tiny", "--json", "--reference", str(tmp_path / "none")]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert [line["what"] for line in result["comparisons"]] == [
        "weights read, float32",
        "decode, int8",
        "token 256 from the cache",
    ]
    assert all(line["ours"] > 0 and line["other"] > 0 for line in result["comparisons"])
    assert result["facts"]["transformers"].startswith("not measured")
    assert result["facts"]["its peak memory, GB"] >= 0


@pytest.mark.slow
def test_jax_gpu_benchmark_runs_on_a_model_of_no_size(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/jax_gpu.py", "--smoke", "--json", "--reference", str(tmp_path / "none")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert [(cell["dtype"], cell["what"], cell["batch"]) for cell in result["cells"]] == [
        ("bfloat16", "decode", 1),
        ("bfloat16", "decode", 2),
        ("bfloat16", "prefill", 2),
        ("int8", "decode", 1),
        ("int8", "decode", 2),
        ("int8", "prefill", 2),
    ]
    assert all(cell["rate"] > 0 and cell["share"] > 0 for cell in result["cells"])
    assert result["facts"]["transformers, tiny"].startswith("not measured")


@pytest.mark.slow
def test_jax_gpu_benchmark_says_that_there_is_no_gpu() -> None:
    """One line, exit 2."""
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "benchmarks/jax_gpu.py"], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("jax_gpu.py needs a GPU; JAX finds only: cpu.")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_seven_b_benchmark_on_a_small_shape(tmp_path: Path) -> None:
    """Every type at every thread count, and no file left in the cache."""
    command = [sys.executable, "benchmarks/seven_b.py", "--quick", "--threads", "1", "--json"]
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert [cell["type"] for cell in result["cells"]] == ["Q4_0", "Q4_K_M", "Q3_K_S"]
    for cell in result["cells"]:
        assert cell["ours"] > 0
        assert cell["bare"] > 0
        assert cell["share"] == pytest.approx(cell["ours"] / cell["allowed"])
    assert len(result["verdict"]) == 4
    assert not list(tmp_path.rglob("*.gguf"))


@pytest.mark.slow
def test_memory_benchmark_on_a_small_shape(tmp_path: Path) -> None:
    """Every type with every cache at every context, each beside what was measured."""
    command = [sys.executable, "benchmarks/memory_accuracy.py", "--shape", "tiny", "--contexts", "512", "--json"]
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    result = json.loads(done.stdout)
    assert [(cell["type"], cell["kv_type"]) for cell in result["cells"]] == [
        (type, kv_type) for type in ("Q4_K_M", "Q6_K", "F16") for kv_type in ("f16", "q8_0")
    ]
    assert all(cell["error"] == cell["estimate"] / cell["measured"] - 1 for cell in result["cells"])
    assert done.returncode == int(result["largest_error"] > 0.03)


@pytest.mark.slow
def test_coverage_benchmark_runs() -> None:
    command = [sys.executable, "benchmarks/coverage.py", "--replications", "24", "--sizes", "100", "--processes", "1"]
    done = subprocess.run([*command, "--json"], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    cells = json.loads(done.stdout)["cells"]
    assert {cell["estimator"] for cell in cells} == {"ips", "snips", "calibrated_ips", "dr", "stacked"}
    assert all(0 <= cell["refused"] <= 1 and cell["width"] > 0 for cell in cells)
    assert done.returncode == (1 if json.loads(done.stdout)["misses"] else 0)


@pytest.mark.slow
def test_ope_speed_benchmark_runs(tmp_path: Path) -> None:
    """Both parts, on a few rows in CJE's layout."""
    rng = random.Random(0)
    (tmp_path / "fresh_draws").mkdir()
    for policy in ("base", "other"):
        rows = [{"prompt_id": f"p{at}", "judge_score": round(rng.random(), 1), "draw_idx": 0} for at in range(60)]
        if policy == "base":
            for row in rows[:40]:
                row["oracle_label"] = rng.random()
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "fresh_draws" / f"{policy}_responses.jsonl").write_text(text)
    few = ["--replicates", "4", "--rounds", "1", "--rows", "300", "--labels", "60", "--large-replicates", "10"]
    command = [sys.executable, "benchmarks/ope_speed.py", "--arena", str(tmp_path), "--large", "--json", *few]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr  # 1: a goal is missed, which so few replicates may do
    lines = json.loads(done.stdout)["lines"]
    assert len(lines) == 5
    assert all(line["value"] >= 0 for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["text", "weights", "map", "walks", "resume", "turns", "random", "full"])
def test_rlm_benchmark_runs(part: str) -> None:
    """Each part, with little of everything; what it counts is what was asked of it."""
    command = [sys.executable, "benchmarks/rlm.py", "--quick", "--json", "--only", part]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr  # 1: a speed is missed, which a busy machine may do
    found = json.loads(done.stdout)
    assert {line["part"] for line in found["lines"]} == ({"random", "turns"} if part == "random" else {part})
    counted = [line for line in found["lines"] if line["asked"] == 0]
    assert all(line["value"] == 0 for line in counted)
    assert done.returncode == (1 if found["missed"] else 0)
