"""A tokenizer.json of Hugging Face, built from a vocabulary."""

from __future__ import annotations

from typing import Any

from llamalab.checkpoints.pieces import SPACE, joins
from llamalab.checkpoints.pretokenizers import pretokenizer, structure_of
from llamalab.checkpoints.vocabulary import Vocabulary
from llamalab.errors import ModelFileError

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def build_tokenizer_json(vocabulary: Vocabulary) -> dict[str, Any]:
    """The JSON object of a tokenizer.json that gives the ids of `vocabulary`.

    Raises:
        ModelFileError: a pre-tokeniser that only llama.cpp knows.
    """
    bpe = vocabulary.kind == "bpe"
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary),
        "normalizer": None if bpe else _spaces(vocabulary),
        "pre_tokenizer": _pretokenizer(vocabulary) if bpe else None,
        "post_processor": _post_processor(vocabulary),
        "decoder": _BYTE_LEVEL if bpe else _sentencepiece_decoder(vocabulary),
        "model": _byte_level(vocabulary) if bpe else _byte_fallback(vocabulary),
    }


def _added_tokens(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": id, "content": vocabulary.tokens[id], **flags, "special": kind != "user_defined"}
        for id, kind in enumerate(vocabulary.types)
        if kind in ("control", "unknown", "user_defined")
    ]


def _pretokenizer(vocabulary: Vocabulary) -> dict[str, Any]:
    known = pretokenizer(vocabulary.pre)
    if known is None:
        raise ModelFileError(
            f"No tokenizer.json can be written: how the pre-tokeniser {vocabulary.pre!r} cuts text is known to "
            "llama.cpp only. The model can stay a GGUF file."
        )
    return structure_of(known)


def _byte_level(vocabulary: Vocabulary) -> dict[str, Any]:
    known = pretokenizer(vocabulary.pre)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": known is not None and known.whole_words,
        "vocab": _vocab(vocabulary),
        "merges": [merge.split(" ", 1) for merge in vocabulary.merges],
    }


def _byte_fallback(vocabulary: Vocabulary) -> dict[str, Any]:
    normal = {token: id for id, token in enumerate(vocabulary.tokens) if vocabulary.types[id] == "normal"}
    # SentencePiece joins the pair whose union scores highest; sorting is stable, so equal scores stay in order of id.
    best_first = sorted(normal, key=lambda token: -vocabulary.scores[normal[token]])
    unknown = None if vocabulary.unk_id is None else vocabulary.tokens[vocabulary.unk_id]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": "byte" in vocabulary.types,
        "ignore_merges": False,
        "vocab": _vocab(vocabulary),
        "merges": [list(cut) for token in best_first for cut in joins(token, normal)],
    }


def _vocab(vocabulary: Vocabulary) -> dict[str, int]:
    """Tokens to ids. Added tokens are left out where they follow all others, as Llama 3 has it, since a piece of text
    that happens to read like one must not become it; elsewhere they keep their places only by standing here."""
    end = len(vocabulary.tokens)
    while end and vocabulary.types[end - 1] in ("control", "user_defined"):
        end -= 1
    vocab = {token: id for id, token in enumerate(vocabulary.tokens[:end])}
    if len(vocab) != end:
        raise ModelFileError("No tokenizer.json can be written: the tokeniser has the same token twice.")
    return vocab


def _spaces(vocabulary: Vocabulary) -> dict[str, Any]:
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = [{"type": "Prepend", "prepend": SPACE}] if vocabulary.space_prefix else []
    return {"type": "Sequence", "normalizers": [*prepend, replace]}


def _sentencepiece_decoder(vocabulary: Vocabulary) -> dict[str, Any]:
    replace = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if vocabulary.space_prefix else []
    return {"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]}


def _post_processor(vocabulary: Vocabulary) -> dict[str, Any] | None:
    parts: list[dict[str, Any]] = [_BYTE_LEVEL] if vocabulary.kind == "bpe" else []
    if vocabulary.add_bos and vocabulary.bos_id is not None:
        bos = vocabulary.tokens[vocabulary.bos_id]
        first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
        marks = [{"SpecialToken": {"id": bos, "type_id": i}} for i in range(2)]
        parts.append(
            {
                "type": "TemplateProcessing",
                "single": [marks[0], first],
                "pair": [marks[0], first, marks[1], second],
                "special_tokens": {bos: {"id": bos, "ids": [vocabulary.bos_id], "tokens": [bos]}},
            }
        )
    return parts[0] if len(parts) == 1 else {"type": "Sequence", "processors": parts} if parts else None
