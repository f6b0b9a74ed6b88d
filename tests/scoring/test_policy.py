"""Policies come from the files that people have, mean the same however they are written, and say what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamalab.errors import ConfigError, LlamalabError, ModelNotFound, ProviderError
from llamalab.scored import Decoding
from llamalab.scoring.policy import Policy, load_policies, make_policy
from tests.policy_guide import GUIDE

MIXED = """
policies:
  p0:
    provider: "fireworks"  # Use API for baseline
    model: "accounts/fireworks/models/llama-v3-8b-instruct"
    temperature: 0.5
    
  pi_clone:
    provider: "llama_cpp"  # Use local for deterministic testing
    model: "~/models/llama-3-8b-instruct.Q4_K_M.gguf"
    temperature: 0.5
    seed: 42
"""  # noqa: W293


class Policies:
    """Writes a file and loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, text: str | bytes) -> dict[str, Policy]:
        self.path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_policies(self.path)

    def refused(self, text: str | bytes, error: type[LlamalabError] = ConfigError) -> str:
        with pytest.raises(error) as caught:
            self(text)
        assert type(caught.value) is error
        assert str(self.path) in str(caught.value)
        return str(caught.value)


@pytest.fixture
def policies(tmp_path: Path) -> Policies:
    return Policies(tmp_path / "arena_config.yaml")


def test_the_guides_file_loads_as_it_stands(policies: Policies) -> None:
    found = policies(GUIDE)
    assert list(found) == ["p0", "pi_clone", "pi_bigger_model", "pi_bad"]
    bad = found["pi_bad"]
    assert bad == Policy(
        "pi_bad",
        "llama_cpp",
        "~/models/llama-3-8b-instruct.Q4_K_M.gguf",
        Decoding(temperature=1.0),
        "You are an unhelpful assistant.",
        seed=42,
        options={"n_ctx": 4096, "n_gpu_layers": -1},
    )
    assert found["p0"].decoding.temperature == 0.5
    assert bad.spec == "llama_cpp:~/models/llama-3-8b-instruct.Q4_K_M.gguf"


def test_policies_of_one_model_and_options_share_an_engine(policies: Policies) -> None:
    p0, clone, bigger, bad = policies(GUIDE).values()
    assert p0.engine_key == clone.engine_key == bad.engine_key != bigger.engine_key
    at_home = make_policy("p", {**dict(p0.options), "provider": "llama_cpp", "model": str(Path(p0.model).expanduser())})
    assert at_home.engine_key == p0.engine_key
    other = make_policy("p", {"provider": "llama_cpp", "model": p0.model, "n_ctx": 2048, "n_gpu_layers": -1})
    assert other.engine_key != p0.engine_key
    assert len({p0, clone, bigger, bad}) == 4


def test_a_file_may_mix_providers(policies: Policies) -> None:
    p0, clone = policies(MIXED).values()
    assert (p0.provider, p0.remote, clone.remote) == ("fireworks", True, False)


@pytest.mark.parametrize(
    ("provider", "order"),
    [("llama_cpp", "truncate_first"), ("jax", "truncate_first"), ("openai", "temperature_first")],
)
def test_the_order_of_the_sampler_is_that_of_who_draws(provider: str, order: str) -> None:
    assert make_policy("p", {"provider": provider, "model": "x"}).decoding.order == order
    given = make_policy("p", {"provider": provider, "model": "x", "order": "temperature_first"})
    assert given.decoding.order == "temperature_first"


def test_without_a_provider_the_model_says_it() -> None:
    assert make_policy("p", {"model": "pico"}).provider == "llama_cpp"
    assert make_policy("p", {"model": "jax:pico"}).spec == "jax:pico"
    assert make_policy("p", {"model": "llama_cpp:pico", "provider": "llama_cpp"}).spec == "llama_cpp:pico"
    assert make_policy("p", {"model": "fireworks:accounts/x"}).spec == "fireworks:accounts/x"
    with pytest.raises(ModelNotFound):
        make_policy("p", {"model": "/no/such/file.gguf"})


def test_a_date_may_be_text_or_what_yaml_makes_of_it(policies: Policies) -> None:
    text = "policies: {a: {model: pico, date: 2025-01-02}, b: {model: pico, date: '2025-01-02'}, c: {model: pico}}"
    assert [policy.date for policy in policies(text).values()] == ["2025-01-02", "2025-01-02", "2024-07-26"]


def test_adapters_in_yaml_have_a_scale(policies: Policies) -> None:
    text = "policies: {p: {provider: llama_cpp, model: pico, adapters: [[a.gguf, 0.5], b.gguf]}}"
    assert policies(text)["p"].options == {"adapters": [("a.gguf", 0.5), "b.gguf"]}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("provider: llama_cpp, model: pico, temperature: 0", "At temperature 0 one token has all the mass"),
        ("provider: llama_cpp, model: pico, temperature: -1", "temperature must be above 0"),
        ("provider: llama_cpp, model: pico, temperature: .inf", "temperature must be above 0"),
        ("provider: llama_cpp, model: pico, temperature: warm", "'temperature' cannot be 'warm'"),
        ("provider: llama_cpp, model: pico, temperature: true", "'temperature' cannot be True"),
        ("provider: llama_cpp, model: pico, top_p: 1.5", "top_p"),
        ("provider: llama_cpp, model: pico, top_k: 0.5", "'top_k' cannot be 0.5"),
        ("provider: llama_cpp, model: pico, date: today", "must be a day such as 2024-07-26, not 'today'"),
        ("provider: llama_cpp, model: pico, order: backwards", "'order' cannot be 'backwards'"),
        ("provider: llama_cpp, model: pico, temprature: 0.5", "Did you mean 'temperature'?"),
        ("provider: llama_cpp, model: pico, n_ctxx: 5", "Did you mean 'n_ctx'?"),
        ("provider: llama_cpp, model: pico, n_ctx: lots", "n_ctx must be a whole number"),
        ("provider: llama_cpp, temperature: 1.0", "The setting 'model' is missing"),
        ("provider: llama_cpp, model: [pico]", "'model' cannot be ['pico']"),
        ("model: /no/such/file.gguf", "/no/such/file.gguf"),
    ],
)
def test_a_wrong_setting_is_named_with_its_policy(policies: Policies, settings: str, said: str) -> None:
    message = policies.refused(f"policies: {{good: {{provider: llama_cpp, model: x}}, mine: {{{settings}}}}}")
    assert "policy 'mine'" in message
    assert said in message


def test_an_unknown_provider_is_named_with_the_nearest(policies: Policies) -> None:
    message = policies.refused("policies: {p: {provider: llama-cpp, model: pico}}", ProviderError)
    assert "Did you mean 'llama_cpp'?" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no policies"),
        ("[1, 2]", "no policies"),
        ("policies: {}", "no policies"),
        ("policies: {p: pico}", "mapping"),
        ("policies:\n  p: {model: pico", "line 2"),
        ("policies:\n  p: {model: pico}\n  p: {model: x}\n", "line 3: 'p' is given twice"),
        ("policies:\n  p:\n    model: pico\n    model: x\n", "line 4: 'model' is given twice"),
        (b"policies: \xff", "not UTF-8"),
        ("policies: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_file_of_policies_says_why(policies: Policies, text: str | bytes, said: str) -> None:
    assert said in policies.refused(text)


def test_a_missing_file_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_policies(tmp_path / "none.yaml")
