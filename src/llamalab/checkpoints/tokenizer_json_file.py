"""A tokenizer.json of Hugging Face as it lies on disk: the parts that say which text gets which ids, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from llamalab.checkpoints.json_file import Settings, read_json, shown
from llamalab.errors import ModelFileError

Structure: TypeAlias = Mapping[str, Any] | None
"""What is done to a text before or after the merges, as the file spells it out; None for nothing."""

_MOST_GAPS = 65_536
"""Ids without a token, in all. Every id gets a row in memory, so one absurd id would ask for billions of them."""


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is looked for in a text before anything is merged.

    Attributes:
        id: its number.
        text: as it reads.
        special: it is a control token.
    """

    id: int
    text: str
    special: bool


@dataclass(frozen=True, slots=True)
class TokenizerJson:
    """A byte pair encoding.

    Attributes:
        path: of the file, for messages.
        vocab: tokens to ids; added tokens may be missing here.
        merges: pairs of tokens that are joined, the first ones first.
        added: in the file's order.
        unk_id: what text becomes that no token covers.
        byte_fallback: bytes that no token covers become byte tokens.
        ignore_merges: a piece that is a token is taken whole.
        normalizer: changes a text before it is cut.
        pre_tokenizer: cuts it.
        decoder: makes text from tokens.
        post_processor: adds BOS and the like.
    """

    path: Path
    vocab: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    added: Sequence[AddedToken]
    unk_id: int | None
    byte_fallback: bool
    ignore_merges: bool
    normalizer: Structure
    pre_tokenizer: Structure
    decoder: Structure
    post_processor: Structure


def read_tokenizer_json(path: Path) -> TokenizerJson:
    """Read a tokenizer.json.

    Raises:
        ModelFileError: damaged, no BPE, or one that no Llama has; it names the key.
    """
    file = Settings(read_json(path), path)
    model = file.part("model")
    if model.get("type") not in (None, "BPE"):
        raise ModelFileError(f"{path} holds a tokeniser of the kind {shown(model.get('type'))}; Llamas have BPE.")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ModelFileError(f"{path} marks parts of words (model.{key}); no Llama does.")
    vocab, added = _vocab(model), _added(file)
    _check_ids(path, {*vocab.values(), *(token.id for token in added)})
    return TokenizerJson(
        path=path,
        vocab=vocab,
        merges=_merges(model),
        added=added,
        unk_id=_unknown(model, {token.text: token.id for token in added} | vocab),
        byte_fallback=model.flag("byte_fallback", default=False),
        ignore_merges=model.flag("ignore_merges", default=False),
        **{key: _structure(file, key) for key in ("normalizer", "pre_tokenizer", "decoder", "post_processor")},
    )


def _vocab(model: Settings) -> dict[str, int]:
    vocab = model.part("vocab")
    for text, id in vocab.values.items():
        if type(id) is not int:  # asked here and not of `integer`, for there are hundreds of thousands
            vocab.refuse(text, "the id of a token")
    return dict(vocab.values)


def _added(file: Settings) -> list[AddedToken]:
    tokens = []
    for number, entry in enumerate(file.entries("added_tokens", [])):
        if not isinstance(entry, dict):
            raise ModelFileError(f"{file.path}: added_tokens[{number}] is {shown(entry)}, not an object.")
        token = Settings(entry, file.path, f"added_tokens[{number}]")
        tokens.append(AddedToken(token.integer("id", least=0), token.text("content"), token.flag("special")))
    return tokens


def _check_ids(path: Path, ids: set[int]) -> None:
    if not ids:
        raise ModelFileError(f"{path} holds no tokens.")
    if min(ids) < 0 or max(ids) >= len(ids) + _MOST_GAPS:
        strange = min(ids) if min(ids) < 0 else max(ids)
        raise ModelFileError(f"{path} is damaged: one of its {len(ids):,} tokens has the id {shown(strange)}.")


def _merges(model: Settings) -> list[tuple[str, str]]:
    """Both forms: "left right", and ["left", "right"] of newer files."""
    merges = []
    for number, merge in enumerate(model.entries("merges")):
        match merge.split(" ") if isinstance(merge, str) else merge:
            case [str(left), str(right)]:
                merges.append((left, right))
            case _:
                raise ModelFileError(
                    f"{model.path}: model.merges[{number}] is {shown(merge)}, not two tokens that are joined."
                )
    return merges


def _unknown(model: Settings, ids: Mapping[str, int]) -> int | None:
    if "unk_token" not in model:
        return None
    if model.text("unk_token") not in ids:
        model.refuse("unk_token", "one of its tokens")
    return ids[model.text("unk_token")]


def _structure(file: Settings, key: str) -> Structure:
    return file.part(key).values if key in file else None
