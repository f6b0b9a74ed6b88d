"""`llamalab bench`: what it prints, what it keeps and how it refuses."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from tests.cli.conftest import Cli

QUICK = ("--pp", "8", "--tg", "4", "-r", "2", "--threads", "1")


@pytest.fixture(autouse=True)
def own_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def test_a_table_has_only_the_columns_that_vary(cli: Cli, model: str) -> None:
    done = cli("bench", model, *QUICK)
    assert done.code == 0, done.err
    header, first, second, *rest = done.out.splitlines()
    assert header.split() == ["test", "tokens/s", "first", "token"]
    assert first.startswith("pp8")
    assert second.startswith("tg4")
    assert "±" in first
    assert "1 threads" in rest[-1] or "1 thread" in rest[-1]
    both = cli("bench", model, *QUICK, "--batch-seqs", "1,2")
    assert both.out.splitlines()[0].split()[0] == "requests"


def test_json_and_csv_say_the_same_as_the_history(cli: Cli, model: str) -> None:
    measured = json.loads(cli("bench", model, *QUICK, "--json").out)
    assert [record["test"] for record in measured] == ["pp8", "tg4"]
    assert json.loads(cli("bench", "--history", "--json").out) == measured
    rows = list(csv.DictReader(io.StringIO(cli("bench", "--history", "--csv").out)))
    assert [float(row["tokens_per_second"]) for row in rows] == [r["tokens_per_second"] for r in measured]
    assert "tg4" in cli("bench", "--history").out


def test_a_history_begins_empty(cli: Cli) -> None:
    assert cli("bench", "--history").out == "Nothing has been measured yet.\n"
    assert cli("bench", "--history", "--json").out == "[]\n"


def test_a_picture_is_drawn(cli: Cli, model: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert cli("bench", model, *QUICK, "--depth", "0,16", "--plot", str(tmp_path / "b.svg")).code == 0
    assert (tmp_path / "b.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--pp", "x"), "--pp takes whole numbers with commas between them, not 'x'"),
        (("--pp", "0", "--tg", "0"), "nothing to measure"),
        (("--tg", "9000", "--n-ctx", "64"), "more than n_ctx=64"),
        (("--shape", "llama-3.2-1b"), "MODEL or --shape"),
        (("/no/such.gguf",), "/no/such.gguf: the folder /no does not exist"),
    ],
)
def test_bad_input_is_one_message(cli: Cli, model: str, arguments: tuple[str, ...], message: str) -> None:
    done = cli("bench", model, *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


def test_a_shape_that_does_not_exist_is_refused(cli: Cli) -> None:
    done = cli("bench", "--shape", "llama-3.2-1bb")
    assert done.code == 2
    assert "llama-3.2-1b" in done.err
