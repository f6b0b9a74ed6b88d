"""One tokeniser in every form: as a GGUF file, a Hugging Face folder and a Meta folder, each opened by its library."""

from __future__ import annotations

from pathlib import Path

import gguf

from llamalab.checkpoints.checkpoint import Checkpoint, Format
from llamalab.checkpoints.tokenizer_gguf import vocabulary_from_gguf, write_gguf_vocabulary
from llamalab.checkpoints.tokenizer_huggingface import vocabulary_from_huggingface, write_huggingface_tokenizer
from llamalab.checkpoints.tokenizer_meta import vocabulary_from_meta, write_meta_tokenizer
from llamalab.checkpoints.vocabulary import Vocabulary
from llamalab.engines.tokenizer import Tokenizer, open_tokenizer
from llamalab.llama.config import LlamaConfig


def write(vocabulary: Vocabulary, form: Format, folder: Path) -> Path:
    """The tokeniser's files under `folder`; the path that a checkpoint would have."""
    path = folder / form
    if form == "meta":
        write_meta_tokenizer(vocabulary, path)
    elif form == "safetensors":
        write_huggingface_tokenizer(vocabulary, path)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "model.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for add in (writer.add_context_length, writer.add_embedding_length, writer.add_block_count):
            add(32)
        for add in (writer.add_head_count, writer.add_head_count_kv, writer.add_feed_forward_length):
            add(4)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_vocab_size(len(vocabulary.tokens))
        write_gguf_vocabulary(writer, vocabulary)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path


def read(form: Format, path: Path) -> Vocabulary:
    if form == "meta":
        return vocabulary_from_meta(path)
    return vocabulary_from_huggingface(path) if form == "safetensors" else vocabulary_from_gguf(fields(path), path)


def fields(path: Path) -> dict[str, object]:
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


def opened(form: Format, path: Path, vocabulary: Vocabulary | None = None) -> Tokenizer:
    config = LlamaConfig(dim=4, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=4, ffn_dim=4, vocab_size=1, max_seq_len=8)
    vocabulary = vocabulary or read(form, path)
    return open_tokenizer(Checkpoint(path, form, "test", config, "none", tensors={}, vocabulary=vocabulary))
