"""What file names say about GGUF models."""

from __future__ import annotations

import pytest

from llamalab.checkpoints.names import choose, human_size, model_files, quantisation_of


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("llama-7b.Q4_K_M.gguf", "Q4_K_M"),
        ("model-f16.gguf", "F16"),
        ("model.gguf", None),
        ("x.Q6_K.gguf", "Q6_K"),
        ("x-Q3_K_L.gguf", "Q3_K_L"),
        ("a-IQ2_XXS.gguf", "IQ2_XXS"),
        ("a-iq4_nl.gguf", "IQ4_NL"),
        ("m-BF16-00001-of-00002.gguf", "BF16"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("fp16.gguf", "F16"),
        ("UD-Q4_K_XL/x-UD-Q4_K_XL-00001-of-00003.gguf", "UD-Q4_K_XL"),
        ("Q4_K_M/x-00001-of-00003.gguf", "Q4_K_M"),
        ("qwen2-q4_0.gguf", "Q4_0"),
        ("seq2seq.gguf", None),
    ],
)
def test_quantisation_is_read_from_the_name(path: str, expected: str | None) -> None:
    assert quantisation_of(path) == expected


def test_parts_belong_together_in_order() -> None:
    files = [(f"m-Q8_0-0000{n}-of-00003.gguf", 10 * n) for n in (3, 1, 2)]
    (model,) = model_files(files)
    assert model.parts == tuple(f"m-Q8_0-0000{n}-of-00003.gguf" for n in (1, 2, 3))
    assert model.size_bytes == 60


def test_a_split_model_with_a_missing_part_is_no_model() -> None:
    assert model_files([(f"m-0000{n}-of-00003.gguf", 1) for n in (1, 3)]) == []


def test_projectors_and_importance_matrices_are_no_models() -> None:
    names = ["mmproj-F16.gguf", "model-mmproj-q8_0.gguf", "m.imatrix.gguf", "imatrix.gguf", "config.json"]
    assert model_files([(name, 1) for name in names]) == []
    assert len(model_files([("imatrixmodel-Q8_0.gguf", 1)])) == 1


def test_a_quantisation_is_matched_whole() -> None:
    models = model_files([("m-Q3_K_L.gguf", 1), ("m-Q3_K.gguf", 1), ("m-UD-Q3_K.gguf", 1)])
    assert [model.first for model in choose(models, "q3_k")] == ["m-Q3_K.gguf"]


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_400, "99.4 kB"), (999_600_000, "1.0 GB"), (4.92e9, "4.9 GB")],
)
def test_sizes_read_as_people_write_them(size: int, text: str) -> None:
    assert human_size(size) == text
