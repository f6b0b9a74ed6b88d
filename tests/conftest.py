"""Tiny models shared by all tests and all test processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from llamalab.checkpoints.folders import cache_folder
from tests import tiny

if TYPE_CHECKING:
    from llamalab.engines.llama_cpp import LlamaCppEngine

# How long one example takes says more about what else the machine does than about the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Tests have cache folders of their own, each empty at first: what takes seconds to compile is compiled once for all.
os.environ.setdefault("LLAMALAB_NATIVE", str(cache_folder("native")))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """One folder for the whole run, whichever process writes a file first."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "tiny-models"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def tiny_gguf(model_folder: Path) -> Path:
    """A random two-layer Llama with a byte-level BPE, F32."""
    return tiny.once(model_folder, "tiny.gguf", tiny.write_bpe)


@pytest.fixture(scope="session")
def tiny_q8_gguf(model_folder: Path) -> Path:
    """The same in Q8_0."""
    return tiny.once(model_folder, "tiny-q8.gguf", lambda path: tiny.write_bpe(path, quantised=True))


@pytest.fixture(scope="session")
def tiny_spm_gguf(model_folder: Path) -> Path:
    """A random Llama with a SentencePiece vocabulary, F32."""
    return tiny.once(model_folder, "tiny-spm.gguf", tiny.write_spm)


@pytest.fixture(scope="session")
def tiny_lora(model_folder: Path) -> Path:
    """A LoRA adapter for `tiny_gguf`."""
    return tiny.once(model_folder, "lora.gguf", tiny.write_lora)


@pytest.fixture(scope="session")
def tiny_engine(tiny_gguf: Path) -> Iterator[LlamaCppEngine]:
    """An engine on `tiny_gguf`: one thread, four sequences, everything in float32."""
    from llamalab.engines.llama_cpp import LlamaCppEngine

    options = {"n_seq": 4, "type_k": "f32", "type_v": "f32"}
    with LlamaCppEngine(tiny_gguf, n_threads=1, **options) as engine:
        yield engine
