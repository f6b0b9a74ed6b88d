"""`llamalab generate` in JAX: options, the entropix sampler, its trace and its picture."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from llamalab.cli.generate import complete_arguments
from tests.cli.conftest import Cli
from tests.cli.test_bad_input import refused

ENTROPIX = ("--sampler", "entropix", "--thresholds", "fractional", "--n-ctx", "64", "-n", "12", "--seed", "3")
"""The same everywhere: one compilation."""
FIELDS = ["index", "id", "text", "probability", "case", "temperature", "entropy", "varentropy"]
ATTENTION = ["attention_entropy", "attention_varentropy", "agreement", "interaction"]


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What XLA makes of tiny programs need not be fast, and is not kept in the user's folder."""
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture
def in_jax(model: str) -> str:
    return f"jax:{model}"


def test_jax_and_llama_cpp_answer_alike(cli: Cli, model: str, in_jax: str) -> None:
    options = ("hello world", "-t", "0", "-n", "12", "--n-ctx", "64")
    assert cli("generate", in_jax, *options, "--dtype", "float32") == cli("generate", model, *options)


def test_a_trace_says_what_decided_each_token(cli: Cli, in_jax: str, tmp_path: Path) -> None:
    result = cli("generate", in_jax, "hello", *ENTROPIX, "--trace", "t.jsonl", "--plot", "--json")
    assert result.code == 0
    assert result.err == "The picture is in trace.svg.\n"
    document = json.loads(result.out)
    lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert all(list(line) == FIELDS + ATTENTION for line in lines)
    assert [line["index"] for line in lines] == list(range(len(lines)))
    assert [line["id"] for line in lines][: len(document["ids"])] == document["ids"]
    assert all(0 < line["probability"] <= 1 for line in lines)
    assert all(line["temperature"] == 0 for line in lines if line["case"] == "LELV")
    picture = (tmp_path / "trace.svg").read_text()
    assert "thresholds: fractional" in picture
    points = [c for c in ET.fromstring(picture).iter("{http://www.w3.org/2000/svg}circle") if c.get("r") == "4.5"]
    assert len(points) == len(lines)


def test_a_picture_goes_where_it_is_told(cli: Cli, in_jax: str, tmp_path: Path) -> None:
    (tmp_path / "old.svg").write_text("old")
    result = cli("generate", in_jax, *ENTROPIX, "--plot", "old.svg", "hello")
    assert (result.code, result.err) == (0, "The picture is in old.svg.\n")
    assert ET.fromstring((tmp_path / "old.svg").read_text()).tag.endswith("svg")
    assert not (tmp_path / "trace.svg").exists()


def test_a_message_through_a_pipe_is_answered_in_jax(cli: Cli, model: str, in_jax: str) -> None:
    options = ("-t", "0", "-n", "8", "--n-ctx", "64")
    assert cli("chat", in_jax, *options, stdin="hello\n") == cli("chat", model, *options, stdin="hello\n")
    drawn = cli("chat", in_jax, *ENTROPIX, stdin="hello\n")
    assert (drawn.code, drawn.err) == (0, "")


@pytest.mark.parametrize(
    ("given", "completed"),
    [
        (["generate", "--plot", "a prompt"], ["generate", "--plot", "trace.svg", "a prompt"]),
        (["generate", "a prompt", "--plot"], ["generate", "a prompt", "--plot", "trace.svg"]),
        (["generate", "--plot", "--json"], ["generate", "--plot", "trace.svg", "--json"]),
        (["generate", "--plot", "x/y.SVG", "p"], ["generate", "--plot", "x/y.SVG", "p"]),
        (["generate", "--plot", "x.png", "p"], ["generate", "--plot", "x.png", "p"]),  # refused by name
        (["generate", "--plot", "draw me an x.svg"], ["generate", "--plot", "trace.svg", "draw me an x.svg"]),
        (["generate", "--plot=x.svg", "p"], ["generate", "--plot=x.svg", "p"]),
        (["--debug", "generate", "--logprobs"], ["--debug", "generate", "--logprobs", "0"]),
        (["verify", "a", "b", "--plot", "x.pdf"], ["verify", "a", "b", "--plot", "x.pdf"]),
        (["verify", "a", "b", "--plot"], ["verify", "a", "b", "--plot"]),
    ],
)
def test_plot_needs_no_file_name(given: list[str], completed: list[str]) -> None:
    assert complete_arguments(given) == completed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--thresholds", "original"], ["--thresholds", "add --sampler entropix"]),
        (["--trace", "t.jsonl"], ["--trace and --plot", "add --sampler entropix"]),
        (["--plot"], ["--trace and --plot", "add --sampler entropix"]),
        (["--sampler", "plain", "--plot"], ["add --sampler entropix"]),
        (["--sampler", "entropix", "--plot", "x.png"], ["x.png", "end the name", ".svg"]),
        (["--sampler", "entropix", "--plot", "no/x.svg"], ["no/x.svg cannot be written", "No such file"]),
        (["--sampler", "entropix", "--trace", "no/x"], ["no/x cannot be written", "No such file"]),
        (["--sampler", "entropix", "--trace", "."], ["cannot be written", "Is a directory"]),
        (["--sampler", "entropix", "-t", "1", "--top-k", "3"], ["--temperature, --top-k", "no effect"]),
        (["--sampler", "greedy"], ["sampler must be one of plain, entropix", "'greedy'"]),
        (["--sampler", "entropix", "--thresholds", "new"], ["original, fractional", "'new'"]),
        (["--dtype", "int4"], ["dtype must be one of float32", "'int4'"]),
        (["--mesh", "rows=2"], ["'rows=2' is not a mesh", "tensor=4"]),
        (["--mesh", "tensor=64"], ["needs 64 devices", "there"]),
        (["--mesh", "data=2"], ["data=2"]),
        (["--rope-factor", "0.5"], ["--rope-factor"]),
        (["--n-threads", "2"], ["no option 'n_threads'"]),
    ],
)
def test_bad_options(cli: Cli, in_jax: str, tmp_path: Path, options: list[str], words: list[str]) -> None:
    refused(cli("generate", in_jax, "hi", *options), *words)
    assert not list(tmp_path.glob("*.svg"))


@pytest.mark.parametrize(
    "options", [["--sampler", "entropix"], ["--int8", "--mesh", "tensor=2"], ["--dtype", "float32"]]
)
def test_options_of_jax_with_a_model_in_llama_cpp(cli: Cli, model: str, options: list[str]) -> None:
    for spec in (model, f"llama_cpp:{model}"):
        for verb in ("generate", "chat"):
            prompt = ["hi"] if verb == "generate" else []
            refused(cli(verb, spec, *prompt, *options, stdin="hi"), options[0], "runs in llama.cpp", f"jax:{model}")
