"""What cannot be compared is refused before anything runs, by name; what can be is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamalab.arena.config import load_config
from llamalab.arena.refusals import contains
from llamalab.arena.settings import ArenaConfig
from llamalab.errors import ConfigError
from llamalab.scored import Decoding


def config(tmp_path: Path, base: str, target: str, rest: str = "", *, name: str = "pi") -> ArenaConfig:
    """Base on line 2, target on line 3."""
    path = tmp_path / "arena.yaml"
    path.write_text(f"policies:\n  p0: {{{base}}}\n  {name}: {{{target}}}\n{rest}", encoding="utf-8")
    return load_config(path)


def refused(tmp_path: Path, *arguments: str, **names: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, *arguments, **names)
    return str(caught.value).partition("arena.yaml, ")[2]


def test_a_truncated_base_and_a_whole_target_are_refused_by_name(tmp_path: Path) -> None:
    message = refused(tmp_path, "model: pico, top_p: 0.9", "model: pico")

    assert message.startswith("line 2, policies.p0.top_p: the base 'p0' never writes what its top_p cuts off")
    assert "target 'pi'" in message
    assert "Take top_p out of the base" in message


def test_the_reverse_is_fine(tmp_path: Path) -> None:
    assert config(tmp_path, "model: pico", "model: pico, top_p: 0.9, top_k: 40").targets == ("pi",)


def test_a_target_that_is_cut_further_is_fine(tmp_path: Path) -> None:
    base, target = "model: pico, top_p: 0.9, top_k: 40", "model: pico, top_p: 0.8, top_k: 40, temperature: 2.0"
    assert config(tmp_path, base, target).targets == ("pi",)


def test_a_truncated_base_contains_no_other_model_or_prompt(tmp_path: Path) -> None:
    message = refused(tmp_path, "model: pico, top_k: 9", "model: pico, top_k: 9, system_prompt: Be brief.")

    assert message.startswith("line 2, policies.p0.top_k: ")
    assert "is not the base's distribution cut further" in message


decodings = st.builds(
    Decoding,
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.sampled_from([0, 2, 3, 5]),
    top_p=st.sampled_from([0.4, 0.7, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.3]),
    order=st.sampled_from(["truncate_first", "temperature_first"]),
)


def kept(logits: np.ndarray[Any, Any], decoding: Decoding) -> set[int]:
    """Tokens that a sampler can give: top-k, top-p, min-p, each renormalised, written from their definitions."""
    scale = decoding.temperature if decoding.order == "temperature_first" else 1.0
    order = np.argsort(-logits, kind="stable")
    if decoding.top_k:
        order = order[: decoding.top_k]
    mass = np.exp(logits[order] / scale)
    mass /= mass.sum()
    before = np.cumsum(mass) - mass
    order = order[before < decoding.top_p] if decoding.top_p < 1 else order
    mass = np.exp((logits[order] - logits[order[0]]) / scale)
    return set(order[mass >= decoding.min_p].tolist())


@given(decodings, decodings, st.lists(st.integers(-30, 30), min_size=6, max_size=6, unique=True))
def test_contains_is_true_of_the_kept_sets(base: Decoding, target: Decoding, logits: list[int]) -> None:
    """Where it says that the base's support holds the target's, no logits are an exception."""
    values = np.array(logits) / 7.3
    if contains(base, target):
        assert kept(values, target) <= kept(values, base)


def test_contains_is_not_always_false() -> None:
    assert contains(Decoding(0.5, top_k=5, top_p=0.9), Decoding(2.0, top_k=5, top_p=0.9))
    assert not contains(
        Decoding(top_p=0.9, order="temperature_first"), Decoding(2.0, top_p=0.9, order="temperature_first")
    )


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("max_tokens", "10", "Responses are cut at another length"),
        ("stop", "[a]", "Responses end at other strings"),
        ("schema", "{type: object}", "Responses are held to another schema"),
    ],
)
def test_other_rules_of_stopping_are_refused(tmp_path: Path, setting: str, value: str, said: str) -> None:
    message = refused(tmp_path, "model: pico", f"model: pico, {setting}: {value}")

    assert message.startswith(f"line 3, policies.pi.{setting}: policy 'pi' has another {setting} than the base 'p0'")
    assert said in message
    assert "best under 'responses'" in message


def test_a_schema_is_refused_because_the_scorer_knows_none(tmp_path: Path) -> None:
    message = refused(tmp_path, "model: pico", "model: pico", "responses: {schema: {type: object}}\n")

    assert message.startswith("line 4, responses.schema: ")
    assert "another distribution than the one that scores it" in message


@pytest.mark.parametrize("name", ["frequency_penalty", "presence_penalty", "repeat_penalty", "repetition_penalty"])
def test_every_penalty_is_refused_unless_it_is_off(tmp_path: Path, name: str) -> None:
    assert f"policies.pi.{name}: " in refused(tmp_path, "model: pico", f"model: pico, {name}: 0.5")
    off = 1.0 if name.startswith("rep") else 0
    assert config(tmp_path, "model: pico", f"model: pico, {name}: {off}").clone == "pi"


@pytest.mark.parametrize(
    "differs", ["temperature: 0.9", "system_prompt: x", "template: chatml", "n_ctx: 64", "top_p: 0.9"]
)
def test_a_clone_by_name_agrees_in_everything(tmp_path: Path, differs: str) -> None:
    message = refused(tmp_path, "model: pico", f"model: pico, {differs}", name="pi_clone")

    assert "a clone agrees with the base 'p0' in everything" in message
    assert "give the policy another name" in message


def test_another_seed_is_still_a_clone(tmp_path: Path) -> None:
    """It chooses which responses are drawn, and changes no probability."""
    assert config(tmp_path, "model: pico, seed: 1", "model: pico, seed: 2", name="pi_clone").clone == "pi_clone"


def test_a_clone_is_found_by_what_it_is(tmp_path: Path) -> None:
    assert config(tmp_path, "model: pico", "model: pico", name="twin").clone == "twin"
    assert config(tmp_path, "model: pico", "model: pico, temperature: 0.9", name="twin").clone is None


@pytest.mark.parametrize(
    ("writer", "what"),
    [
        ("{model: other.gguf, provider: llama_cpp}", "model"),
        ("{model: pico, temperature: 0.7}", "temperature"),
        ("{model: pico, template: chatml}", "template"),
        ("{model: pico, top_p: 0.9}", "top_p"),
    ],
)
def test_a_base_that_did_not_write_the_responses_is_refused(tmp_path: Path, writer: str, what: str) -> None:
    rest = f"responses:\n  file: r.jsonl\n  generated_by: {writer}\n"
    message = refused(tmp_path, "model: pico", "model: pico, temperature: 2.0", rest)

    assert message.startswith("line 6, responses.generated_by: ")
    assert what in message
    assert "Make the base what wrote them" in message


def test_a_base_that_did_write_them_is_not(tmp_path: Path) -> None:
    for writer in ("p0", "{model: pico}"):
        rest = f"responses: {{file: r.jsonl, generated_by: {writer}}}\n"
        assert config(tmp_path, "model: pico", "model: pico, temperature: 2.0", rest).responses.generated_by is not None


def test_a_remote_base_needs_its_responses(tmp_path: Path) -> None:
    message = refused(tmp_path, "provider: fireworks, model: m", "model: pico", "judge: {kind: exact_match}\n")

    assert message.startswith("line 2, policies.p0.provider: the base runs elsewhere (fireworks)")
    assert "responses.file" in message


def test_a_remote_target_cannot_draw(tmp_path: Path) -> None:
    message = refused(tmp_path, "model: pico", "provider: fireworks, model: m", "responses: {draws: 1}\n")

    assert message.startswith("line 4, responses.draws: policy 'pi' runs elsewhere (fireworks)")


def test_the_guides_mixed_providers_are_no_clone(tmp_path: Path) -> None:
    """An API and a quantised file are two policies, whatever they are called."""
    rest = "responses: {file: r.jsonl, generated_by: p0}\njudge: {kind: exact_match}\n"
    base, target = "provider: fireworks, model: accounts/x/llama-v3-8b-instruct, temperature: 0.5", "model: pico"
    message = refused(tmp_path, base, target, rest, name="pi_clone")

    assert "has another provider, model and temperature" in message


def test_what_is_written_here_is_drawn_as_it_is_scored(tmp_path: Path) -> None:
    late = "model: pico, temperature: 0.5, top_p: 0.9, order: temperature_first"
    message = refused(tmp_path, late, late)

    assert message.startswith("line 2, policies.p0.order: ")
