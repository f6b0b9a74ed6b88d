"""`llamalab doctor`: facts and problems."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Cli


@pytest.fixture
def healthy(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamalab.checkpoints.locate.PICO", Path(model))
    monkeypatch.setattr("llamalab.engines.machine.available_memory", lambda: 4 * 2**30)


@pytest.mark.usefixtures("healthy")
def test_all_good(cli: Cli) -> None:
    result = cli("doctor")
    assert result.code == 0
    assert result.out.splitlines()[-1] == "all good"


@pytest.mark.usefixtures("healthy")
def test_json_holds_the_facts(cli: Cli, model: str) -> None:
    import llama_cpp

    facts = json.loads(cli("doctor", "--json").out)
    assert facts["problems"] == []
    assert facts["versions"]["llama-cpp-python"] == llama_cpp.__version__
    assert facts["pico"]["sha256"] == hashlib.sha256(Path(model).read_bytes()).hexdigest()
    assert 1 <= facts["machine"]["physical_cores"] <= facts["machine"]["logical_cores"]
    assert facts["llama.cpp"]["gpu_offload"] is bool(llama_cpp.llama_supports_gpu_offload())


@pytest.mark.usefixtures("healthy")
def test_it_says_whose_kernels_score(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr("llamalab.engines.kernels.available", lambda: True)
    assert json.loads(cli("doctor", "--json").out)["kernels"] == {"compiler": sys.executable, "scoring_by": "llamalab"}
    monkeypatch.setenv("LLAMALAB_NATIVE", "0")
    monkeypatch.setattr("llamalab.engines.kernels.available", lambda: False)
    assert json.loads(cli("doctor", "--json").out)["kernels"] == {"compiler": None, "scoring_by": "llama.cpp"}


@pytest.mark.usefixtures("healthy")
def test_every_problem_is_said_with_what_to_do(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("llamalab.engines.machine.available_memory", lambda: 100_000_000)
    monkeypatch.setattr("llamalab.checkpoints.locate.PICO", tmp_path / "gone")
    result = cli("doctor")
    problems = [line for line in result.out.splitlines() if line.startswith("problem: ")]
    assert result.code == 1
    assert "all good" not in result.out
    assert [("100 MB" in line, "Install llamalab again" in line) for line in problems] == [(True, False), (False, True)]


@pytest.mark.usefixtures("healthy")
def test_a_broken_part_does_not_stop_the_rest(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> int:
        raise RuntimeError("no topology")

    monkeypatch.setattr("llamalab.engines.machine.physical_cores", broken)
    facts = json.loads(cli("doctor", "--json").out)
    assert facts["problems"] == ["no topology"]
    assert facts["machine"] == {}
    assert facts["pico"]["sha256"]
