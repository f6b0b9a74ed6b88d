"""What is changed between two runs of one folder is found, by name: no estimate is of other settings than it says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llamalab.arena.config import load_config
from llamalab.arena.pipeline import STEPS, check_unchanged, run
from llamalab.arena.results import read_results
from llamalab.errors import ConfigError
from tests import tiny
from tests.arena.test_pipeline import JUDGE, read, write_config

TEMPLATE = "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}<|assistant|>"
RESPONSES = "{draws: 1, per_prompt: 2, max_tokens: 6}"
ORACLE = "{judge: {kind: 'python:judge.length', range: [0, 1]}, fraction: 0.7}"


def policy(folder: Path, **changes: str) -> str:
    """The settings of a policy of a copied folder."""
    settings = {"model": str(folder / "model.gguf"), "temperature": "1.0", "seed": "1"} | changes
    return f"{{{', '.join(f'{name}: {value}' for name, value in settings.items())}}}"


def configure(folder: Path, **sections: str) -> Path:
    """Two policies on a model of the folder's own, the target with a template of its own."""
    given = {
        "p0": policy(folder, temperature="0.9"),
        "hot": policy(folder, template=f"'{folder / 'chat.jinja'}'"),
    }
    return write_config(folder, folder / "model.gguf", **(given | sections))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a whole run."""
    folder = tmp_path_factory.mktemp("whole")
    tiny.write_bpe(folder / "model.gguf", seed=0)
    (folder / "chat.jinja").write_text(TEMPLATE)
    run(load_config(configure(folder)))
    return folder


@contextmanager
def restored(folder: Path) -> Iterator[Path]:
    """A folder to change; afterwards it is as it was."""
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    try:
        yield folder
    finally:
        for path, content in kept.items():
            path.write_bytes(content)


@pytest.fixture
def folder(whole: Path) -> Iterator[Path]:
    with restored(whole) as folder:
        yield folder


def edit(folder: Path, name: str, old: str, new: str) -> None:
    """Change a file of a run behind its back."""
    text = (folder / "run" / name).read_text()
    assert old in text
    (folder / "run" / name).write_text(text.replace(old, new, 1))


Change = Callable[[Path], Path]
"""Changes a folder and gives its configuration."""


def hot(**changes: str) -> Change:
    return lambda folder: configure(
        folder, hot=policy(folder, **({"template": f"'{folder / 'chat.jinja'}'"} | changes))
    )


def section(**changes: str) -> Change:
    return lambda folder: configure(folder, **changes)


def file(name: str, content: str) -> Change:
    def change(folder: Path) -> Path:
        path = configure(folder)
        (folder / name).write_text(content)
        return path

    return change


def model(folder: Path) -> Path:
    tiny.write_bpe(folder / "model.gguf", seed=1)
    return configure(folder)


def edited(name: str, old: str, new: str) -> Change:
    def change(folder: Path) -> Path:
        edit(folder, name, old, new)
        return configure(folder)

    return change


PROMPTS = "".join(f"{json.dumps({'id': f'q{number}', 'prompt': f'ask {number}'})}\n" for number in range(6))

CASES: dict[str, tuple[Change, str, str]] = {
    "prompts: content of the file": (file("prompts.jsonl", PROMPTS), "prompts", r"prompts: .*files_sha256 was"),
    "prompts: how many": (section(prompts="{file: prompts.jsonl, num: 5}"), "prompts", "prompts.num was null and is 5"),
    "prompts: seed": (section(prompts="{file: prompts.jsonl, seed: 3}"), "prompts", "prompts.seed was 0 and is 3"),
    "prompts: edited in the run": (edited("prompts.jsonl", "say 1", "say 9"), "responses", "prompts_sha256 was"),
    "base: temperature": (
        lambda folder: configure(folder, p0=policy(folder, temperature="0.8")),
        "responses",
        r"policies\.p0: .*policy\.decoding\.temperature was 0\.9 and is 0\.8",
    ),
    "base: seed": (
        lambda folder: configure(folder, p0=policy(folder, temperature="0.9", seed="2")),
        "responses",
        r"policies\.p0: .*policy\.seed was 1 and is 2",
    ),
    "base: model file under the same path": (model, "responses", r"policies\.p0: .*policy\.model was"),
    "responses: length": (
        section(responses="{draws: 1, per_prompt: 2, max_tokens: 7}"),
        "responses",
        r"writing\.max_tokens was 6 and is 7",
    ),
    "responses: how many": (
        section(responses="{draws: 1, per_prompt: 1, max_tokens: 6}"),
        "responses",
        "per_prompt was 2 and is 1",
    ),
    "draws: how many": (
        section(responses="{draws: 2, per_prompt: 2, max_tokens: 6}"),
        "draws",
        "per_prompt was 1 and is 2",
    ),
    "target: seed of its draws": (hot(seed="2"), "draws", r"policies\.hot: .*policy\.seed was 1 and is 2"),
    "target: temperature": (hot(temperature="1.1"), "draws", r"policies\.hot: .*temperature was 1\.0 and is 1\.1"),
    "responses: edited in the run": (
        edited("responses.jsonl", '"finished":', '"note": "x", "finished":'),
        "judge",
        r"responses_sha256\.responses\.jsonl was",
    ),
    "judge: range": (
        section(judge="{kind: 'python:judge.length', range: [0, 5]}"),
        "judge",
        r"judge: .*judge\.range was \[0\.0, 1\.0\] and is \[0\.0, 5\.0\]",
    ),
    "judge: another one": (section(judge="{kind: exact_match}"), "judge", r"judge\.function was"),
    "judge: its source": (
        file("judge.py", f"{JUDGE}\n# another rule\n"),
        "judge",
        r"judge: .*judge\.source_sha256 was",
    ),
    "oracle: fraction": (
        section(oracle="{judge: {kind: 'python:judge.length', range: [0, 1]}, fraction: 0.9}"),
        "labels",
        r"oracle: .*oracle\.fraction was 0\.7 and is 0\.9",
    ),
    "oracle: seed": (
        section(oracle="{judge: {kind: 'python:judge.length', range: [0, 1]}, fraction: 0.7, seed: 1}"),
        "labels",
        r"oracle\.seed was 0 and is 1",
    ),
}
"""What is changed, the step whose file no longer fits, and what is said."""


@pytest.mark.parametrize("from_", [None, "estimate"], ids=["whole run", "from estimate"])
@pytest.mark.parametrize("case", CASES)
def test_what_was_changed_is_refused_by_name(folder: Path, case: str, from_: str | None) -> None:
    """By the run that would go on, and by one that would estimate from the old rows; nothing is touched."""
    change, step, said = CASES[case]
    path = change(folder)
    before = read(folder)

    with pytest.raises(ConfigError, match=said) as caught:
        run(load_config(path), from_=from_)

    assert f"'{step}' with --force" in str(caught.value) or f"--only {step} --force" in str(caught.value)
    assert read(folder) == before


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run without fresh draws: its targets are only scored."""
    folder = tmp_path_factory.mktemp("scored")
    tiny.write_bpe(folder / "model.gguf", seed=0)
    tiny.write_bpe(folder / "other.gguf", seed=1)
    (folder / "chat.jinja").write_text(TEMPLATE)
    run(load_config(configure_scored(folder)))
    return folder


def configure_scored(folder: Path, **sections: str) -> Path:
    given = {
        "hot": policy(folder, model=str(folder / "other.gguf"), template=f"'{folder / 'chat.jinja'}'"),
        "responses": "{per_prompt: 2, max_tokens: 6}",
    }
    return configure(folder, **(given | sections))


def other(folder: Path, **changes: str) -> str:
    settings = {"model": str(folder / "other.gguf"), "template": f"'{folder / 'chat.jinja'}'"} | changes
    return policy(folder, **settings)


TARGETS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "temperature": (
        lambda folder: configure_scored(folder, hot=other(folder, temperature="1.1")),
        r"line 3, policies\.hot: .*logprobs\.jsonl was made .*\.decoding\.temperature was 1\.0 and is 1\.1",
    ),
    "system prompt": (
        lambda folder: configure_scored(folder, hot=other(folder, system_prompt="Be brief.")),
        r"policies\.hot\.system_prompt was null and is \"Be brief\.\"",
    ),
    "template, by content": (
        lambda folder: [
            configure_scored(folder),
            (folder / "chat.jinja").write_text(TEMPLATE.replace("<|user|>", "<|system|>")),
        ][0],  # type: ignore[return-value]
        r"policies\.hot\.template_sha256 was",
    ),
    "model, by content": (
        lambda folder: [configure_scored(folder), tiny.write_bpe(folder / "other.gguf", seed=2)][0],
        r"line 3, policies\.hot: .*policies\.hot\.model_sha256 was",
    ),
    "a new target": (
        lambda folder: _add(configure_scored(folder), f"  new: {policy(folder, temperature='1.2')}\n"),
        r"policies\.new: .*policies\.new was null and is",
    ),
}


def _add(path: Path, line: str) -> Path:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], line, *lines[3:]]))
    return path


@pytest.mark.parametrize("from_", [None, "judge", "estimate"])
@pytest.mark.parametrize("case", TARGETS)
def test_a_target_that_was_changed_is_never_estimated_from_its_old_scores(
    scored: Path, case: str, from_: str | None
) -> None:
    change, said = TARGETS[case]
    with restored(scored):
        before = (scored / "run" / "results.json").read_bytes()
        path = change(scored)
        if from_ == "judge":  # what reads no log probabilities is not kept from running
            run(load_config(path), only="judge")
            return
        with pytest.raises(ConfigError, match=said) as caught:
            run(load_config(path), from_=from_)
        assert "--only logprobs --force" in str(caught.value)
        assert (scored / "run" / "results.json").read_bytes() == before


def test_the_remedy_that_is_named_is_one(folder: Path) -> None:
    """Only what was changed is done anew; the scores of the others come from the store."""
    path = hot(temperature="1.1")(folder)
    labels = (folder / "run" / "labels.jsonl").read_bytes()
    for step in ("draws", "logprobs", "judge"):
        with pytest.raises(ConfigError, match=f"{step}.*--force|--force.*{step}"):
            run(load_config(path))
        run(load_config(path), only=step, force=True)
    run(load_config(path))
    assert (folder / "run" / "labels.jsonl").read_bytes() == labels
    (facts,) = (each.facts for each in read_results(folder / "run" / "results.json").policies if each.name == "hot")
    assert facts["temperature"] == "1.1"


def test_draws_that_are_no_longer_wanted_are_left_out(folder: Path) -> None:
    """Their files stay; nobody judges them any more, and that is no failure of their policy."""
    path = configure(folder, responses="{per_prompt: 2, max_tokens: 6}")
    run(load_config(path), only="judge", force=True)
    run(load_config(path))
    assert (folder / "run" / "draws" / "hot.jsonl").is_file()
    (found,) = (each for each in read_results(folder / "run" / "results.json").policies if each.name == "hot")
    assert found.failures == {}
    assert "draws" not in {value.estimator for value in found.values}


def test_a_report_alone_is_of_the_settings_in_the_file(folder: Path) -> None:
    path = configure(folder, estimators="{replicates: 100, direct: false, folds: 3}")
    with pytest.raises(ConfigError, match=r"estimators: .*config\.estimators\.folds was 2 and is 3.*step 'estimate'"):
        run(load_config(path), only="report")
    run(load_config(path), from_="estimate")
    run(load_config(path), only="report")
    edit(folder, "judged.jsonl", '"score":', '"note": 1, "score":')
    with pytest.raises(ConfigError, match=r"rows_sha256\.judged\.jsonl was"):
        run(load_config(path), only="report")


def test_the_command_report_is_of_the_settings_in_the_file(folder: Path) -> None:
    """`arena report` reads a folder; of a file that says something else than the folder, it says so."""
    check_unchanged(load_config(configure(folder)))
    judge = "{kind: 'python:judge.length', range: [0, 5]}"
    with pytest.raises(ConfigError, match=r"judge\.range was .* Run from the step 'estimate'"):
        check_unchanged(load_config(configure(folder, judge=judge)))


def test_a_run_that_was_moved_goes_on(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings and contents count, not where they lie: all steps but the estimate find their rows done."""
    folder = shutil.copytree(whole, tmp_path / "moved")
    path = write_config(
        folder,
        whole / "model.gguf",
        p0=policy(whole, temperature="0.9"),
        hot=policy(whole, template=f"'{whole / 'chat.jinja'}'"),
    )
    monkeypatch.chdir(folder)
    done: set[str] = set()
    run(load_config(Path(path.name)), progress=lambda step, _done, _total: done.add(step))
    assert done == {"estimate", "report"}
    assert read(folder) == read(whole)


def test_every_step_says_what_it_needs() -> None:
    from llamalab.arena.made_from import NEEDS

    assert tuple(NEEDS) == STEPS
    assert all(STEPS.index(each) < STEPS.index(step) for step, needs in NEEDS.items() for each in needs)
