from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from llamalab.engine import Message
from llamalab.errors import InputError, ProviderUnavailable
from llamalab.rlm import Answer, orchestrator
from llamalab.rlm.replay import replay
from llamalab.rlm.state import Limits
from tests.rlm.scripted import TEXT, Scripted, ask, ops_of, pool_of, settings, text

CONTENT = TEXT * 30


def digest(messages: object) -> bytes:
    return hashlib.sha256(json.dumps(messages).encode()).digest()


def wander(messages: Sequence[Message], schema: Any) -> str:
    """A root whose command is any of those allowed, drawn by a hash of all it was told."""
    rng = Random(digest(list(messages)))
    name = rng.choice(["a", "b", "c"])
    on: dict[str, Any] = rng.choice([{}, {"on": name}, {"on": "_"}])
    fields: dict[str, dict[str, Any]] = {
        "slice": {"start": rng.randint(-99, 99), "end": rng.randint(0, 300), "store": name, **on},
        "lines": {"start": rng.randint(1, 9), "end": rng.randint(1, 30), **on},
        "find": {"text": rng.choice(["ERROR", "ada", "access code", "nothing such", "é"]), "store": name},
        "regex": {"pattern": rng.choice([r"took (\d+) ms", "(a", r"\w+ada$", "x*"]), "store": name, **on},
        "count": {"what": rng.choice(["lines", "words", "matches"]), **on},
        "split": {"delimiter": rng.choice(["\n", "ms"]), "store": name},
        "aggregate": {"pattern": r"took (\d+) ms", "what": rng.choice(["sum", "mean", "top"])},
        "set": {"name": name, "value": "$100 ${a}"},
        "get": {"name": name},
        "map": {"prompt": "What is it?", "limit": rng.randint(1, 4), "store": name, **on},
        "reduce": {"directive": "Sum up.", "chunk_size": 3000, "store": name},
        "llm_query": {"prompt": "Is it so?", "store": name, **on},
        "delegate": {"task": f"Look for {rng.choice(['ada', 'a code'])}.", "max_iterations": 3, "store": name},
        "final": {"answer": f"it is {rng.randint(0, 99)}, ${{a}}"},
        "final_var": {"name": name},
    }
    op = rng.choice(sorted(ops_of(schema) & fields.keys()))
    return json.dumps({"thought": "so", "op": op, **fields[op]})


def answer_or_fail(messages: Sequence[Message], _schema: Any) -> str:
    first = digest(list(messages))[0]
    if first % 5 == 0:
        raise ProviderUnavailable("gone", sent=False)
    return f"sub answer {first}: 48213"


def wandering(question: str, *, slow: float = 0.0, **where: Path) -> Answer:
    before = partial(time.sleep, slow)
    root, sub = Scripted(wander, before=before), Scripted(answer_or_fail, before=before)
    return ask(root, sub, question=question, context=text(CONTENT), config=settings(max_iterations=12), **where)


def told(answer: Answer) -> tuple[Any, ...]:
    """What of an answer has to be the same however often it is reached."""
    return answer.text, answer.complete, answer.why, answer.evidence, answer.turns, answer.sub_calls


@pytest.mark.parametrize("seed", [*range(12), *(pytest.param(s, marks=pytest.mark.slow) for s in range(12, 200))])
def test_a_replay_without_any_model_gives_every_result_message_and_the_answer_again(seed: int, tmp_path: Path) -> None:
    journal = tmp_path / "run.jsonl"
    answer = wandering(f"Question {seed}?", journal=journal)
    found = replay(journal, text(CONTENT))
    assert (found.equal, found.finished, found.difference) == (True, True, "")
    assert found.compared >= answer.turns
    assert found.answer is not None
    assert (found.answer, found.answer.usage, found.answer.seconds) == (answer, answer.usage, answer.seconds)


def long_run(tmp_path: Path) -> tuple[str, Path, Answer]:
    """A run with sub calls and a nested run in it."""
    for seed in range(200):
        journal = tmp_path / f"run-{seed}.jsonl"
        answer = wandering(f"Question {seed}?", journal=journal)
        if "/1.reply" in (content := journal.read_text()) and ".sub.0.1" in content:
            return f"Question {seed}?", journal, answer
        journal.unlink()
    raise AssertionError("no such run")


def test_a_run_cut_off_anywhere_comes_to_the_same_answer(tmp_path: Path) -> None:
    question, journal, answer = long_run(tmp_path)
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) > 15
    for n in range(1, len(lines), max(1, len(lines) // 8)):
        cut = tmp_path / f"cut-{n}.jsonl"
        cut.write_bytes(b"".join(lines[:n]) + lines[n][: len(lines[n]) // 2])
        assert replay(cut, text(CONTENT)).equal
        resumed = wandering(question, resume=cut)
        assert told(resumed) == told(answer)
        assert resumed.tokens >= answer.tokens
        assert replay(cut, text(CONTENT)).equal


def test_a_call_that_was_lost_is_charged_and_made_again(tmp_path: Path) -> None:
    question, journal, answer = long_run(tmp_path)
    lines = journal.read_bytes().splitlines(keepends=True)
    last = max(n for n, line in enumerate(lines) if b'"begun"' in line)
    journal.write_bytes(b"".join(lines[: last + 1]))
    resumed = wandering(question, resume=journal)
    assert told(resumed) == told(answer)
    assert resumed.tokens > answer.tokens
    kinds = [json.loads(line)["type"] for line in journal.read_text().splitlines()]
    assert kinds.count("lost") == 1
    again = wandering(question, resume=journal)
    assert (again.usage, told(again)) == (resumed.usage, told(resumed))


KILLED = """
import sys
from pathlib import Path
from tests.rlm.test_replay import wandering
path = Path(sys.argv[2])
wandering(sys.argv[1], slow=0.02, **{"resume" if path.exists() else "journal": path})
"""


def test_a_process_that_is_killed_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    question, whole, answer = long_run(tmp_path)
    journal = tmp_path / "killed.jsonl"
    n = len(whole.read_bytes().splitlines())
    for lines in (n // 4, n // 2):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, question, str(journal)],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": "."},
        )
        while process.poll() is None:
            if journal.exists() and len(journal.read_bytes().splitlines()) >= lines:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        process.wait(20)
    assert told(wandering(question, resume=journal)) == told(answer)
    assert replay(journal, text(CONTENT)).equal


def test_what_was_changed_in_a_journal_is_found_and_named(tmp_path: Path) -> None:
    journal = tmp_path / "run.jsonl"
    wandering("Question 3?", journal=journal)
    lines = journal.read_text().splitlines()
    facts = [n for n, line in enumerate(lines) if '"type":"fact"' in line]
    for n in facts:
        line = json.loads(lines[n])
        name = next(name for name, value in line["data"].items() if isinstance(value, str | list))
        line["data"][name] = "changed"
        journal.write_text("\n".join([*lines[:n], json.dumps(line), *lines[n + 1 :]]) + "\n")
        found = replay(journal, text(CONTENT))
        assert not found.equal
        assert line["key"] in found.difference
    journal.write_text("\n".join([*lines[: facts[1]], *lines[facts[1] + 1 :]]) + "\n")
    assert not replay(journal, text(CONTENT)).equal


def test_a_search_that_ran_out_of_time_is_replayed_to_the_same_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "run.jsonl"
    root = Scripted(['{"op":"regex","pattern":"E[A-Z]+","store":"e"}', '{"op":"final","answer":"${e}"}'])
    monkeypatch.setattr(orchestrator, "Limits", partial(Limits, seconds=-1.0))
    many = text("ERROR\n" * 400_000)
    ask(root, context=many, journal=journal)
    result = next(json.loads(line)["data"] for line in journal.read_text().splitlines() if '"1.result"' in line)
    assert 0 <= result["partial_at"] < many.n_chars
    monkeypatch.undo()
    assert replay(journal, many).equal


@pytest.mark.parametrize(("name", "content"), [("unread", TEXT), ("lacking", CONTENT)])
def test_a_journal_of_a_version_that_asked_for_no_evidence_is_replayed_as_it_was(name: str, content: str) -> None:
    """Of these runs the answers would not be called complete today."""
    found = replay(Path(__file__).with_name("journals") / f"{name}.jsonl", text(content))
    assert (found.equal, found.finished, found.difference) == (True, True, "")
    assert found.answer is not None
    assert found.answer.complete


def test_documents_are_checked_first(tmp_path: Path) -> None:
    file, journal = tmp_path / "log.txt", tmp_path / "run.jsonl"
    file.write_text(TEXT)
    from llamalab import rlm

    pool = pool_of(Scripted(['{"op":"find","text":"ada"}', '{"op":"final","answer":"ada"}']))
    rlm.ask("Who?", [file], config=settings(), pool=pool, journal=journal)
    assert replay(journal).equal
    moved = file.rename(tmp_path / "moved.txt")
    assert replay(journal, [moved]).equal
    with pytest.raises(InputError, match="which is not there"):
        replay(journal)
    file.write_text(TEXT + "!")
    with pytest.raises(InputError, match=r"log\.txt is not as it was"):
        replay(journal)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "it is empty"),
        ("nonsense\n", "line 1: not valid JSON"),
        ("[1]\n", "line 1: no line of a journal"),
        ('{"type":"run","version":99}\n', "version 99"),
        ('{"type":"run","version":1}\n', "is not what this program writes"),
        ('{"type":"run","version":1}\n{"type":"effect"}\n', "line 2: no line of a journal"),
    ],
)
def test_what_is_no_journal_is_refused(content: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=why):
        replay(path, text())


@pytest.mark.parametrize(
    ("line", "path", "value"),
    [
        (0, ("question",), 7),
        (0, ("settings",), None),
        (0, ("settings", "limits", "max_iterations"), "many"),
        (1, ("data", "said"), 5),
        (1, ("data", "spent", "usage", "sub"), [1]),
        (-1, ("data", "usage"), "none"),
    ],
)
def test_a_journal_with_a_field_of_another_kind_is_not_gone_on_with(
    line: int, path: tuple[str, ...], value: Any, tmp_path: Path
) -> None:
    question, journal, _ = long_run(tmp_path)
    lines = [json.loads(each) for each in journal.read_text().splitlines()]
    replies = [each for each in lines if "usage" in each.get("data", ())]
    changed = replies[0] if line < 0 else lines[line]
    for step in path[:-1]:
        changed = changed[step]
    changed[path[-1]] = value
    journal.write_text("".join(f"{json.dumps(each)}\n" for each in lines))
    with pytest.raises(InputError, match=r"run-\d+\.jsonl"):
        wandering(question, resume=journal)


def test_a_journal_is_begun_once_is_private_and_goes_on_only_with_the_same(tmp_path: Path) -> None:
    journal = tmp_path / "run.jsonl"
    wandering("Question 1?", journal=journal)
    assert journal.stat().st_mode & 0o077 == 0
    with pytest.raises(InputError, match="exists"):
        wandering("Question 1?", journal=journal)
    with pytest.raises(InputError, match="another question"):
        wandering("Question 2?", resume=journal)
    with pytest.raises(InputError, match="other documents"):
        ask(Scripted(wander), question="Question 1?", context=text("else"), resume=journal)
