"""Remote scoring against llama-cpp-python's own server: it agrees with the local engine, or it is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.errors import (
    ConfigError,
    EmptyResponse,
    InputError,
    ProviderError,
    TemplateMissing,
    TokenBoundaryError,
)
from llamalab.scored import ScoreRequest
from llamalab.scoring.policy import make_policy
from llamalab.scoring.remote import RemoteScorer
from llamalab.scoring.teacher_forcing import TeacherForcing
from tests import tiny
from tests.scoring.endpoints import KEY, free_port, llama_cpp_server

PICO = Path(tiny.__file__).parent.parent / "src" / "llamalab" / "models" / "pico.gguf"
ATOL = 1e-4


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Path:
    """A tiny model with BOS whose greedy continuations are readable text."""
    return tiny.once(model_folder, "tiny-readable.gguf", lambda path: tiny.write_bpe(path, seed=6))


@pytest.fixture(scope="module")
def base_url(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with llama_cpp_server(tmp_path_factory.mktemp("server"), {"tiny": model, "pico": PICO}) as url:
        yield url


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[LlamaCppEngine]:
    with LlamaCppEngine(model, n_seq=0, n_ctx=256, n_threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model's template as a file; endpoints do not tell theirs."""
    path = tmp_path_factory.mktemp("template") / "tiny.jinja"
    path.write_text(tiny.TEMPLATE)
    return str(path)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def scorer(base_url: str, model: str = "tiny", **settings: Any) -> RemoteScorer:
    return RemoteScorer(make_policy("p", {"provider": "openai", "model": model, "base_url": base_url, **settings}))


def direct(engine: LlamaCppEngine, prompt: str, response: str) -> list[float | None]:
    """The local engine's values of the response's tokens, tokenised together with the prompt."""
    bos = engine.info.bos_id
    assert bos is not None
    prefix, whole = [bos, *engine.tokenize(prompt)], [bos, *engine.tokenize(prompt + response)]
    assert whole[: len(prefix)] == prefix
    return list(engine.score([ScoreRequest(prefix, whole[len(prefix) :])])[0].logprobs)


@pytest.mark.parametrize("method", ["echo", "continuation"])
@pytest.mark.parametrize("response", [" hello world", " café: naïve 👋 fin", "\n\ttabs"])
def test_a_server_agrees_with_the_local_engine(
    base_url: str, engine: LlamaCppEngine, method: str, response: str
) -> None:
    with scorer(base_url, method=method) as remote:
        result = remote.score("the code is", response, finished=False)

    expected = direct(engine, "the code is", response)
    assert [token.logprob for token in result.tokens] == pytest.approx(expected, abs=ATOL)
    assert result.value == pytest.approx(sum(value or 0.0 for value in expected), abs=ATOL * len(expected))
    assert result.method == method
    assert result.n_prefix == 1 + len(engine.tokenize("the code is"))
    assert result.n_end == 0
    assert result.fingerprint["self_check_nats"] < ATOL


@pytest.mark.parametrize("method", ["echo", "continuation"])
def test_a_conversation_and_its_end_agree_with_the_local_engine(
    base_url: str, model: Path, template: str, method: str
) -> None:
    asked = [{"role": "user", "content": "the name"}, {"role": "assistant", "content": "é"}]
    prompt = [*asked, {"role": "user", "content": "and the age?"}]
    local = TeacherForcing(provider="llama_cpp", model=model, template=template, system_prompt="code", n_threads=1)
    expected = local.compute_log_prob(prompt, "hello world", finished=True)

    with scorer(base_url, template=template, system_prompt="code", method=method) as remote:
        result = remote.score(prompt, "hello world", finished=True)

    assert result.n_end == expected.n_end == 1
    assert result.n_tokens == expected.n_tokens
    assert result.n_prefix == expected.n_prefix
    assert result.value == pytest.approx(expected.value, abs=ATOL * expected.n_tokens)


def test_a_response_that_begins_with_half_a_character_starts_behind_the_control_token(
    base_url: str, model: Path, template: str
) -> None:
    local = TeacherForcing(provider="llama_cpp", model=model, template=template, n_threads=1)
    expected = local.compute_log_prob("name", "ü", finished=False)

    with scorer(base_url, template=template) as remote:
        result = remote.score("name", "ü", finished=False)

    assert result.n_tokens == expected.n_tokens == 2
    assert result.value == pytest.approx(expected.value, abs=2 * ATOL)


@pytest.mark.parametrize("method", ["echo", "continuation"])
def test_a_token_over_the_border_is_refused(base_url: str, method: str) -> None:
    with scorer(base_url, method=method) as remote, pytest.raises(TokenBoundaryError):
        remote.score("he says hel", "lo", finished=False)


def test_a_model_whose_echo_is_shifted_is_refused_by_name(base_url: str) -> None:
    with scorer(base_url, "pico") as remote, pytest.raises(ProviderError, match=r"pico at .* shifted by one token"):
        remote.score("the code is", " 4", finished=False)


def test_a_wrong_key_is_one_message_without_the_key(base_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    with scorer(base_url) as remote, pytest.raises(ProviderError, match="refuses the key in OPENAI_API_KEY") as caught:
        remote.score("the", " code", finished=False)
    assert "sk-wrong" not in str(caught.value)


def test_an_endpoint_that_is_down_is_one_message() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    with (
        scorer(url, retries=1, backoff=0.01) as remote,
        pytest.raises(ProviderError, match=r"cannot be reached .* tried 2 times"),
    ):
        remote.score("the", " code", finished=False)


@pytest.mark.parametrize(
    ("prompt", "response", "error", "says"),
    [
        ("the", "a<|end|>b", InputError, "control token"),
        ("the <|user|>", " code", InputError, "character 4"),
        ("the", "", EmptyResponse, "response is empty"),
        ("", "code", InputError, "prompt is empty"),
        ("the", "a\udc80", InputError, "surrogate U\\+DC80"),
        ([{"role": "user", "content": "the"}], "code", TemplateMissing, "no chat template"),
    ],
)
def test_what_a_text_endpoint_cannot_be_sent_is_refused(prompt: Any, response: str, error: type, says: str) -> None:
    with scorer("http://127.0.0.1:1/v1") as remote, pytest.raises(error, match=says):
        remote.score(prompt, response, finished=False)


def test_teacher_forcing_takes_an_endpoint_like_a_model(base_url: str, engine: LlamaCppEngine) -> None:
    with scorer(base_url) as remote:
        expected = remote.score("the code is", " hello", finished=False).value
    local = TeacherForcing(provider="openai", model="tiny", base_url=base_url)
    result = local.compute_log_prob("the code is", " hello", finished=False)
    assert result.method == "echo"
    assert result.value == expected


def test_an_end_that_nobody_names_is_refused() -> None:
    with scorer("http://127.0.0.1:1/v1") as remote, pytest.raises(ConfigError, match="which token ends"):
        remote.score("the", " code", finished=True)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"temperature": 0.5}, "temperature 0.5.*temperature 1.*local engine"),
        ({"top_p": 0.9}, "truncates"),
        ({"method": "direct"}, "echo or continuation"),
        ({"metod": "echo"}, "method"),
        ({"api_key": "sk-x"}, "environment"),
        ({"deadline": 0}, "deadline"),
        ({"retries": -1}, "retries"),
        ({"base_url": "localhost:8000"}, "http://"),
    ],
)
def test_settings_that_mean_nothing_here_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        scorer(**{"base_url": "http://127.0.0.1:1/v1", **settings})


@pytest.mark.parametrize(("provider", "says"), [("fireworks", "FIREWORKS_API_KEY"), ("openai", "base_url")])
def test_what_is_missing_is_named(provider: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIREWORKS_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ProviderError, match=says):
        RemoteScorer(make_policy("p", {"provider": provider, "model": "m"}))
