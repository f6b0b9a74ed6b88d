"""A run over many rows: in order, continued where it stopped to the same bytes, refused where it is another's."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from llamalab.cli import app as cli
from llamalab.errors import ConfigError, ContextOverflow, InputError, LlamalabError, ModelNotFound
from llamalab.scored import Decoding
from llamalab.scoring.policy import Policy
from llamalab.scoring.result import LogProbResult, TokenScore
from llamalab.scoring.run import Plan, run
from llamalab.scoring.session import Item, Session
from llamalab.scoring.store import Store

Outcome = LogProbResult | LlamalabError


class Fake:
    """Scores by the length of the response, and fails where it is told to."""

    def __init__(self, fail: dict[str, BaseException] | None = None) -> None:
        self.fail = fail or {}
        self.seen: list[str] = []

    def score(self, items: Iterable[Item]) -> Iterator[tuple[Item, Outcome]]:
        for item in items:
            assert item.response is not None
            self.seen.append(item.response)
            error = self.fail.get(item.response)
            if isinstance(error, LlamalabError):
                yield item, error
            elif error is not None:
                raise error
            else:
                value = -len(item.response) / (3 * item.policy.decoding.temperature)
                tokens = (TokenScore(1, item.response, value, value),)
                yield item, LogProbResult(value, value, tokens, "direct", item.finished, fingerprint={"key": "f"})


PLAN = Plan({"pico": Policy("pico", "llama_cpp", "pico")})
TWO = Plan(
    {"warm": Policy("warm", "llama_cpp", "pico", Decoding(2.0)), "cold": Policy("cold", "llama_cpp", "pico")},
    nested=True,
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", [{"id": n, "prompt": "p", "response": "x" * (n + 1)} for n in range(9)])


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_come_out_in_order_each_with_its_value(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    summary = run(str(source), str(out), PLAN, session=Fake())
    assert [(row["id"], row["logprob"]) for row in rows_of(out)] == [(n, -(n + 1) / 3) for n in range(9)]
    assert (summary.rows, summary.values, summary.failed, summary.kept) == (9, 9, 0, 0)


def test_several_policies_stand_in_one_row_by_name(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    summary = run(str(source), str(out), TWO, session=Fake())
    for n, row in enumerate(rows_of(out)):
        assert list(row) == ["id", "policies"]
        found = {name: value["logprob"] for name, value in row["policies"].items()}
        assert found == {"warm": -(n + 1) / 6, "cold": -(n + 1) / 3}
    assert (summary.rows, summary.values) == (9, 18)


def test_what_fails_is_a_row_and_the_others_go_on(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_bytes(
        b'{"id": "a", "prompt": "p", "response": "good"}\nnot json\n{"id": "b", "prompt": "p", "response": "long"}\n'
        b'{"id": "a", "prompt": "p", "response": "good"}\n\n{"id": "c", "prompt": "p", "response": "good"}\n{}\n'
    )
    fake = Fake({"long": ContextOverflow("too long", needed=2, available=1)})
    for plan in (PLAN, TWO):
        out = tmp_path / f"out-{plan.nested}.jsonl"
        summary = run(str(source), str(out), plan, session=fake)
        rows = rows_of(out)
        assert [row["id"] for row in rows] == ["a", None, "b", "a", "c", 7]
        assert [row.get("line") for row in rows] == [None, 2, None, 4, None, 7]
        times = len(plan.policies)
        assert summary.errors == {"bad_row": 3, "context_overflow": times}
        assert (summary.rows, summary.values) == (6, 2 * times)
    overflow = rows_of(tmp_path / "out-False.jsonl")[2]
    assert overflow == {"id": "b", "logprob": None, "error": "context_overflow", "message": "too long"}


def test_what_would_fail_for_every_row_ends_the_run_and_keeps_what_is_done(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(ModelNotFound):
        run(str(source), str(out), PLAN, session=Fake({"xxxx": ModelNotFound("gone")}))
    assert [row["id"] for row in rows_of(out)] == [0, 1, 2]


@pytest.mark.parametrize("stop", [0, 1, 5, 8])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(source: Path, tmp_path: Path, stop: int) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    run(str(source), str(whole), TWO, session=Fake())
    with pytest.raises(KeyboardInterrupt):
        run(str(source), str(out), TWO, session=Fake({"x" * (stop + 1): KeyboardInterrupt()}))
    assert len(rows_of(out)) == stop
    fake = Fake()
    summary = run(str(source), str(out), TWO, session=fake)
    assert out.read_bytes() == whole.read_bytes()
    assert len(fake.seen) == 2 * (9 - stop)
    assert (summary.kept, summary.values) == (stop, 18)


@pytest.mark.parametrize("cut", [1, 20, 100, 400])
def test_half_a_last_line_is_written_again(source: Path, tmp_path: Path, cut: int) -> None:
    out = tmp_path / "out.jsonl"
    run(str(source), str(out), PLAN, session=Fake())
    whole = out.read_bytes()
    out.write_bytes(whole[:-cut])
    run(str(source), str(out), PLAN, session=Fake())
    assert out.read_bytes() == whole


def test_a_finished_run_asks_for_nothing_and_counts_its_errors_again(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    fail: dict[str, BaseException] = {"xx": ContextOverflow("too long", needed=2, available=1)}
    first = run(str(source), str(out), TWO, session=Fake(fail))
    before, fake = out.read_bytes(), Fake()
    second = run(str(source), str(out), TWO, session=fake)
    assert (fake.seen, out.read_bytes()) == ([], before)
    assert (second.errors, second.values, second.kept) == (first.errors, first.values, 9)


def test_other_input_or_settings_are_refused_by_name_unless_forced(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(str(source), str(out), PLAN, session=Fake())
    before = out.read_bytes()
    warmer = Plan({"pico": Policy("pico", "llama_cpp", "pico", Decoding(0.5))})
    with pytest.raises(InputError, match=r"policies\.pico\.decoding\.temperature was 1\.0 and is 0\.5.*--force"):
        run(str(source), str(out), warmer, session=Fake())
    with pytest.raises(InputError, match="tokens was false and is true"):
        run(str(source), str(out), Plan(PLAN.policies, tokens=True), session=Fake())
    rows = [{"id": 0, "prompt": "p", "response": "else"}]
    with pytest.raises(InputError, match=r"input\.rows was 9 and is 1"):
        run(str(write(tmp_path / "else.jsonl", rows)), str(out), PLAN, session=Fake())
    assert out.read_bytes() == before
    run(str(source), str(out), warmer, session=Fake(), force=True)
    assert rows_of(out)[0]["logprob"] == -2 / 3


def test_another_number_of_threads_is_no_other_setting(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    for n_threads in (1, 2):
        policy = Policy("pico", "llama_cpp", "pico", options={"n_threads": n_threads})
        assert run(str(source), str(out), Plan({"pico": policy}), session=Fake()).values == 9


def test_a_template_file_that_changed_is_another_setting(source: Path, tmp_path: Path) -> None:
    out, template = tmp_path / "out.jsonl", tmp_path / "t.jinja"
    plan = Plan({"pico": Policy("pico", "llama_cpp", "pico", template=str(template))})
    template.write_text("{{ messages }}")
    run(str(source), str(out), plan, session=Fake())
    template.write_text("{{ messages[0] }}")
    with pytest.raises(InputError, match="template_sha256"):
        run(str(source), str(out), plan, session=Fake())


def test_a_file_that_nothing_is_known_of_is_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("my notes\n")
    with pytest.raises(InputError, match="nothing says what it is of"):
        run(str(source), str(out), PLAN, session=Fake())
    assert out.read_text() == "my notes\n"


def test_rows_that_were_exchanged_in_the_output_are_noticed(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(str(source), str(out), PLAN, session=Fake())
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join([lines[1], lines[0], *lines[2:5]]))
    with pytest.raises(InputError, match="row 1, has the id 1 where the input has the id 0"):
        run(str(source), str(out), PLAN, session=Fake())


def test_one_process_writes_a_file(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"

    class Meanwhile(Fake):
        def score(self, items: Iterable[Item]) -> Iterator[tuple[Item, Outcome]]:
            with pytest.raises(InputError, match="Another process is writing"):
                run(str(source), str(out), PLAN, session=Fake())
            return super().score(items)

    assert run(str(source), str(out), PLAN, session=Meanwhile()).values == 9


def test_standard_input_and_output(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    out = tmp_path / "out.jsonl"
    run(str(source), str(out), PLAN, session=Fake())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(source.read_bytes())))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(os.fdopen(os.dup(1), "wb")))
    run("-", "-", PLAN, session=Fake())
    assert capfdbinary.readouterr().out == out.read_bytes()


def test_rows_are_never_written_over_themselves(source: Path, tmp_path: Path) -> None:
    before = source.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(source)
    for target in (source, tmp_path / "link.jsonl"):
        with pytest.raises(InputError, match="over themselves"):
            run(str(source), str(target), PLAN, session=Fake(), force=True)
    assert source.read_bytes() == before


def test_a_device_is_written_to_and_nothing_is_put_beside_it(source: Path) -> None:
    assert run(str(source), os.devnull, PLAN, session=Fake()).values == 9
    assert not Path(f"{os.devnull}.run.json").exists()


def test_what_cannot_be_read_or_written_is_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.jsonl cannot be read"):
        run(str(tmp_path / "nowhere.jsonl"), "-", PLAN, session=Fake())
    with pytest.raises(InputError, match="cannot be written"):
        run(str(source), str(tmp_path), PLAN, session=Fake())
    wrong = Plan({"p": Policy("p", "llama_cpp", "pico", options={"n_gpu_layer": 1})})
    with pytest.raises(ConfigError, match="n_gpu_layer"):
        run(str(source), str(tmp_path / "out.jsonl"), wrong, session=Fake())


def pairs(tmp_path: Path, count: int) -> Path:
    words = ("hello", "world", "access", "code", "name")
    rows = [
        {
            "id": n,
            "prompt": f"the {words[n % 3]}",
            "response": f"{words[n % 5]} and {n}" if n % 50 else "",
            "finished": bool(n % 2),
        }
        for n in range(count)
    ]
    return write(tmp_path / "pairs.jsonl", rows)


def test_a_second_run_reads_the_store_and_loads_no_model(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pairs(tmp_path, 40)
    policy = Policy("tiny", "llama_cpp", str(tiny_gguf), Decoding(0.5), options={"n_ctx": 128})
    plan = Plan({"tiny": policy, "warm": Policy("warm", "llama_cpp", str(tiny_gguf), Decoding(2.0, top_k=40))}, True)
    with Store(tmp_path / "scores.sqlite") as store:
        first = run(str(source), str(tmp_path / "1.jsonl"), plan, store=store)

        def no_engine(self: Session, policy: Policy) -> None:
            raise AssertionError("the model was loaded")

        monkeypatch.setattr(Session, "engine", no_engine)
        second = run(str(source), str(tmp_path / "2.jsonl"), plan, store=store)
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()
    assert first.values == second.values == second.stored > 0
    assert first.stored < second.stored


DIES = """
import os, signal, sys
from llamalab.cli import main
from llamalab.scoring.store import Store

put, calls = Store.put_many, []

def put_many(*arguments):
    calls.append(put(*arguments))
    if len(calls) == 150:
        os.kill(os.getpid(), signal.SIGKILL)

Store.put_many = put_many
main()
"""


def test_killed_half_way_and_resumed_the_bytes_are_those_of_one_run(tiny_gguf: Path, tmp_path: Path) -> None:
    """What the process had not written yet when it died is in the store."""
    source = pairs(tmp_path, 400)

    def command(target: Path) -> list[str]:
        out = ["-o", str(target), "--store", str(target.with_suffix(".sqlite"))]
        return ["score", str(source), "-m", str(tiny_gguf), "-t", "0.7", "--tokens", *out]

    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    died = subprocess.run([sys.executable, "-c", DIES, *command(out)], capture_output=True, check=False)
    assert died.returncode == -signal.SIGKILL
    assert 0 < out.read_bytes().count(b"\n") < 150
    done = subprocess.run([sys.executable, "-m", "llamalab", *command(out)], capture_output=True, check=False)
    assert done.returncode == 1
    assert b"from the store" in done.stderr
    assert b"8 failed (empty_response 8)" in done.stderr
    assert cli.run(command(whole)) == 1
    assert out.read_bytes() == whole.read_bytes()
    assert out.read_bytes().count(b"\n") == 400
