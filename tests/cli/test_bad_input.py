"""Bad input: one clear paragraph on standard error, exit code 2, no traceback, nothing on standard output."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny
from tests.cli.conftest import Cli, Outcome


def refused(result: Outcome, *words: str) -> None:
    assert result.code == 2, result
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert "Traceback" not in result.err
    assert result.err.count("\n") == 1
    for word in words:
        assert word.lower() in result.err.lower(), result.err


@pytest.fixture(params=["generate", "tokens"])
def verb(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_no_such_file(cli: Cli, verb: str) -> None:
    refused(cli(verb, "/no/such.gguf", "hi"), "/no/such.gguf")


def test_no_such_name(cli: Cli, verb: str) -> None:
    refused(cli(verb, "nosuchmodel", "hi"), "nosuchmodel", "hub:")


def test_folder(cli: Cli, verb: str, tmp_path: Path) -> None:
    refused(cli(verb, str(tmp_path), "hi"), str(tmp_path))


def test_empty_file(cli: Cli, verb: str, tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    refused(cli(verb, str(tmp_path / "empty.gguf"), "hi"), "empty.gguf")


def test_file_of_another_kind(cli: Cli, verb: str, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("this is a text, not a model" * 10)
    refused(cli(verb, str(tmp_path / "text.gguf"), "hi"), "text.gguf", "GGUF")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_truncated_file(cli: Cli, model: str, tmp_path: Path, share: float) -> None:
    content = Path(model).read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[: int(len(content) * share)])
    refused(cli("generate", str(tmp_path / "cut.gguf"), "hi"), "cut.gguf")


def test_unsupported_architecture(cli: Cli, tmp_path: Path) -> None:
    file = tiny.write_bpe(tmp_path / "odd.gguf", architecture="nosuch")
    refused(cli("generate", str(file), "hi"), "nosuch")


def test_vocabulary_without_weights(cli: Cli, tmp_path: Path) -> None:
    file = tiny.write_bpe(tmp_path / "vocab.gguf", weights=False)
    refused(cli("generate", str(file), "hi"), "vocab.gguf")
    assert cli("tokens", str(file), "hello").out == "1\n"


def test_unknown_provider(cli: Cli) -> None:
    refused(cli("generate", "nosuch:model", "hi"), "nosuch")


def test_unknown_option_names_the_nearest(cli: Cli) -> None:
    refused(cli("generate", "--temprature", "1", "hi"), "--temprature", "Did you mean --temperature", "generate --help")


def test_unknown_verb_names_the_nearest(cli: Cli) -> None:
    refused(cli("generat", "hi"), "generat", "Did you mean 'generate'?")


@pytest.mark.parametrize("option", [("-n", "0"), ("-t", "-1"), ("--top-p", "1.5"), ("-n", "many"), ("--seed", "-4")])
def test_values_out_of_range(cli: Cli, option: tuple[str, str]) -> None:
    refused(cli("generate", *option, "hi"), "Invalid value", option[0])


def test_value_that_the_engine_does_not_know(cli: Cli, model: str) -> None:
    refused(cli("generate", model, "hi", "--type-k", "q7"), "type_k", "q7", "q8_0")
    refused(cli("generate", model, "hi", "--tensor-split", "3;1"), "--tensor-split", "3;1")


def test_words_without_quotes(cli: Cli) -> None:
    refused(cli("generate", "tell", "me", "a", "story"), "quotes")


def test_empty_prompt(cli: Cli, model: str, verb: str) -> None:
    refused(cli(verb, model, ""), "empty")
    refused(cli(verb, model, "-", stdin=""), "empty")


def test_model_file_in_place_of_the_prompt(cli: Cli, model: str, verb: str) -> None:
    refused(cli(verb, model), "is a model file")


def test_two_models(cli: Cli, model: str) -> None:
    refused(cli("generate", "-m", model, "other", "hi"), "Two models", "other")
    refused(cli("chat", "-m", model, "other", stdin="hi"), "Two models", "other")


def test_prompt_longer_than_the_context(cli: Cli, model: str) -> None:
    refused(cli("generate", model, "hello " * 600), "512")


@pytest.mark.parametrize("megabytes", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_prompt_of_megabytes(cli: Cli, model: str, megabytes: int) -> None:
    refused(cli("generate", model, "-", stdin="hello world, hello! " * (50_000 * megabytes)), "512")


@pytest.mark.parametrize("arguments", [("generate", "-"), ("tokens", "-"), ("chat",)])
def test_standard_input_that_is_not_utf8(cli: Cli, arguments: tuple[str, ...]) -> None:
    refused(cli(*arguments, stdin=b"caf\xe9 latte"), "standard input", "0xe9", "offset 3")


def test_argument_that_is_not_utf8(cli: Cli, model: str) -> None:
    refused(cli("generate", model, "caf\udce9"), "not UTF-8")


def test_empty_message(cli: Cli) -> None:
    refused(cli("chat", stdin=" \n"), "empty")


def test_unknown_truncation(cli: Cli, model: str) -> None:
    refused(cli("chat", model, "--truncate", "newest", stdin="hi"), "newest", "oldest")


def test_unknown_template(cli: Cli, model: str) -> None:
    refused(cli("chat", model, "--template", "lama3", stdin="hi"), "lama3", "llama3")


def test_gpu_layers_without_a_gpu_are_a_warning(cli: Cli, model: str) -> None:
    import llama_cpp

    if llama_cpp.llama_supports_gpu_offload():
        pytest.skip("this llama.cpp can use a GPU")
    result = cli("generate", model, "hello", "-n", "2", "-g", "4")
    assert result.code == 0
    assert result.err.startswith("warning: n_gpu_layers=4")
    assert result.err.count("\n") == 1


def test_traceback_on_request(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamalab.errors import ModelNotFound

    with pytest.raises(ModelNotFound):
        cli("--debug", "generate", "/no/such.gguf", "hi")
    monkeypatch.setenv("LLAMALAB_DEBUG", "1")
    with pytest.raises(ModelNotFound):
        cli("generate", "/no/such.gguf", "hi")
