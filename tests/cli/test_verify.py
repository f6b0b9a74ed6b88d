"""`llamalab verify`: what it prints, how it exits, and the way from one format to the next."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from llamalab.checkpoints.convert import convert
from tests import tiny
from tests.checkpoints.test_pth import Reduced, with_pickle
from tests.cli.conftest import Cli
from tests.cli.test_bad_input import refused

SHORT = ("--prompts", "short.txt", "--tokens", "4")


@pytest.fixture(autouse=True)
def short_prompts(tmp_path: Path, empty_machine: None) -> None:
    (tmp_path / "short.txt").write_text('hello world\n{"prompt": "the name and the age"}\n')


@pytest.fixture(autouse=True)
def waiting_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command puts into the environment is taken out again."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")


def test_a_model_that_went_through_every_format_gives_llama_cpps_numbers(cli: Cli, model: str, tmp_path: Path) -> None:
    """GGUF, Meta, safetensors, GGUF; then JAX on each against llama.cpp on the last."""
    for source, target, form in ((model, "m", "meta"), ("m", "h", "safetensors"), ("h", "g.gguf", "gguf")):
        assert cli("convert", source, str(tmp_path / target), "--to", form).code == 0
    for path, tokens in (("m", 0), ("h", 0), ("g.gguf", 4)):
        limits = ("--atol", "1e-4", "--rtol", "0", "--prompts", "short.txt", "--tokens", str(tokens))
        done = cli("verify", f"jax:{path}", "llama_cpp:g.gguf", "--json", *limits)
        said = json.loads(done.out)
        assert (done.code, said["agree"], done.err) == (0, True, "")
        (found,) = said["comparisons"]
        assert (found["a"], found["b"]) == (f"jax:{path}", "llama_cpp:g.gguf")
        assert found["logits"]["outside"] == 0
        assert found["top1"] == 1
        assert found["greedy"] == ({"tokens": 8, "equal": 8, "departures": []} if tokens else None)


@pytest.mark.reference
@pytest.mark.xdist_group("pytorch")
def test_pico_gives_the_numbers_of_metas_code_of_transformers_and_of_llama_cpp(cli: Cli) -> None:
    for library in ("torch", "transformers", "fairscale", "llama_models"):
        pytest.importorskip(library)
    for source, target, form in (("pico", "m", "meta"), ("m", "h", "safetensors"), ("h", "g.gguf", "gguf")):
        assert cli("convert", source, target, "--to", form).code == 0
    for a, b in (("jax:m", "meta:m"), ("jax:h", "transformers:h"), ("jax:g.gguf", "llama_cpp:g.gguf")):
        done = cli("verify", a, b, "--json", "--tokens", "8")
        said = json.loads(done.out)
        assert (done.code, said["agree"]) == (0, True), said["notes"]
        assert said["comparisons"][0]["top1"] > 0.999
        assert said["comparisons"][0]["kl_mean"] < 1e-7


def test_a_quantised_file_is_held_against_its_f32_form_too(cli: Cli, tiny_q8_gguf: Path) -> None:
    """llama.cpp rounds activations to eight bits there: that row differs, the verdict follows the other."""
    a, b = f"llama_cpp:{tiny_q8_gguf}", f"jax:{tiny_q8_gguf}"
    done = cli("verify", a, b, "--json", *SHORT)
    said = json.loads(done.out)
    quantised, wide = said["comparisons"]
    assert done.code == 0
    assert (quantised["a"], wide["a"], wide["b"]) == (a, f"{a} in F32", b)
    assert (quantised["agree"], wide["agree"], said["agree"]) == (False, True, True)
    assert quantised["logits"]["largest"] > 100 * wide["logits"]["largest"]
    assert any("holds Q8_0" in note for note in said["notes"])
    as_is = cli("verify", a, b, "--as-is", "--json", *SHORT)
    assert (as_is.code, len(json.loads(as_is.out)["comparisons"])) == (1, 1)


def test_the_table_says_what_differs_and_where(cli: Cli, model: str, tmp_path: Path) -> None:
    other = tiny.write_bpe(tmp_path / "other.gguf", seed=1)
    done = cli("verify", f"llama_cpp:{model}", f"llama_cpp:{other}", "--layers", "--plot", "d.svg", *SHORT)
    assert done.code == 1
    assert (tmp_path / "d.svg").read_text().count("<svg") == 1
    lines = done.out.splitlines()
    assert lines[0].split()[:4] == ["A", "B", "largest", "|Δ|"]
    assert lines[1].split()[:2] == [f"llama_cpp:{model}", f"llama_cpp:{other}"]
    assert lines[1].split()[-1] == "differ"
    assert any(line.startswith("largest: prompt 'line ") for line in lines)
    assert any(line.startswith("  prompt 'line 1', after ") for line in lines)
    assert any(line.startswith("layers: the first that departs is 0 (prompt 'line ") for line in lines)
    assert lines[-1] == "differ (rtol 0.001, atol 0.01)"


def test_a_wider_tolerance_makes_them_agree(cli: Cli, model: str, tmp_path: Path) -> None:
    other = tiny.write_bpe(tmp_path / "other.gguf", seed=1)
    pair = (f"llama_cpp:{model}", f"llama_cpp:{other}", "--prompts", "-", "--tokens", "0")
    assert cli("verify", *pair, stdin="hello").code == 1
    assert cli("verify", *pair, "--atol", "100", stdin="hello").code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["llama_cpp:none.gguf", "{model}"], ["none.gguf"]),
        (["{model}", "nosuch:model"], ["nosuch"]),
        (["{model}", "ollama:llama3"], ["ollama"]),
        (["{model}", "{model}", "--prompts", "none.txt"], ["none.txt", "cannot be read"]),
        (["{model}", "{model}", "--prompts", "empty.txt"], ["holds no prompt"]),
        (["{model}", "{model}", "--prompts", "latin.txt"], ["latin.txt", "not UTF-8"]),
        (["{model}", "{model}", "--tokens", "600"], ["512", "no room"]),
        (["{model}", "{model}", "--atol", "-1"], ["--atol"]),
        (["{model}", "{spm}"], ["vocabular"]),
        (["{model}", "jax:{cut}"], ["cut.gguf"]),
        (["{model}", "transformers:{model}"], ["transformers"]),
        (["{model}", "{model}", "--plot", "d.nosuch", "--prompts", "short.txt", "--tokens", "0"], ["d.nosuch"]),
        (["{model}", "{model}", "--plot", "no/d.svg", "--prompts", "short.txt", "--tokens", "0"], ["no/d.svg"]),
    ],
)
def test_bad_input_is_one_paragraph_and_exit_code_2(
    cli: Cli, model: str, tiny_spm_gguf: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "cut.gguf").write_bytes(Path(model).read_bytes()[:100_000])
    names = {"model": model, "spm": str(tiny_spm_gguf), "cut": str(tmp_path / "cut.gguf")}
    refused(cli("verify", *(argument.format(**names) for argument in arguments)), *words)


def damaged(what: str, folder: Path) -> None:
    """Damage a Meta or Hugging Face folder in one way."""
    meta = folder / "params.json"
    match what:
        case "a missing shard":
            (folder / "consolidated.00.pth").rename(folder / "consolidated.01.pth")
        case "no weights":
            (folder / "consolidated.00.pth").unlink()
        case "truncated .pth":
            cut(folder / "consolidated.00.pth")
        case "truncated safetensors":
            cut(folder / "model.safetensors")
        case "no tokeniser":
            (folder / "tokenizer.json").unlink()
        case "a missing key":
            meta.write_text(json.dumps({k: v for k, v in json.loads(meta.read_text()).items() if k != "n_layers"}))
        case "another shape":
            meta.write_text(json.dumps(json.loads(meta.read_text()) | {"vocab_size": 1000}))
        case "no JSON":
            (folder / "config.json").write_text("{")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


DAMAGE: dict[str, tuple[str, list[str]]] = {
    "a missing shard": ("meta", ["consolidated.00.pth"]),
    "no weights": ("meta", ["consolidated"]),
    "truncated .pth": ("meta", ["consolidated.00.pth"]),
    "truncated safetensors": ("safetensors", ["model.safetensors"]),
    "no tokeniser": ("meta", ["tokenizer"]),
    "a missing key": ("meta", ["params.json", "n_layers"]),
    "another shape": ("meta", ["1000"]),
    "no JSON": ("safetensors", ["config.json"]),
}


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize("provider", ["jax", "meta", "transformers"])
def test_a_damaged_folder_is_one_paragraph_and_exit_code_2(
    cli: Cli, model: str, tmp_path: Path, provider: str, what: str
) -> None:
    """Whichever engine opens it; without PyTorch the other two say so."""
    form, words = DAMAGE[what]
    folder = convert(Path(model), tmp_path / "model", to=form).target
    damaged(what, folder)
    done = cli("verify", f"{provider}:{folder}", model, *SHORT)
    refused(done, *(words if provider == "jax" else []))


def test_nothing_of_a_pickle_is_run(cli: Cli, model: str, tmp_path: Path) -> None:
    """A .pth that asks for more than tensors is refused by name, by both engines that read such files."""
    folder = convert(Path(model), tmp_path / "model", to="meta").target
    code = pickle.dumps(Reduced(os.system, f"touch {tmp_path / 'ran'}"), protocol=2)
    with_pickle(folder / "consolidated.00.pth", code)
    for provider in ("jax", "meta"):
        refused(cli("verify", f"{provider}:{folder}", model, *SHORT), *(["consolidated"] if provider == "jax" else []))
    assert not (tmp_path / "ran").exists()


def test_a_weight_that_is_not_finite_is_named(cli: Cli, model: str, tmp_path: Path) -> None:
    folder = convert(Path(model), tmp_path / "model", to="safetensors").target
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-4:] = np.float32("nan").tobytes()
    (folder / "model.safetensors").write_bytes(content)
    refused(cli("verify", f"jax:{folder}", model, *SHORT), "nan", "weight")


def test_out_of_memory_says_what_it_needed(cli: Cli, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamalab.engines.jax_device.available_memory", lambda: 1000)
    refused(cli("verify", f"jax:{model}", model, *SHORT), "needs", "GiB", "free")
