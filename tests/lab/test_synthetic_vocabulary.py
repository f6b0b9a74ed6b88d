"""Made-up vocabularies: any size, proper byte-level BPE."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.lab.shapes import changed_shape
from llamalab.lab.synth import write_synthetic
from llamalab.lab.synthetic_vocabulary import made_up_vocabulary


@pytest.mark.parametrize("size", [32, 100, 255, 256, 270, 300, 1000, 20_000])
def test_vocabulary_has_exactly_the_size_and_no_token_twice(size: int) -> None:
    made = made_up_vocabulary(size)
    assert len(made.tokens) == len(set(made.tokens)) == len(made.types) == size
    assert made.tokens[made.bos_id or 0] == "<|begin_of_text|>"
    assert made.stop_ids == {made.eos_id}


def test_every_merge_joins_two_tokens_to_a_third_that_comes_later() -> None:
    made = made_up_vocabulary(3000)
    place = {token: id for id, token in enumerate(made.tokens)}
    for merge in made.merges:
        left, right = merge.split(" ")
        assert max(place[left], place[right]) < place[left + right]


@pytest.mark.parametrize(("size", "text"), [(100, "the tea is in a tin\n"), (700, 'Größe {"a": 12}\n\t€')])
def test_llama_cpp_cuts_text_and_joins_it_again(tmp_path: Path, size: int, text: str) -> None:
    shape = changed_shape("custom", n_layers=1, dim=32, n_heads=2, ffn_dim=32, vocab_size=size, max_seq_len=64)
    made = write_synthetic(shape, tmp_path / "x.gguf", "F16")
    with LlamaCppEngine(made.path, vocab_only=True) as engine:
        ids = engine.tokenize(text)
        assert engine.detokenize(ids) == text
    assert len(ids) < len(text.encode())
