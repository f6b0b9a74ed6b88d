"""The course's ten functions: names, defaults, keys and units, and the example of the course's guide, unchanged."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import pytest

import llamacpp_inference
from llamacpp_inference import (
    LoadedModel,
    benchmark_inference,
    count_tokens,
    estimate_memory_usage,
    generate_chat,
    generate_text,
    get_model_info,
    get_quantization_from_filename,
    is_gguf_file,
    llamacpp_available,
    load_model,
)
from llamalab.engine import SamplingParams
from llamalab.errors import ConfigError, ContextOverflow, InputError, ModelFileError, ModelNotFound
from llamalab.lab import course
from llamalab.lab.course_options import chat_options, engine_options, generation_options
from tests import tiny
from tests.checkpoints.test_gguf_reader import PICO

GUIDE = """
from llamacpp_inference import (
    load_model,
    generate_text,
    generate_chat,
    get_model_info,
    benchmark_inference
)

# Load model
model = load_model(
    "models/llama-2-7b-chat.Q4_K_M.gguf",
    n_ctx=2048,
    n_threads=8
)

# Simple generation
text = generate_text(model, "The meaning of life is", max_tokens=50)
print(text)

# Chat completion
messages = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is machine learning?"}
]
response = generate_chat(model, messages, max_tokens=200)
print(response)

# Get model info
info = get_model_info("models/llama-2-7b-chat.Q4_K_M.gguf")
print(f"Quantization: {info['quantization']}")
print(f"Context length: {info['context_length']}")

# Benchmark
metrics = benchmark_inference(model, ["Test prompt"] * 10)
print(f"Throughput: {metrics['tokens_per_second']:.1f} tok/s")
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model(tiny_gguf: Path) -> Iterator[LoadedModel]:
    with load_model(tiny_gguf, n_ctx=512, n_threads=1) as loaded:
        yield loaded


def test_the_guides_example_runs_unchanged(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    shutil.copy(PICO, tmp_path / "models" / "llama-2-7b-chat.Q4_K_M.gguf")
    done = subprocess.run(
        [sys.executable, "-c", GUIDE], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "Quantization: Q8_0\nContext length: 2048\nThroughput: " in done.stdout
    assert "The file name says Q4_K_M, but the tensors are those of Q8_0." in done.stderr


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("load_model", "model_path, n_ctx=2048, n_threads=None, n_gpu_layers=0, verbose=False, **kwargs"),
        (
            "generate_text",
            "model, prompt, max_tokens=100, temperature=0.7, top_p=0.95, top_k=40, stop=None, **kwargs",
        ),
        ("generate_chat", "model, messages, max_tokens=100, temperature=0.7, **kwargs"),
        ("get_model_info", "model_path"),
        ("estimate_memory_usage", "model_path, n_ctx=2048, n_batch=512"),
        ("benchmark_inference", "model, prompts, max_tokens=50, **kwargs"),
        ("count_tokens", "model, text"),
        ("is_gguf_file", "path"),
        ("get_quantization_from_filename", "filename"),
        ("llamacpp_available", ""),
    ],
)
def test_parameters_and_defaults_are_the_courses(name: str, parameters: str) -> None:
    function = getattr(llamacpp_inference, name)
    assert function is getattr(course, name)
    signature = inspect.signature(function)
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    assert str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty)) == f"({parameters})"


def test_both_modules_hand_on_the_same_names() -> None:
    assert sorted(llamacpp_inference.__all__) == sorted(course.__all__)


def test_text_comes_without_its_prompt(model: LoadedModel, tiny_gguf: Path) -> None:
    """Greedy, against llama-cpp-python's own high-level interface."""
    theirs = llama_cpp.Llama(str(tiny_gguf), n_ctx=512, n_threads=1, type_k=1, type_v=1, verbose=False)
    expected = theirs.create_completion("hello world", max_tokens=12, temperature=0.0, repeat_penalty=1.0)
    theirs.close()
    found = generate_text(model, "hello world", max_tokens=12, temperature=0)
    # llama-cpp-python leaves out what is no UTF-8, which is a replacement character here.
    assert found.replace("\ufffd", "") == expected["choices"][0]["text"]  # type: ignore[index]


def test_stops_seeds_and_schemas(model: LoadedModel) -> None:
    whole = generate_text(model, "hello", max_tokens=40, temperature=0)
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    for given in (stop, [stop, "nothing of the kind"]):
        assert generate_text(model, "hello", 40, 0.0, stop=given) == whole[: whole.index(stop)]
    drawn = [generate_text(model, "hello", 20, 1.5, 1.0, 0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    wanted = {"type": "json_object", "schema": schema}
    assert generate_text(model, "hello", response_format=wanted).replace(" ", "") in ('{"a":1}', '{"a":2}')
    assert generate_text(model, "hello", grammar='root ::= "yes"') == "yes"


def test_chat_with_and_without_a_system_message_or_a_template(model: LoadedModel, tmp_path: Path) -> None:
    user = {"role": "user", "content": "hello"}
    for messages in ([user], [{"role": "system", "content": "be brief"}, user]):
        assert isinstance(generate_chat(model, messages, max_tokens=10), str)
    with load_model(tiny.write_bpe(tmp_path / "bare.gguf", template=None), n_ctx=256, n_threads=1) as bare:
        text = generate_chat(bare, [user], max_tokens=30, temperature=0)
        assert len(text) > 0
        assert text == generate_text(bare, "User: hello\nAssistant:", 30, 0, min_p=0.05, stop="\nUser:")
    with pytest.raises(InputError, match="no grammar"):
        generate_chat(model, [user], grammar='root ::= "yes"')


def test_counting(model: LoadedModel) -> None:
    short, long = count_tokens(model, "hello"), count_tokens(model, "hello world and the access code")
    assert 0 < short < long
    assert isinstance(short, int)
    assert count_tokens(model, "") == 0
    with load_model("pico", n_ctx=64, n_threads=1) as pico:
        assert 1 <= count_tokens(pico, generate_text(pico, "The fox", max_tokens=5)) <= 10


def test_what_a_file_says_of_itself(tiny_gguf: Path) -> None:
    info, theirs = get_model_info(str(tiny_gguf)), gguf.GGUFReader(tiny_gguf)
    assert info == {
        "architecture": "llama",
        "quantization": "F32",
        "parameters": sum(int(tensor.n_elements) for tensor in theirs.tensors),
        "context_length": tiny.CONTEXT,
        "file_size_gb": tiny_gguf.stat().st_size / 1e9,
        "vocab_size": len(theirs.fields["tokenizer.ggml.tokens"].contents()),
    }
    with pytest.raises(ModelNotFound):
        get_model_info("none.gguf")


def test_memory_in_gb(tiny_gguf: Path) -> None:
    small, large = (estimate_memory_usage(str(tiny_gguf), n_ctx=n) for n in (256, 512))
    # K and V of every layer: KV heads of 16 values, two bytes each.
    per_token = 2 * tiny.LAYERS * tiny.KV_HEADS * (tiny.WIDTH // tiny.HEADS) * 2
    assert small["kv_cache"] == 256 * per_token / 1e9
    assert large["kv_cache"] == 2 * small["kv_cache"]
    assert small["model_size"] == tiny_gguf.stat().st_size / 1e9
    assert small["total_estimate"] > small["model_size"] + small["kv_cache"]
    # Longer than the model was trained for, as the course's default may be.
    longer = estimate_memory_usage(str(tiny_gguf), n_ctx=2048)
    assert longer["kv_cache"] == pytest.approx(8 * small["kv_cache"])
    assert longer["total_estimate"] > large["total_estimate"]
    with pytest.raises(ConfigError, match="n_ctx"):
        estimate_memory_usage(str(tiny_gguf), n_ctx=0)


def test_memory_of_a_file_that_is_no_gguf_is_estimated_from_its_size(tmp_path: Path) -> None:
    path = tmp_path / "fake.gguf"
    path.write_bytes(b"0" * 2**20)
    with pytest.warns(UserWarning, match="not a GGUF"):
        found = estimate_memory_usage(str(path))
    assert found["model_size"] == 2**20 / 1e9
    assert found["total_estimate"] > found["model_size"]
    with pytest.raises(ModelNotFound):
        estimate_memory_usage(str(tmp_path / "none.gguf"))


def test_a_benchmark_answers_by_attribute_and_by_key(model: LoadedModel) -> None:
    metrics = benchmark_inference(model, ["hello", "world", "code"], max_tokens=8, temperature=0)
    assert metrics.prompts_processed == 3
    assert 0 < metrics.total_tokens <= 24
    assert metrics.tokens_per_second == metrics["tokens_per_second"] == metrics.total_tokens / metrics.total_time
    assert 0 < metrics.time_to_first_token < metrics.total_time
    assert dict(metrics)["total_tokens"] == metrics.total_tokens
    assert metrics.peak_memory_gb is not None
    assert 0.01 < metrics.peak_memory_gb < 100
    with pytest.raises(KeyError):
        metrics["keys"]
    with pytest.raises(InputError, match="no prompts"):
        benchmark_inference(model, [])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama-7b.Q4_K_M.gguf", "Q4_K_M"),
        ("model-Q8_0.gguf", "Q8_0"),
        ("model-f16.gguf", "F16"),
        ("model.gguf", None),
        ("x.Q6_K.gguf", "Q6_K"),
        ("x-Q3_K_L.gguf", "Q3_K_L"),
        ("x.q2_k.gguf", "Q2_K"),
        ("x-IQ2_XXS.gguf", "IQ2_XXS"),
        ("x-iq4_nl.gguf", "IQ4_NL"),
        ("x-BF16.gguf", "BF16"),
        ("x-fp32.gguf", "F32"),
        ("x-TQ2_0.gguf", "TQ2_0"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("x-UD-Q4_K_XL-00001-of-00002.gguf", "UD-Q4_K_XL"),
        ("/models/Q4_0/model.gguf", None),
        ("Qwen2-7B.gguf", None),
    ],
)
def test_quantisations_in_names(name: str, expected: str | None) -> None:
    assert get_quantization_from_filename(name) == expected


def test_gguf_files_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "text.txt").touch()
    (tmp_path / "folder.gguf").mkdir()
    assert is_gguf_file(str(tmp_path / "empty.gguf")) is True
    for name in ("none.gguf", "text.txt", "folder.gguf"):
        assert is_gguf_file(tmp_path / name) is False
    assert llamacpp_available() is True


def test_unknown_options_are_refused_with_the_nearest(model: LoadedModel, tiny_gguf: Path) -> None:
    with pytest.raises(ConfigError, match=r"load_model has no option 'n_bach'. Did you mean 'n_batch'"):
        load_model(tiny_gguf, n_bach=3)
    with pytest.raises(ConfigError, match=r"no option 'repetition_penalty'. Did you mean 'repeat_penalty'"):
        generate_text(model, "hello", repetition_penalty=1.1)
    with pytest.raises(ConfigError, match="no option 'stream'"):
        generate_chat(model, [{"role": "user", "content": "hello"}], stream=True)
    with pytest.raises(ConfigError, match="n_ctx must be 1 or more"):
        load_model(tiny_gguf, n_ctx=0)
    with pytest.raises(ContextOverflow):
        generate_text(model, "hello " * 600)


def test_folders_are_refused_and_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelFileError, match=r"no GGUF file"):
        load_model(tmp_path / "folder")
    (tmp_path / "x.gguf").write_bytes(b"0" * 100)
    with pytest.raises(ModelFileError, match=r"not a GGUF"):
        load_model(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"n_batch": 64, "n_ubatch": 32, "flash_attn": True}, {"n_batch": 64, "n_ubatch": 32, "flash_attn": True}),
        ({"use_mmap": True}, {"load_mode": "mmap"}),
        ({"use_mmap": False}, {"load_mode": "read"}),
        ({"use_mmap": True, "use_mlock": True}, {"load_mode": "mlock"}),
        ({"type_k": 8, "type_v": llama_cpp.GGML_TYPE_F16}, {"type_k": "q8_0", "type_v": "f16"}),
        ({"type_k": "F16", "type_v": None}, {"type_k": "f16"}),
        ({"lora_path": "a.gguf", "lora_scale": 0.5}, {"adapters": [("a.gguf", 0.5)]}),
        ({"n_threads": 2, "n_threads_batch": 2, "seed": 3, "logits_all": True}, {"n_threads": 2}),
        ({"n_seq": 4}, {"n_seq": 4}),
    ],
    ids=str,
)
def test_names_of_llama_cpp_python_are_translated(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert engine_options(given) == {"n_seq": 1} | expected


def test_translations_that_cannot_be(tiny_gguf: Path) -> None:
    for given in ({"type_k": 99}, {"n_threads": 2, "n_threads_batch": 4}):
        with pytest.raises(ConfigError):
            engine_options(given)
    for chat in ({"seed": "x"}, {"chat_format": 3}):
        with pytest.raises(ConfigError):
            chat_options(chat)
    with pytest.raises(ConfigError, match="response_format"):
        generation_options({"response_format": "json"}, None)
    assert chat_options({"chat_format": "llama-3", "seed": 0xFFFFFFFF}) == ("llama3", None)
    assert generation_options({"max_tokens": -1, "top_k": -1, "stop": "x"}, 7)[0] == SamplingParams(
        max_tokens=None, top_k=0, stop=("x",), seed=7
    )


def test_what_llama_cpp_says_is_shown_on_request(tiny_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_model(tiny_gguf, n_ctx=64, n_threads=1).close()
    assert capsys.readouterr().err == ""
    load_model(tiny_gguf, n_ctx=64, n_threads=1, verbose=True, n_batch=32).close()
    assert "tensor" in capsys.readouterr().err


def test_a_context_longer_than_trained_for_is_a_warning(tiny_gguf: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_model(tiny_gguf, n_ctx=1024, n_threads=1).close()
    assert any("trained for 512" in str(warning.message) for warning in caught)
