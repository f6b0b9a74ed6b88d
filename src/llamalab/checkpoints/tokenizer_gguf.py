"""Tokenisers in GGUF metadata, read and written as llama.cpp understands them.

Source: `llama_vocab::impl::load` of llama.cpp for the defaults and for the tokens that it knows by their text.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from llamalab.checkpoints.pieces import ALPHABET
from llamalab.checkpoints.pretokenizers import UNKNOWN, pretokenizer
from llamalab.checkpoints.vocabulary import Kind, TokenType, Vocabulary
from llamalab.errors import ModelFileError

if TYPE_CHECKING:
    import gguf

_KINDS: dict[str, Kind] = {"gpt2": "bpe", "llama": "sentencepiece"}
_TYPES: tuple[TokenType, ...] = get_args(TokenType)  # in the order of ggml's numbers, from 1
_END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>")
_END_OF_MESSAGE = "<|eom_id|>"
_ENDS = frozenset((*_END_OF_TURN, _END_OF_MESSAGE, "</s>", "<|return|>", "<|call|>", "[EOS]", "[EOT]", "<eos>"))
"""Texts of the tokens at which llama.cpp ends a response, whatever else the file says."""


def vocabulary_from_gguf(fields: Mapping[str, Any], path: Path | None = None) -> Vocabulary:
    """The tokeniser of a GGUF file.

    Args:
        fields: metadata by key: plain values, or `gguf.GGUFReader.fields`.
        path: of the file, for messages.

    Raises:
        ModelFileError: no tokeniser, a damaged one, or a kind that no Llama has.
    """
    where = path or "The GGUF file"

    def value(key: str, default: Any = None) -> Any:
        found = fields.get(f"tokenizer.ggml.{key}", default)
        return found.contents() if hasattr(found, "contents") else found

    def token(key: str, default: int | None) -> int | None:
        id = value(f"{key}_token_id", default)
        return id if isinstance(id, int) and 0 <= id < len(tokens) else None

    model = value("model")
    if model not in _KINDS:
        what = "holds no tokeniser" if model in (None, "none", "no_vocab") else f"has a tokeniser of the kind {model!r}"
        raise ModelFileError(f"{where} {what}; Llamas have 'gpt2' (byte-level BPE) or 'llama' (SentencePiece).")
    kind = _KINDS[model]
    tokens: list[str] = [text or f"[EMPTY_{id}]" for id, text in enumerate(value("tokens", ()))]
    numbers = value("token_type", [1] * len(tokens))
    types: list[TokenType] = [_TYPES[n - 1] if 1 <= n <= len(_TYPES) else "normal" for n in numbers]
    scores: list[float] = [float(score) for score in value("scores", ())] if kind == "sentencepiece" else []
    merges: list[str] = list(value("merges", ())) if kind == "bpe" else []
    for name, found in (("token types", types), ("scores", scores)):
        if len(found) != len(tokens) and (found or kind == "sentencepiece"):
            raise ModelFileError(f"{where} is damaged: {len(tokens)} tokens and {len(found)} {name}.")
    if not tokens:
        raise ModelFileError(f"{where} has a tokeniser without tokens (tokenizer.ggml.tokens).")
    types = ["control" if text in _ENDS else said for text, said in zip(tokens, types, strict=True)]
    sentencepiece = kind == "sentencepiece"
    eos = token("eos", 2 if sentencepiece else None)
    ends = {eos, token("eot", None), token("eom", None)} | {id for id, text in enumerate(tokens) if text in _ENDS}
    pre = "default" if sentencepiece else value("pre") or "default"
    cutter = pretokenizer(pre)
    notes = []
    if kind == "bpe" and cutter is None:
        notes.append(f"The pre-tokeniser {pre!r} is known to llama.cpp only: such a tokeniser can stay in a GGUF file.")
    bos = token("bos", 1 if sentencepiece else None)
    add_bos = bool(value("add_bos_token", sentencepiece or (cutter is not None and cutter.bos)))
    return Vocabulary(
        kind=kind,
        tokens=tokens,
        types=types,
        merges=merges,
        scores=scores,
        pre=pre,
        bos_id=bos,
        eos_id=eos,
        pad_id=token("padding", None),
        unk_id=token("unknown", 0 if sentencepiece else None),
        stop_ids=frozenset(id for id in ends if id is not None),
        add_bos=add_bos and bos is not None,
        space_prefix=sentencepiece and bool(value("add_space_prefix", True)),
        notes=tuple(notes),
    )


def write_gguf_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> tuple[str, ...]:
    """Add the tokeniser's keys (all but the chat template) to a GGUF file in the making.

    Returns:
        What the file cannot say, one sentence each.

    Raises:
        ModelFileError: a pre-tokeniser that llama.cpp has no name for; tokens that stand twice.
    """
    check_gguf_vocabulary(vocabulary)
    sentencepiece = vocabulary.kind == "sentencepiece"
    writer.add_tokenizer_model("llama" if sentencepiece else "gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(list(vocabulary.tokens))
    if sentencepiece:
        writer.add_token_scores([float(score) for score in vocabulary.scores])
        writer.add_add_space_prefix(vocabulary.space_prefix)
    else:
        writer.add_token_merges(list(vocabulary.merges))
    writer.add_token_types([_TYPES.index(kind) + 1 for kind in vocabulary.types])
    for id, add in (
        (vocabulary.bos_id, writer.add_bos_token_id),
        (vocabulary.eos_id, writer.add_eos_token_id),
        (vocabulary.pad_id, writer.add_pad_token_id),
        (vocabulary.unk_id, writer.add_unk_token_id),
    ):
        if id is not None:
            add(id)
    writer.add_add_bos_token(vocabulary.add_bos)
    return _add_stops(writer, vocabulary)


def check_gguf_vocabulary(vocabulary: Vocabulary) -> None:
    """Refuse a tokeniser that a GGUF file cannot hold, before anything is written.

    Raises:
        ModelFileError: see `write_gguf_vocabulary`.
    """
    if vocabulary.pre == UNKNOWN:
        said = " ".join(vocabulary.notes)
        raise ModelFileError(
            f"This tokeniser cannot be written as GGUF: llama.cpp has no name for how it cuts text. {said}"
        )
    if vocabulary.kind == "bpe" and not vocabulary.merges and len(vocabulary.tokens) > len(ALPHABET) * 2:
        raise ModelFileError("This tokeniser cannot be written as GGUF: it has no merges.")
    seen: dict[str, int] = {}
    for id, token in enumerate(vocabulary.tokens):
        if seen.setdefault(token, id) != id:
            raise ModelFileError(
                f"This tokeniser cannot be written as GGUF: its tokens {seen[token]} and {id} are both {token!r}."
            )


def _add_stops(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> tuple[str, ...]:
    """Two more stop tokens than EOS have a key each; others stop llama.cpp only if it knows their text."""
    left = {vocabulary.tokens[id]: id for id in sorted(vocabulary.stop_ids - {vocabulary.eos_id})}
    message = left.pop(_END_OF_MESSAGE, None)
    unknown = [text for text in left if text not in _ENDS]
    turn = next((text for text in (*unknown, *_END_OF_TURN, *left) if text in left), None)
    if turn is not None:
        writer.add_eot_token_id(left.pop(turn))
    left = {text: id for text, id in left.items() if text not in _ENDS}
    if message is None and left:
        message = left.pop(next(iter(left)))
    if message is not None:
        writer.add_eom_token_id(message)
    return tuple(f"llama.cpp will not end a response at {text}: a GGUF file names at most three." for text in left)
