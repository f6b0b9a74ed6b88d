"""config.toml: the guide's examples as they stand, and every mistake with its file, line and name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamalab.errors import ConfigError
from llamalab.rlm.config import ProviderSettings, RlmConfig, default_config, load_config, with_models
from llamalab.rlm.config_file import setting_lines

SMALL_SUB = """\
# DeepSeek API for root (reliable JSON)
[[providers]]
provider_type = "deepseek"
model = "deepseek-chat"
role = "root"

# Small local model for sub-calls (free)
[[providers]]
provider_type = "ollama"
base_url = "http://localhost:11434"
model = "llama3.2:3b"
role = "sub"
"""

LOCAL_70B = """\
# config.toml
max_iterations = 20
max_sub_calls = 50

# Local Qwen 72B as root LLM
[[providers]]
provider_type = "ollama"
base_url = "http://p40-server:11434"
model = "qwen2.5:72b-instruct-q4_K_M"
role = "root"
weight = 1

# Local smaller model for sub-calls
[[providers]]
provider_type = "ollama"
base_url = "http://localhost:11434"
model = "qwen2.5-coder:14b"
role = "sub"
weight = 1
"""

HYBRID = """\
# DeepSeek API for root (cheap, reliable)
[[providers]]
provider_type = "deepseek"
base_url = "https://api.deepseek.com"
model = "deepseek-chat"
role = "root"
weight = 1

# Local Ollama for sub-calls (free)
[[providers]]
provider_type = "ollama"
base_url = "http://localhost:11434"
model = "qwen2.5-coder:14b"
role = "sub"
weight = 1
"""

AIR_GAPPED = """\
# Local 70B for root
[[providers]]
provider_type = "ollama"
base_url = "http://localhost:11434"
model = "qwen2.5:72b-instruct-q4_K_M"
role = "root"
weight = 1

# Same or different model for sub-calls
[[providers]]
provider_type = "ollama"
base_url = "http://localhost:11434"
model = "qwen2.5:72b-instruct-q4_K_M"
role = "sub"
weight = 1
"""

BYPASS = """\
# config.toml
bypass_enabled = true
bypass_threshold = 4000  # chars (~1000 tokens)
"""

EXAMPLES = {"small sub": SMALL_SUB, "local 70B": LOCAL_70B, "hybrid": HYBRID, "air-gapped": AIR_GAPPED}


def read(folder: Path, text: str) -> RlmConfig:
    path = folder / "config.toml"
    path.write_text(text)
    return load_config(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("small sub", [("deepseek", "deepseek-chat", "root"), ("ollama", "llama3.2:3b", "sub")]),
        ("local 70B", [("ollama", "qwen2.5:72b-instruct-q4_K_M", "root"), ("ollama", "qwen2.5-coder:14b", "sub")]),
        ("hybrid", [("deepseek", "deepseek-chat", "root"), ("ollama", "qwen2.5-coder:14b", "sub")]),
        (
            "air-gapped",
            [("ollama", "qwen2.5:72b-instruct-q4_K_M", "root"), ("ollama", "qwen2.5:72b-instruct-q4_K_M", "sub")],
        ),
    ],
)
def test_the_guides_examples_are_read_as_they_stand(name: str, expected: list[tuple[str, ...]], tmp_path: Path) -> None:
    config = read(tmp_path, EXAMPLES[name])
    assert [(each.provider_type, each.model, each.role) for each in config.providers] == expected
    assert (config.max_iterations, config.max_sub_calls, config.said) == (20, 50, ())
    assert len({each.name for each in config.providers}) == 2


def test_addresses_go_to_the_provider_they_stand_at(tmp_path: Path) -> None:
    config = read(tmp_path, LOCAL_70B)
    addresses = ["http://p40-server:11434", "http://localhost:11434"]
    assert [each.options["base_url"] for each in config.providers] == addresses


def test_the_guides_bypass_is_honoured(tmp_path: Path) -> None:
    config = read(tmp_path, BYPASS + SMALL_SUB)
    assert (config.bypass_enabled, config.bypass_threshold) == (True, 4000)
    assert read(tmp_path, SMALL_SUB).bypass_threshold == "auto"


BLOCK = '[[providers]]\nprovider_type = "ollama"\nmodel = "m"\n'


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("max_iterations = 0\n" + BLOCK, 1, "max_iterations: it cannot be 0"),
        ("\nmax_iteration = 5\n" + BLOCK, 2, "Did you mean 'max_iterations'"),
        ('max_sub_calls = "50"\n' + BLOCK, 1, "max_sub_calls: it cannot be '50'"),
        ("max_seconds = nan\n" + BLOCK, 1, "max_seconds: it cannot be nan"),
        ("max_cost = inf\n" + BLOCK, 1, "max_cost"),
        ("bypass_enabled = 1\n" + BLOCK, 1, "bypass_enabled"),
        ('bypass_threshold = "some"\n' + BLOCK, 1, "bypass_threshold"),
        ('protocol = "long"\n' + BLOCK, 1, "protocol"),
        ("max_iterations = 20\nmax_iterations = 30\n" + BLOCK, 2, "overwrite"),
        ("max_iterations = \n" + BLOCK, 1, "not valid TOML"),
        (BLOCK + 'role = "both', 4, "not valid TOML"),
        (BLOCK + 'role = "boss"\n', 4, "provider 1.role: it cannot be 'boss'"),
        (BLOCK + "weight = 0\n", 4, "provider 1.weight"),
        (BLOCK + "weight = 1.5\n", 4, "provider 1.weight"),
        (BLOCK + "\n" + BLOCK.replace("ollama", "olama"), 6, "Did you mean 'ollama'"),
        (BLOCK + '[[providers]]\nmodel = "m"\n', 4, "provider 2.provider_type: it is missing"),
        (BLOCK + 'base_ulr = "http://x"\n', 4, "Did you mean 'base_url'"),
        (BLOCK + 'base_url = "localhost"\n', 4, "must begin with http"),
        (BLOCK + "timeout = -1\n", 4, "timeout must be"),
        (BLOCK + "price_in = -1\n", 4, "price_in"),
        (BLOCK + 'api_key = "sk-hidden"\n', 4, "put it into the environment"),
        (BLOCK + 'api_key_env = "sk-hidden"\n', 4, "name of an environment variable"),
        ('[[providers]]\nprovider_type = "llama_cpp"\nmodel = "pico"\nn_ctxx = 5\n', 4, "Did you mean 'n_ctx'"),
        ('[[providers]]\nprovider_type = "llama_cpp"\nmodel = "pico"\nn_ctx = "much"\n', 4, "n_ctx"),
        ("max_cost = 0.5\n" + SMALL_SUB, 3, "price_in and price_out of deepseek:deepseek-chat"),
        (BLOCK + 'role = "sub"\n', 4, "no provider steers"),
        (BLOCK.replace("[[providers]]", "[providers]"), 1, "headed [[providers]], with two brackets"),
        ("providers = [1]\n", 1, "headed [[providers]], with two brackets"),
        ("\n" + BLOCK.replace("[[providers]]", "[[provider]]"), 2, "Did you mean 'providers'"),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, line: int, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert f"config.toml, line {line}" in str(caught.value)
    assert says in str(caught.value)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"providers = 5", "providers"),
        (b"\xff\xfe", "not UTF-8"),
        (b"b = 1\n\na = " + b"9" * 6000, "line 3: this integer has more digits"),
        (b"a = " + b"[" * 100_000, "hundreds deep"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_message(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(path)
    assert len(str(caught.value)) < 500


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml cannot be read: No such file"):
        load_config(tmp_path / "nowhere.toml")


def test_what_has_no_meaning_here_is_said_and_passed_over(tmp_path: Path) -> None:
    config = read(tmp_path, "phased_threshold = 500000\n" + BLOCK + "\n[wasm]\nenabled = true\n")
    assert ["line 1, phased_threshold" in said for said in config.said] == [True, False]
    assert "line 6, wasm" in config.said[1]


def test_a_root_alone_answers_sub_questions_and_that_is_said(tmp_path: Path) -> None:
    config = read(tmp_path, BLOCK + 'role = "root"\n')
    assert 'no provider has the role "sub"' in config.said[0]


def test_two_blocks_of_one_model_have_two_names(tmp_path: Path) -> None:
    config = read(tmp_path, BLOCK + BLOCK + BLOCK + 'name = "mine"\n')
    assert [each.name for each in config.providers] == ["ollama:m", "ollama:m #2", "mine"]


def test_tables_of_a_provider_belong_to_the_block_above(tmp_path: Path) -> None:
    config = read(tmp_path, BLOCK + "[providers.extra]\nthink = false\n\n" + BLOCK + "n_ctx = 4096\n")
    assert [each.options for each in config.providers] == [{"extra": {"think": False}}, {"n_ctx": 4096}]


def test_lines_inside_a_long_text_are_no_settings() -> None:
    text = 'a = """\nb = 1\n[[c]]\n"""\nd = 2\n'
    assert setting_lines(text) == {"a": 1, "d": 5}


@given(st.text())
def test_any_text_has_lines(text: str) -> None:
    assert all(1 <= line <= len(text.splitlines()) for line in setting_lines(text).values())


def test_without_a_file_pico_has_both_roles() -> None:
    (only,) = default_config().providers
    assert (only.provider_type, only.model, only.role, only.name) == ("llama_cpp", "pico", "both", "pico")


@pytest.mark.parametrize("text", ["", "providers = []\n", "max_iterations = 3\n", BYPASS])
def test_a_file_that_names_no_model_means_pico_with_the_limits_as_given(text: str, tmp_path: Path) -> None:
    config = read(tmp_path, text)
    assert (config.providers, config.unnamed) == (default_config().providers, True)
    assert config.max_iterations == (3 if "max_iterations" in text else 20)
    assert config.bypass_threshold == (4000 if "bypass" in text else "auto")
    named = with_models(config, root="ollama:a")
    assert (roles(named), named.unnamed, named.max_iterations) == ([("ollama:a", "both")], False, config.max_iterations)
    assert with_models(config, sub="ollama:b").unnamed


def roles(config: RlmConfig) -> list[tuple[str, str]]:
    return [(each.name, each.role) for each in config.providers]


@pytest.mark.parametrize(
    ("root", "sub", "expected"),
    [
        ("ollama:a", None, [("ollama:a", "both")]),
        (None, "ollama:b", [("pico", "root"), ("ollama:b", "sub")]),
        ("ollama:a", "ollama:b", [("ollama:a", "root"), ("ollama:b", "sub")]),
        ("ollama:a", "ollama:a", [("ollama:a", "both")]),
        (None, None, [("pico", "both")]),
    ],
)
def test_models_of_the_command_line_take_the_place_of_pico(
    root: str | None, sub: str | None, expected: list[tuple[str, str]]
) -> None:
    assert roles(with_models(default_config(), root=root, sub=sub)) == expected


def test_a_limit_of_the_cost_needs_the_prices_of_models_of_the_command_line_too(tmp_path: Path) -> None:
    config = read(tmp_path, "max_cost = 0.5\n")
    for named in ({"root": "deepseek:deepseek-chat"}, {"sub": "openai:m"}):
        with pytest.raises(ConfigError, match=r"config\.toml, with price_in and price_out"):
            with_models(config, **named)
    assert roles(with_models(config, root="ollama:a")) == [("ollama:a", "both")]


def test_models_of_the_command_line_take_the_place_of_their_role_in_a_file() -> None:
    both = ProviderSettings("ollama", "m", "both", name="m")
    config = RlmConfig((both, ProviderSettings("ollama", "s", "sub", name="s")), path=Path("config.toml"))
    assert roles(with_models(config, root="pico")) == [("m", "sub"), ("s", "sub"), ("pico", "root")]
