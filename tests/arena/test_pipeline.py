"""A run from prompts to report: killed anywhere it goes on to the same results; what does not fit is refused."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamalab.arena.config import load_config
from llamalab.arena.logprobs import PolicyScorer, score_clone
from llamalab.arena.pipeline import STEPS, run, status
from llamalab.arena.results import Results, read_results
from llamalab.errors import ConfigError, InputError
from llamalab.scoring.policy import make_policy
from llamalab.scoring.result import LogProbResult
from llamalab.scoring.rows import Row, read_rows
from llamalab.scoring.session import Item, Session
from llamalab.scoring.store import Store
from llamalab.scoring.teacher_forcing import TeacherForcing
from tests import tiny

FILES = ("responses.jsonl", "logprobs.jsonl", "judged.jsonl", "labels.jsonl", "results.json")
"""What decides what a report says, in the order in which it is written."""

JUDGE = "def length(prompt, response, row):\n    return min(len(response), 20) / 20\n"

KILLED = """
import os, signal, sys
from pathlib import Path
from llamalab.arena.config import load_config
from llamalab.arena.pipeline import run

left = int(sys.argv[2])

def progress(step, done, total):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

run(load_config(Path(sys.argv[1])), progress=progress)
"""


def write_config(folder: Path, model: Path, *, clone: bool = False, **changes: str) -> Path:
    """Six prompts, two responses each, one fresh draw; a judge in Python, an oracle on half of the responses."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "judge.py").write_text(JUDGE)
    rows = [{"id": f"q{number}", "prompt": f"say {number}", "reference": "the"} for number in range(6)]
    (folder / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    sections = {
        "p0": f"{{model: {model}, temperature: 0.9, seed: 1}}",
        "clone": f"{{model: {model}, temperature: 0.9, seed: 1}}" if clone else "",
        "hot": f"{{model: {model}, temperature: 1.0, seed: 1}}",
        "prompts": "{file: prompts.jsonl}",
        "responses": "{draws: 1, per_prompt: 2, max_tokens: 6}",
        "judge": "{kind: 'python:judge.length', range: [0, 1]}",
        "oracle": "{judge: {kind: 'python:judge.length', range: [0, 1]}, fraction: 0.7}",
        "estimators": "{replicates: 100, direct: false, folds: 2}",
        "output": "{folder: run}",
    } | changes
    policies = "".join(f"  {name}: {sections.pop(name)}\n" for name in ("p0", "clone", "hot") if sections[name])
    sections.pop("clone", None)
    text = f"policies:\n{policies}" + "".join(f"{name}: {value}\n" for name, value in sections.items() if value)
    path = folder / "arena.yaml"
    path.write_text(text)
    return path


def read(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "run" / name).read_bytes() for name in FILES}


def jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_gguf: Path) -> Path:
    """The folder of a configuration that was run without a stop, with a clone."""
    folder = tmp_path_factory.mktemp("whole")
    run(load_config(write_config(folder, tiny_gguf, clone=True)))
    return folder


@pytest.fixture(scope="module")
def results(whole: Path) -> Results:
    return read_results(whole / "run" / "results.json")


class Stop(BaseException):
    """Ends a run where it stands."""


def stop_after(calls: int) -> Callable[[str, int, int], None]:
    left = iter(range(calls - 1))

    def progress(_step: str, _done: int, _total: int) -> None:
        if next(left, None) is None:
            raise Stop

    return progress


def test_every_step_leaves_its_file(whole: Path) -> None:
    found = {step.step: step for step in status(load_config(whole / "arena.yaml"))}

    assert tuple(found) == STEPS
    assert [found[step].done for step in ("prompts", "responses", "draws", "logprobs", "judge")] == [6, 12, 12, 24, 24]
    assert all((step.failed, step.left) in ((0, 0), (0, None)) for step in found.values())
    assert (whole / "run" / "report.html").read_text().lower().startswith("<!doctype html>")


def test_responses_say_how_probable_they_were(whole: Path, tiny_gguf: Path) -> None:
    """Under the distribution that they were drawn from: what teacher forcing says of the same tokens."""
    prompts = {row["prompt_id"]: row["prompt"] for row in jsonl(whole / "run" / "prompts.jsonl")}
    rows = jsonl(whole / "run" / "responses.jsonl")

    with (
        TeacherForcing(model=str(tiny_gguf), temperature=0.9) as drawn,
        TeacherForcing(model=str(tiny_gguf)) as raw,
    ):
        for row in rows:
            given = prompts[row["prompt_id"]], row["response"], row["finished"], row["response_ids"]
            assert drawn.compute_log_prob(*given).value == pytest.approx(row["logprob"], abs=1e-4)
            assert raw.compute_log_prob(*given).value == pytest.approx(row["raw_logprob"], abs=1e-4)
    assert {row["finish_reason"] for row in rows} <= {"stop", "length"}
    assert all(len(row["response_ids"]) <= 6 for row in rows)
    assert len({row["response_id"] for row in rows}) == 12


def test_the_clone_scored_apart_agrees_in_every_bit(results: Results, whole: Path) -> None:
    assert results.aa is not None
    assert (results.aa.state, results.aa.share_equal, results.aa.ess) == ("PASSED", 1.0, 1.0)
    assert "new process" in results.aa.how
    assert results.aa.generation_rows == 12
    assert results.aa.generation_gap is not None
    assert 0 < results.aa.generation_gap < 1e-4
    rows = [row["policies"] for row in jsonl(whole / "run" / "logprobs.jsonl")]
    assert all(row["clone"]["logprob"] == row["p0"]["logprob"] for row in rows)


def test_the_clones_scores_are_those_of_the_other_process(whole: Path, tmp_path: Path, tiny_gguf: Path) -> None:
    """What stands in the clone's place is what that process computed, not what the base's pass gave."""
    config = load_config(whole / "arena.yaml")
    rows = whole / "run" / "to_score" / "responses.jsonl"
    other = make_policy("clone", {"model": str(tiny_gguf), "temperature": 1.7})
    seen: list[tuple[int, int]] = []
    score_clone(other, rows, tmp_path / "other.sqlite", lambda done, total: seen.append((done, total)))
    with rows.open("rb") as file:
        items = [
            Item(policy, row.prompt, row.response, row.finished, row.response_ids, policy.name)
            for row in read_rows(file)
            if isinstance(row, Row)
            for policy in (config.policies["p0"], other)
        ]

    with (
        Store(tmp_path / "other.sqlite") as store,
        Session([config.policies["p0"]]) as session,
        Session([other], store=store) as apart,
    ):
        outcomes = [outcome for _, outcome in PolicyScorer(session, clone="clone", scored=apart).score(items)]

    assert seen[-1] == (12, 12)
    assert [isinstance(each, LogProbResult) and each.stored for each in outcomes] == [False, True] * 12


def _at_step(name: str) -> Callable[[str, int, int], None]:
    def progress(step: str, _done: int, _total: int) -> None:
        if step == name:
            raise Stop

    return progress


def test_stopped_anywhere_it_goes_on_to_the_same_results(tmp_path: Path, tiny_gguf: Path) -> None:
    """Stopped after every few rows, over and over: no row is repeated or lost, and no byte is another."""
    run(load_config(write_config(tmp_path / "one", tiny_gguf)))
    config = load_config(write_config(tmp_path / "many", tiny_gguf))
    for stops in range(100):
        try:
            run(config, progress=stop_after(1 + (7 * stops + 3) % 11))
            break
        except Stop:
            _tear(tmp_path / "many" / "run", random.Random(stops))
    assert stops > 4
    assert read(tmp_path / "many") == read(tmp_path / "one")


def _tear(folder: Path, rng: random.Random) -> None:
    """Leave the newest file with half a row at its end, as a write that was cut off does."""
    newest = max(folder.glob("**/*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    if newest.with_name(f"{newest.name}.run.json").is_file() and newest.name != "prompts.jsonl":
        with newest.open("ab") as file:
            file.write(b'{"response_id": "p0/q1'[: rng.randrange(1, 20)])


def test_killed_with_sigkill_it_goes_on_to_the_same_results(whole: Path, tmp_path: Path, tiny_gguf: Path) -> None:
    """In another folder than the whole run, at another time: neither is in the results."""
    path = write_config(tmp_path, tiny_gguf, clone=True)
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    died = subprocess.run([sys.executable, script, path, "47"], capture_output=True, check=False, timeout=120)

    assert died.returncode == -signal.SIGKILL
    assert not (tmp_path / "run" / "results.json").exists()
    run(load_config(path))
    assert read(tmp_path) == read(whole)


@pytest.mark.slow
def test_killed_at_random_moments_it_goes_on_to_the_same_results(whole: Path, tmp_path: Path, tiny_gguf: Path) -> None:
    rng = random.Random(1)
    for number in range(3):
        path = write_config(tmp_path / str(number), tiny_gguf, clone=True)
        command = [sys.executable, "-m", "llamalab", "arena", "run", str(path)]
        for _ in range(3):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(rng.uniform(0.3, 4.0))
            process.kill()
            process.wait()
        subprocess.run(command, check=True, capture_output=True)
        for name in FILES[:-1]:
            assert read(tmp_path / str(number))[name] == read(whole)[name]
        found, expected = (read_results(folder / "run" / "results.json") for folder in (tmp_path / str(number), whole))
        assert (found.policies, found.comparisons, found.aa) == (expected.policies, expected.comparisons, expected.aa)


def test_another_base_is_refused_when_the_responses_are_there(tmp_path: Path, tiny_gguf: Path) -> None:
    """Scored from the same folder with another temperature, template or file, the numbers would mean nothing."""
    config = load_config(write_config(tmp_path, tiny_gguf))
    with pytest.raises(Stop):
        run(config, progress=_at_step("draws of hot"))
    changed = load_config(write_config(tmp_path, tiny_gguf, p0=f"{{model: {tiny_gguf}, temperature: 0.8, seed: 1}}"))

    said = r"line 2, policies\.p0: .*policy\.decoding\.temperature was 0\.9 and is 0\.8.*--force"
    with pytest.raises(ConfigError, match=said):
        run(changed)
    with pytest.raises(ConfigError, match=said) as caught:
        run(changed, from_="logprobs")
    assert caught.value.exit_code == 2


def test_another_file_under_the_same_name_is_another_base(tmp_path: Path) -> None:
    model = tiny.write_bpe(tmp_path / "model.gguf", seed=0)
    path = write_config(tmp_path, model, responses="{max_tokens: 4}")
    run(load_config(path), only="prompts")
    run(load_config(path), only="responses")
    tiny.write_bpe(model, seed=1)

    with pytest.raises(ConfigError, match=r"policies\.p0: .*responses\.jsonl was made .*\(policy\.model was"):
        run(load_config(path), only="logprobs")


def test_force_writes_anew(tmp_path: Path, tiny_gguf: Path) -> None:
    path = write_config(tmp_path, tiny_gguf, responses="{max_tokens: 4}")
    run(load_config(path), only="prompts")
    run(load_config(path), only="responses")
    before = (tmp_path / "run" / "responses.jsonl").read_bytes()
    changed = load_config(write_config(tmp_path, tiny_gguf, responses="{max_tokens: 3}"))
    with pytest.raises(ConfigError, match="max_tokens"):
        run(changed, only="responses")

    run(changed, only="responses", force=True)
    assert (tmp_path / "run" / "responses.jsonl").read_bytes() != before


def test_steps_alone_say_what_is_missing(tmp_path: Path, tiny_gguf: Path) -> None:
    config = load_config(write_config(tmp_path, tiny_gguf))
    with pytest.raises(InputError, match=r"prompts\.jsonl is not there: run the step 'prompts' first"):
        run(config, only="responses")
    run(config, only="prompts")
    with pytest.raises(InputError, match=r"has 0 of 12 rows: run the step 'responses'"):
        run(config, only="judge")
    with pytest.raises(ConfigError, match=r"no step 'judges'\. Did you mean 'judge'\?"):
        run(config, only="judges")
    with pytest.raises(ConfigError, match="not both"):
        run(config, only="judge", from_="judge")


def test_a_missing_model_is_named_before_anything_runs(tmp_path: Path) -> None:
    said = r"arena\.yaml, line 2, policies\.p0\.model: .*no\.gguf"
    with pytest.raises(ConfigError, match=said):
        load_config(write_config(tmp_path, tmp_path / "no.gguf"))
    provided = f"{{provider: llama_cpp, model: {tmp_path / 'no.gguf'}}}"
    config = load_config(write_config(tmp_path, tmp_path, p0=provided, hot="{model: pico}"))
    with pytest.raises(ConfigError, match=said):
        run(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"judge": "{kind: 'python:judge.size', range: [0, 1]}"}, r"line 6, judge\.kind: .*no function 'size'"),
        ({"judge": "{kind: 'python:jugde.length', range: [0, 1]}"}, r"line 6, judge\.kind: .*jugde"),
        ({"prompts": "{file: no.jsonl}"}, r"line 4, prompts\.file: there is no file .*no\.jsonl"),
        ({"oracle": "{file: no.jsonl, range: [0, 1]}"}, r"line 7, oracle\.file: there is no file .*no\.jsonl"),
        ({"responses": "{file: no.jsonl, generated_by: p0}"}, r"line 5, responses\.file: there is no file"),
    ],
)
def test_what_a_later_step_needs_is_looked_for_first(
    tmp_path: Path, tiny_gguf: Path, section: dict[str, str], said: str
) -> None:
    config = load_config(write_config(tmp_path, tiny_gguf, **section))
    with pytest.raises(ConfigError, match=said):
        run(config)
    assert not (tmp_path / "run").exists()


def test_right_answers_that_no_prompt_has_are_missed_before_a_response_is_written(
    tmp_path: Path, tiny_gguf: Path
) -> None:
    config = load_config(write_config(tmp_path, tiny_gguf, judge="{kind: exact_match, reference: answer}"))
    with pytest.raises(ConfigError, match=r"line 6, judge\.reference: no prompt has a field 'answer'"):
        run(config)
    assert not (tmp_path / "run" / "responses.jsonl").exists()


def test_a_template_that_does_not_work_is_named_before_a_response_is_written(tmp_path: Path, tiny_gguf: Path) -> None:
    hot = f"{{model: {tiny_gguf}, template: no-such-template}}"
    config = load_config(write_config(tmp_path, tiny_gguf, hot=hot))
    with pytest.raises(ConfigError, match=r"line 3, policies\.hot: .*no-such-template"):
        run(config)
    assert not (tmp_path / "run" / "responses.jsonl").exists()


def test_two_runs_in_one_folder_are_told_apart(whole: Path) -> None:
    config = load_config(whole / "arena.yaml")

    def again(_step: str, _done: int, _total: int) -> None:
        with pytest.raises(InputError, match="Another process is at work"):
            run(config)
        raise Stop

    with pytest.raises(Stop):
        run(config, progress=again)


def test_a_response_that_cannot_be_written_is_a_row_with_an_error(tmp_path: Path, tiny_gguf: Path) -> None:
    """A prompt longer than the context: its row says so, the others go on, and the failure is counted."""
    path = write_config(tmp_path, tiny_gguf, responses="{max_tokens: 4}", oracle="")
    rows = [{"id": "long", "prompt": "code " * 2000}, {"id": "a", "prompt": "x"}, {"id": "b", "prompt": "y"}]
    (tmp_path / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    config = load_config(path)
    for step in ("prompts", "responses"):
        run(config, only=step)

    found = jsonl(tmp_path / "run" / "responses.jsonl")

    assert [row.get("error") for row in found] == ["context_overflow", None, None]
    counts = {step.step: (step.done, step.failed, step.left) for step in status(config)}
    assert counts["responses"] == (2, 1, 0)


def test_another_tokeniser_is_a_caution(tmp_path: Path, tiny_gguf: Path, tiny_spm_gguf: Path) -> None:
    """Its own tokens of the text are scored, and the report says what that leaves out."""
    hot = f"{{model: {tiny_spm_gguf}, template: chatml}}"
    p0 = f"{{model: {tiny_gguf}, temperature: 0.9, template: chatml}}"
    path = write_config(tmp_path, tiny_gguf, p0=p0, hot=hot, responses="{max_tokens: 6, per_prompt: 2}")
    run(load_config(path))

    notes = json.loads((tmp_path / "run" / "results.json").read_text())["notes"]
    assert any("'hot' has another tokeniser than 'p0'" in note for note in notes)
    rows = [row["policies"] for row in jsonl(tmp_path / "run" / "logprobs.jsonl")]
    scored = [row for row in rows if "tokens" in row["hot"]]
    assert scored
    assert all([t["id"] for t in row["p0"]["tokens"]] != [t["id"] for t in row["hot"]["tokens"]] for row in scored)


def given_responses(folder: Path, rows: list[dict[str, Any]]) -> str:
    (folder / "r.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return "{file: r.jsonl, generated_by: p0}"


def test_responses_from_elsewhere_are_used_as_they_are(tmp_path: Path, tiny_gguf: Path) -> None:
    rows = [{"prompt_id": f"q{number}", "response": f"the {number}", "logprob": -9.5} for number in range(6)]
    config = load_config(write_config(tmp_path, tiny_gguf, responses=given_responses(tmp_path, rows)))
    run(config)

    found = jsonl(tmp_path / "run" / "responses.jsonl")
    assert [(row["response"], row["logprob"], row["finished"]) for row in found] == [
        (row["response"], -9.5, True) for row in rows
    ]
    assert len(jsonl(tmp_path / "run" / "logprobs.jsonl")) == 6


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt_id": "q1", "response": "x", "logprob": 0.5}, r"line 2: the field 'logprob' is 0\.5.*at most 0"),
        ({"prompt_id": "q1", "response": "x", "logprob": float("nan")}, r"line 2: .*'logprob' must be a number"),
        ({"prompt_id": "q1"}, r"line 2: the field 'response' must be text"),
        (
            {"prompt_id": "q1", "response": "x", "response_id": "one"},
            r"line 2: the response_id 'one' is that of line 1",
        ),
        ({"response": "x"}, r"line 2: the field 'prompt_id'"),
        ({"prompt_id": "q1", "response": "x", "finish_reason": "end"}, r"line 2: the field 'finish_reason'"),
        ({"prompt_id": "q1", "response": "x", "response_ids": [-1]}, r"line 2: the field 'response_ids'"),
    ],
)
def test_a_faulty_response_is_named(tmp_path: Path, tiny_gguf: Path, row: dict[str, Any], said: str) -> None:
    first = {"prompt_id": "q0", "response": "x", "response_id": "one"}
    config = load_config(write_config(tmp_path, tiny_gguf, responses=given_responses(tmp_path, [first, row])))
    run(config, only="prompts")
    with pytest.raises(InputError, match=rf"r\.jsonl, {said}"):
        run(config, only="responses")


def test_without_the_extra_its_name_is_said(tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "cje" else find(name, *rest))
    with pytest.raises(ConfigError, match=r"needs cje, .*pip install 'llamalab\[arena\]'"):
        run(load_config(write_config(tmp_path, tiny_gguf)))
