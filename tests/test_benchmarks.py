"""The benchmark runs and says what it measured; what it measures is not asserted here."""

from __future__ import annotations

import json
import os
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
