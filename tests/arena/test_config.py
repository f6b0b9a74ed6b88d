"""Configurations: the guide's file as it stands, every section, and every mistake with file, line, name and remedy."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamalab.arena import config_file
from llamalab.arena.config import load_config
from llamalab.arena.settings import CHATBOT_ARENA, ArenaConfig
from llamalab.errors import ConfigError, LlamalabError
from tests.policy_guide import GUIDE

TWO = "policies:\n  p0: {model: pico, temperature: 0.7}\n  hot: {model: pico}\n"
"""Two policies, on lines 2 and 3."""

Load = Callable[..., ArenaConfig]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """A configuration from its text."""

    def loaded(text: str, **overrides: Any) -> ArenaConfig:
        path = tmp_path / "arena.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(path, overrides)

    return loaded


def refusal(load: Load, text: str, **overrides: Any) -> str:
    """The message of a configuration that is refused, without the folder that the file is in."""
    with pytest.raises(LlamalabError) as caught:
        load(text, **overrides)
    assert isinstance(caught.value, ConfigError)
    assert caught.value.exit_code == 2
    head, _, rest = str(caught.value).partition("arena.yaml, ")
    return rest if rest else head


def test_the_guides_file_is_read_as_it_stands(load: Load) -> None:
    config = load(GUIDE)

    assert list(config.policies) == ["p0", "pi_clone", "pi_bigger_model", "pi_bad"]
    assert (config.base, config.targets) == ("p0", ("pi_clone", "pi_bigger_model", "pi_bad"))
    assert config.clone == "pi_clone"
    assert config.policies["pi_bad"].system_prompt == "You are an unhelpful assistant."
    assert config.policies["pi_bigger_model"].options == {"n_ctx": 4096, "n_gpu_layers": 35}


def test_policies_on_one_file_share_one_engine(load: Load) -> None:
    keys = {name: policy.engine_key for name, policy in load(GUIDE).policies.items()}

    assert keys["p0"] == keys["pi_clone"] == keys["pi_bad"] != keys["pi_bigger_model"]


def test_whatever_is_left_open_is_said(load: Load) -> None:
    config = load(GUIDE)

    assert config.prompts.source == CHATBOT_ARENA
    assert config.judge.kind == "llm"
    assert config.judge.model is not None
    assert config.judge.model.engine_key == config.policies["p0"].engine_key
    assert config.oracle is None
    assert [sentence.partition(":")[0] for sentence in config.said] == ["base", "prompts", "judge", "oracle", "output"]


def test_a_whole_file_leaves_nothing_to_say(load: Load, tmp_path: Path) -> None:
    config = load(
        TWO
        + "base: hot\ntargets: [p0]\n"
        + "prompts: {file: q.csv, num: 20, seed: 3, stratify: kind, field: ask, split: test}\n"
        + "responses: {per_prompt: 2, draws: 1, max_tokens: 30, stop: ['##']}\n"
        + "judge: {kind: 'python:judges.length', range: [-1, 1]}\n"
        + "oracle: {judge: {kind: exact_match, reference: answer}, fraction: 0.25, seed: 5}\n"
        + "estimators: {names: [snips, dr], level: 0.9, folds: 4, replicates: 300, seed: 7, direct: false}\n"
        + "output: {folder: out}\n"
    )

    assert config.said == ()
    assert (config.base, config.targets) == ("hot", ("p0",))
    assert config.prompts.source == str(tmp_path / "q.csv")
    assert (config.prompts.num, config.prompts.stratify, config.prompts.split) == (20, "kind", "test")
    assert (config.judge.kind, config.judge.function, config.judge.range) == ("python", "judges.length", (-1.0, 1.0))
    assert config.judge.folder == tmp_path
    assert config.oracle is not None
    assert config.oracle.range == (0.0, 1.0)
    assert config.oracle.judge is not None
    assert config.oracle.judge.reference == "answer"
    assert config.estimators.names == ("snips", "dr")
    assert {writing.max_tokens for writing in config.writing.values()} == {30}
    assert {writing.stop for writing in config.writing.values()} == {("##",)}
    assert config.folder == tmp_path / "out"


def test_the_record_is_json_and_the_same_for_the_same_file(load: Load) -> None:
    assert json.dumps(load(GUIDE).record()) == json.dumps(load(GUIDE).record())


def test_the_command_line_wins_and_is_named(load: Load) -> None:
    text = TWO + "prompts: {file: q.jsonl, num: 20}\njudge: {kind: llm, rubric: x, range: [0, 1]}\n"
    config = load(text, **{"prompts.num": 5, "judge": {"kind": "exact_match"}})

    assert (config.prompts.num, config.judge.kind) == (5, "exact_match")
    message = refusal(load, text, **{"prompts.num": 1})
    assert message.startswith("the command line, prompts.num: ")
    assert "at least 2" in message


MISTAKES = {
    "unknown section": (TWO + "promts: {}\n", "line 4, promts: ", "Did you mean 'prompts'?"),
    "unknown setting": (TWO + "prompts:\n  fil: a\n", "line 5, prompts.fil: ", "Did you mean 'file'?"),
    "unknown setting of a policy": (
        "policies:\n  p0:\n    model: pico\n    tempreature: 1\n",
        "line 4, policies.p0.tempreature: ",
        "Did you mean 'temperature'?",
    ),
    "unknown base": (TWO + "base: p1\n", "line 4, base: ", "there is no policy 'p1'. Did you mean 'p0'?"),
    "unknown target": (TWO + "targets: [hott]\n", "line 4, targets.0: ", "Did you mean 'hot'?"),
    "base as a target": (TWO + "targets: [p0]\n", "line 4, targets.0: ", "Take it out"),
    "target twice": (TWO + "targets: [hot, hot]\n", "line 4, targets.1: ", "Take one out"),
    "one policy": ("policies:\n  p0: {model: pico}\n", "line 1, policies: ", "Add one under 'policies'"),
    "no policy": ("policies: {}\n", "line 1, policies: ", "there is no policy"),
    "policies missing": ("base: p0\n", "policies: ", "is missing"),
    "a policy without a model": ("policies:\n  p0: {seed: 1}\n", "line 2, policies.p0: ", "'model' is missing"),
    "a policy that is no mapping": ("policies:\n  p0: pico\n", "line 2, policies.p0: ", "a mapping (model: ..."),
    "a name that is no file's": ("policies:\n  a/b: {model: pico}\n", "line 2, policies.a/b: ", "letters, digits"),
    "temperature 0": (
        "policies:\n  p0:\n    model: pico\n    temperature: 0\n",
        "line 4, policies.p0.temperature: ",
        "must be above 0",
    ),
    "a penalty": (
        "policies:\n  p0:\n    model: pico\n    repeat_penalty: 1.1\n",
        "line 4, policies.p0.repeat_penalty: ",
        "Leave repeat_penalty out, or set it to 1",
    ),
    "a value of another kind": (TWO + "prompts:\n  num: ten\n", "line 5, prompts.num: ", "cannot be 'ten'"),
    "a value of none of two kinds": (TWO + "responses: {stop: 5}\n", "line 4, responses.stop: ", "cannot be 5"),
    "one prompt": (TWO + "prompts: {num: 1}\n", "line 4, prompts.num: ", "at least 2"),
    "two sources": (TWO + "prompts: {file: a, dataset: b/c}\n", "line 4, prompts.dataset: ", "'file' or 'dataset'"),
    "no response": (TWO + "responses: {per_prompt: 0}\n", "line 4, responses.per_prompt: ", "at least 1"),
    "no such judge": (TWO + "judge: {kind: lm}\n", "line 4, judge.kind: ", "Did you mean 'llm'?"),
    "a judge without a kind": (TWO + "judge: {range: [0, 1]}\n", "line 4, judge.kind: ", "is missing"),
    "a judge without a range": (
        TWO + "judge:\n  kind: python:judges.length\n",
        "line 4, judge.range: ",
        "say between which two numbers",
    ),
    "a rubric without a range": (TWO + "judge: {kind: llm, rubric: x}\n", "line 4, judge.range: ", "as in [0, 1]"),
    "a range upside down": (
        TWO + "judge:\n  kind: exact_match\n  range: [1, 0]\n",
        "line 6, judge.range: ",
        "the smaller one first",
    ),
    "a range that is not finite": (
        TWO + "judge: {kind: exact_match, range: [0, .inf]}\n",
        "line 4, judge.range: ",
        "two numbers",
    ),
    "a function without a module": (
        TWO + "judge: {kind: 'python:f'}\n",
        "line 4, judge.kind: ",
        "python:module.function",
    ),
    "a setting of another judge": (
        TWO + "judge: {kind: exact_match, rubric: x}\n",
        "line 4, judge.rubric: ",
        "'exact_match' has no 'rubric'",
    ),
    "oracle fraction 0": (
        TWO + "oracle:\n  judge: {kind: exact_match}\n  fraction: 0\n",
        "line 6, oracle.fraction: ",
        "above 0 and at most 1",
    ),
    "oracle fraction above 1": (
        TWO + "oracle: {judge: {kind: exact_match}, fraction: 25}\n",
        "line 4, oracle.fraction: ",
        "above 0 and at most 1",
    ),
    "no oracle fraction": (
        TWO + "oracle: {judge: {kind: exact_match}}\n",
        "line 4, oracle.fraction: ",
        "as in 0.25",
    ),
    "an oracle of nothing": (TWO + "oracle: {fraction: 0.5}\n", "line 4, oracle: ", "a 'file' or from a 'judge'"),
    "labels without a range": (
        TWO + "oracle: {file: l.jsonl}\n",
        "line 4, oracle.range: ",
        "between which two numbers",
    ),
    "a judge's labels by hand": (
        TWO + "oracle: {judge: {kind: exact_match}, random: false}\n",
        "line 4, oracle.random: ",
        "only labels in a file",
    ),
    "no such estimator": (
        TWO + "estimators: {names: [sips]}\n",
        "line 4, estimators.names.0: ",
        "Did you mean 'snips'?",
    ),
    "no estimator": (TWO + "estimators: {names: []}\n", "line 4, estimators.names: ", "at least one of ips"),
    "a level that is none": (TWO + "estimators: {level: 95}\n", "line 4, estimators.level: ", "as in 0.95"),
    "one fold": (TWO + "estimators: {folds: 1}\n", "line 4, estimators.folds: ", "at least 2"),
    "one candidate": (TWO + "candidates: {num: 1}\n", "line 4, candidates.num: ", "at least 2 candidates"),
    "responses of nobody": (TWO + "responses: {file: r.jsonl}\n", "line 4, responses.file: ", "Add generated_by"),
    "responses of a stranger": (
        TWO + "responses: {file: r.jsonl, generated_by: p1}\n",
        "line 4, responses.generated_by: ",
        "Did you mean 'p0'?",
    ),
    "a writer of nothing": (
        TWO + "responses: {generated_by: p0}\n",
        "line 4, responses.generated_by: ",
        "there is no file",
    ),
    "a schema that is not there": (TWO + "responses: {schema: no.json}\n", "line 4, responses.schema: ", "JSON schema"),
    "a name given twice": (TWO + "base: p0\nbase: hot\n", "", "line 5: 'base' is given twice"),
    "no YAML": ("policies: [\n", "", "not valid YAML: line"),
    "a setting that holds itself": ("policies: &p\n  p0: *p\n", "", "too deeply, or hold themselves"),
    "settings without end": ("policies: " + "[" * 3000 + "]" * 3000, "", "too deeply"),
    "references to references": (
        "n0: &n0 [x]\n" + "".join(f"n{at}: &n{at} [{', '.join([f'*n{at - 1}'] * 10)}]\n" for at in range(1, 10)),
        "",
        "more than 100,000 settings",
    ),
    "a range beyond numbers": (
        TWO + "judge: {kind: 'python:a.b', range: [-1e308, 1e308]}\n".replace("1e308", "1.0e+308"),
        "line 4, judge.range",
        "Change the unit",
    ),
    "no settings": ("- a\n", "", "holds no settings"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_line_and_remedy(name: str, load: Load) -> None:
    text, place, remedy = MISTAKES[name]
    message = refusal(load, text)

    assert message.startswith(place)
    assert remedy in message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file\.yaml cannot be read"):
        load_config(tmp_path / "no such file.yaml")


def test_the_page_names_every_setting() -> None:
    """In a table under its section's heading."""
    page = (Path(__file__).parents[2] / "docs" / "arena-config.md").read_text(encoding="utf-8")
    parts = {part.partition("\n")[0]: part for part in page.split("\n## ")}
    sections = {
        "`policies`, `base`, `targets`": config_file.PolicySection,
        "`prompts`": config_file.PromptsSection,
        "`responses`": config_file.ResponsesSection,
        "`judge`": config_file.JudgeSection,
        "`oracle`": config_file.OracleSection,
        "`estimators`": config_file.EstimatorsSection,
        "`candidates`": config_file.CandidatesSection,
        "`output`": config_file.OutputSection,
    }
    for heading, section in sections.items():
        rows = [line.split("|")[1] for line in parts[heading].splitlines() if line.startswith("| `")]
        named = set(re.findall(r"`(\w+)`", " ".join(rows)))
        assert {field.alias or name for name, field in section.model_fields.items()} <= named, heading
    assert set(config_file.File.model_fields) <= set(re.findall(r"`(\w+)`", " ".join(parts)))


def test_labels_chosen_by_hand_can_be_declared(load: Load) -> None:
    oracle = load(TWO + "oracle: {file: l.jsonl, range: [0, 1], random: false}\n").oracle

    assert oracle is not None
    assert oracle.random is False
