"""`llamalab score`: rows in, rows out; what it says, and how it ends."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from llamalab.engines import load
from llamalab.scored import ScoreRequest
from llamalab.scoring.session import Session
from tests.cli.conftest import Cli

ROWS = [
    {"id": "a", "prompt": "hello", "response": "world"},
    {"id": "b", "messages": [{"role": "user", "content": "the code"}], "response": "access", "finished": False},
    {"id": "c", "prompt": "hello", "response_ids": [1, 2, 3], "finished": False},
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_rows_become_log_probabilities_twice_the_same(cli: Cli, model: str, rows: Path) -> None:
    done = cli("score", str(rows), "-m", model, "-o", "out.jsonl")
    assert (done.code, done.out, done.err) == (0, "", "3 rows: 3 scored\n")
    found = lines(Path("out.jsonl").read_text())
    assert [row["id"] for row in found] == ["a", "b", "c"]
    assert all(row["logprob"] < 0 and row["method"] == "direct" for row in found)
    again = cli("score", str(rows), "-m", model, "-o", "again.jsonl")
    assert again.err == "3 rows: 3 scored, 3 from the store\n"
    assert Path("again.jsonl").read_bytes() == Path("out.jsonl").read_bytes()
    assert (
        cli("score", str(rows), "-m", model, "-o", "out.jsonl").err == "3 rows: 3 scored, 3 rows were there already\n"
    )


def test_the_log_probability_is_what_the_engine_says_of_the_ids(cli: Cli, model: str) -> None:
    """The template by hand: <|bos|> is the model's, then the turns; the end token belongs to a finished response."""
    row = {"prompt": "hello <|end|>", "response": "the <|end|> world"}
    done = cli("score", "-", "-m", model, "--tokens", "-t", "0.5", stdin=json.dumps(row))
    (found,) = lines(done.out)
    engine = load(model, n_seq=0)
    special = engine.info.special_tokens
    prefix = [special["<|user|>"], *engine.tokenize(row["prompt"]), special["<|end|>"], special["<|assistant|>"]]
    response = [*engine.tokenize(row["response"]), special["<|end|>"]]
    assert [token["id"] for token in found["tokens"]] == response
    assert found["n_prefix"] in (len(prefix), len(prefix) + 1)
    if found["n_prefix"] > len(prefix):
        prefix.insert(0, special["<|bos|>"])
    (scored,) = engine.score([ScoreRequest(prefix, response)])
    engine.close()
    assert [token["raw"] for token in found["tokens"]] == list(scored.logprobs)
    assert found["raw_logprob"] == scored.total
    assert found["logprob"] != found["raw_logprob"]
    assert found["n_end"] == 1


def test_policies_of_a_file_share_a_row(cli: Cli, model: str, rows: Path) -> None:
    Path("config.yaml").write_text(
        f"policies:\n  base: {{provider: llama_cpp, model: {model}, temperature: 0.5, seed: 42}}\n"
        f"  cut: {{model: {model}, top_k: 1}}\n  other: {{model: {model}, system_prompt: code}}\n"
    )
    done = cli("score", str(rows), "--policies", "config.yaml")
    assert done.code == 0
    assert done.err.startswith("3 rows: 9 scored, ")
    assert "outside the policy's support" in done.err
    for row in lines(done.out):
        assert list(row["policies"]) == ["base", "cut", "other"]
        base, cut, other = row["policies"].values()
        assert base["raw_logprob"] == cut["raw_logprob"] != other["raw_logprob"]
        assert cut["logprob"] is None
        assert cut["out_of_support"] is True


def test_bad_rows_are_rows_and_the_exit_code_says_so(cli: Cli, model: str) -> None:
    long = {"id": "long", "prompt": "x", "response": "hello " * 3000}
    content = b'{"id": "x", "prompt": "a", "response": "b"}\n{"prompt": "\xff"}\n\n{"id": "x", "prompt": "a"}\n'
    content += json.dumps(long).encode() + b'\n{"id": "empty", "prompt": "a", "response": "", "finished": false}'
    done = cli("score", "-", "-m", model, stdin=content)
    assert done.code == 1
    found = lines(done.out)
    assert [row.get("error") for row in found] == [None, "bad_row", "bad_row", "context_overflow", "empty_response"]
    assert [row.get("line") for row in found] == [None, 2, 4, None, None]
    assert done.err == "5 rows: 1 scored, 4 failed (bad_row 2, context_overflow 1, empty_response 1)\n"


def test_a_million_characters_are_an_error_of_their_row(cli: Cli, model: str) -> None:
    rows = [{"prompt": "a", "response": "hello world " * 90_000}, {"prompt": "a", "response": "b"}]
    done = cli("score", "-", "-m", model, stdin="".join(json.dumps(row) + "\n" for row in rows))
    assert [row.get("error") for row in lines(done.out)] == ["context_overflow", None]


def test_other_settings_for_the_same_file_are_refused(cli: Cli, model: str, rows: Path) -> None:
    cli("score", str(rows), "-m", model, "-o", "out.jsonl", "--no-store")
    done = cli("score", str(rows), "-m", model, "-o", "out.jsonl", "-t", "2", "--no-store")
    assert done.code == 2
    assert "temperature was 1.0 and is 2.0" in done.err
    assert cli("score", str(rows), "-m", model, "-o", "out.jsonl", "-t", "2", "--no-store", "--force").code == 0


def test_ctrl_c_says_how_to_go_on(cli: Cli, model: str, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Session, "engine", interrupted)
        done = cli("score", str(rows), "-m", model, "-o", "out.jsonl")
    assert done.code == 130
    assert done.err == "stopped; the same command goes on where out.jsonl ends\n"
    assert cli("score", str(rows), "-m", model, "-o", "out.jsonl").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Give one of these: ROWS"),
        (("rows.jsonl", "--text", "x.txt"), "Give one of these: ROWS"),
        (("rows.jsonl", "-t", "0"), "temperature must be above 0"),
        (("rows.jsonl", "--mode", "exact"), "--mode"),
        (("rows.jsonl", "-m", "nowhere.gguf"), "There is no model called"),
        (("rows.jsonl", "-m", "fireworkz:accounts/a/b"), "There is no"),
        (("nowhere.jsonl",), "nowhere.jsonl cannot be read"),
        (("rows.jsonl", "--policies", "config.yaml", "-t", "1"), "stand in config.yaml"),
        (("rows.jsonl", "--policies", "nowhere.yaml"), "nowhere.yaml cannot be read"),
        (("rows.jsonl", "--store", "s.sqlite", "--no-store"), "--store or --no-store"),
        (("rows.jsonl", "--stride", "4"), "go with --text"),
        (("rows.jsonl", "--int8"), "int8"),
        (("--text", "nowhere.txt"), "nowhere.txt cannot be read"),
        (("--text", "rows.jsonl", "--top-p", "0.5"), "leave out --top-p"),
        (("--self-test", "-s", "hello"), "leave out --system"),
    ],
)
def test_what_cannot_be_done_is_one_paragraph(
    cli: Cli, model: str, rows: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = cli("score", *arguments, *(() if {"-m", "--policies"} & set(arguments) else ("-m", model)))
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err
    assert done.err.count("\n") == 1


def test_perplexity_of_a_text(cli: Cli, model: str) -> None:
    Path("text.txt").write_text("hello world " * 40)
    options = ("--text", "text.txt", "-m", model, "--context", "32", "--stride", "8")
    document = json.loads(cli("score", *options, "--json").out)
    assert (document["context"], document["stride"]) == (32, 8)
    printed = cli("score", *options).out
    assert f"perplexity       {document['value']:.6g} ± {document['standard_error']:.2g}\n" in printed
    assert f"{document['n_windows']} windows of 32 tokens, stride 8" in printed


def test_the_store_is_looked_at_pruned_exported_and_repaired(cli: Cli, model: str, rows: Path) -> None:
    at = ("--store", "s.sqlite")
    cli("score", str(rows), "-m", model, *at)
    shown = cli("score", "store", "info", *at).out
    assert "3 rows, " in shown
    assert model.rpartition("/")[2] in shown
    assert json.loads(cli("score", "store", "info", *at, "--json").out)["rows"] == 3
    exported = lines(cli("score", "store", "export", *at).out)
    assert [row["response_ids"] for row in exported if row["response_ids"] == [1, 2, 3]]
    connection = sqlite3.connect("s.sqlite")
    connection.execute("UPDATE scores SET raw = zeroblob(length(raw))")
    connection.commit()
    connection.close()
    done = cli("score", str(rows), "-m", model, *at)
    assert done.code == 2
    assert "is damaged" in done.err
    assert cli("score", "store", "repair", *at).out == "0 rows kept, 3 dropped\n"
    assert cli("score", str(rows), "-m", model, *at).err == "3 rows: 3 scored\n"
    assert cli("score", "store", "prune", *at, "--older-than", "1d").out == "0 rows removed\n"
    assert cli("score", "store", "prune", *at, "--max-size", "0").out == "3 rows removed\n"
    for arguments in (("--older-than", "soon"), ("--max-size", "2X"), (), ("-m", "unheard")):
        assert cli("score", "store", "prune", *at, *arguments).code == 2


def test_a_file_called_store_is_reached_by_its_path(cli: Cli, model: str) -> None:
    Path("store").write_text(json.dumps(ROWS[0]))
    assert cli("score", "./store", "-m", model).code == 0
