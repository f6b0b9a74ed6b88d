"""Tokenisers in Meta folders: tokenizer.model (tiktoken's or SentencePiece's), or our tokenizer.json beside."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from llamalab.checkpoints.pieces import joins, spelled, unspelled
from llamalab.checkpoints.sentencepiece_file import SentencePieceFile, read_sentencepiece, write_sentencepiece
from llamalab.checkpoints.tiktoken_file import BOS, EOS, PAD, SPECIAL, STOPS, is_tiktoken, read_ranks, write_ranks
from llamalab.checkpoints.tokenizer_check import first_difference
from llamalab.checkpoints.tokenizer_huggingface import (
    read_chat_template,
    vocabulary_from_huggingface,
    vocabulary_from_sentencepiece,
    write_huggingface_tokenizer,
)
from llamalab.checkpoints.vocabulary import TokenType, Vocabulary
from llamalab.errors import ModelFileError

_RESERVED = "reserved_special_token"


def vocabulary_from_meta(folder: Path) -> Vocabulary:
    """The tokeniser of a Meta folder; its chat template, if any, is found by `read_chat_template(folder)`.

    Raises:
        ModelFileError: none, or a damaged one.
    """
    path = folder / "tokenizer.model"
    if not path.is_file():
        if (folder / "tokenizer.json").is_file():
            return vocabulary_from_huggingface(folder)
        raise ModelFileError(
            f"{folder} has no tokenizer.model. Download the folder again, or put the model's tokenizer.json there."
        )
    return replace(_read_model(path), files={"tokenizer.model": path})


def write_meta_tokenizer(vocabulary: Vocabulary, folder: Path, chat_template: str | None = None) -> str:
    """Write the tokeniser into a Meta folder.

    Returns:
        One sentence that says which file was written and why: `tokenizer.model` only where Meta's classes give the
        same ids by it, tokenizer.json and tokenizer_config.json otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "tokenizer.model"
    original = vocabulary.files.get("tokenizer.model")
    if original is not None and _covers(_read_model(original), vocabulary):
        if original.resolve() != target.resolve():
            shutil.copyfile(original, target)
        said = "tokenizer.model is the original file."
    else:
        reason = _unfit(vocabulary) or _write_model(vocabulary, target)
        if reason is not None:
            target.unlink(missing_ok=True)
            write_huggingface_tokenizer(_without_model(vocabulary), folder, chat_template)
            return f"tokenizer.json lies beside the weights in place of a tokenizer.model: {reason}."
        said = "tokenizer.model gives the same ids as the source on the test texts."
        renamed = [token for token, own in zip(vocabulary.tokens[-256:], SPECIAL, strict=False) if token != own]
        if vocabulary.kind == "bpe" and renamed:
            said += f" Reserved tokens have Meta's names now ({len(renamed)} did not)."
    if chat_template is not None and read_chat_template(folder) != chat_template:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    return said


def _read_model(path: Path) -> Vocabulary:
    if not is_tiktoken(path):
        return vocabulary_from_sentencepiece(read_sentencepiece(path))
    ranks = read_ranks(path)
    tokens = [*map(spelled, ranks), *SPECIAL]
    ids = {name: len(ranks) + i for i, name in enumerate(SPECIAL)}
    normal: list[TokenType] = ["normal"] * len(ranks)
    control: list[TokenType] = ["control"] * len(SPECIAL)
    return Vocabulary(
        kind="bpe",
        tokens=tokens,
        types=[*normal, *control],
        merges=merges_of(tokens[: len(ranks)]),
        pre="llama-bpe",
        bos_id=ids[BOS],
        eos_id=ids[EOS],
        pad_id=ids[PAD],
        stop_ids=frozenset(ids[name] for name in STOPS),
        add_bos=True,
    )


def merges_of(tokens: list[str]) -> list[str]:
    """The merges of tiktoken's ranks: every cut of every token into two tokens, by rank.

    tiktoken joins the neighbours whose union has the lowest rank, whatever they are, so all cuts are merges.
    """
    known = {token: rank for rank, token in enumerate(tokens)}
    return [f"{left} {right}" for token in tokens for left, right in joins(token, known)]


def _covers(found: Vocabulary, vocabulary: Vocabulary) -> bool:
    """Whether an original tokenizer.model has every token of `vocabulary`, none renamed but reserved ones."""
    used = [kind != "unused" for kind in vocabulary.types]
    if found.kind != vocabulary.kind or any(used[len(found.tokens) :]) or len(found.tokens) > len(vocabulary.tokens):
        return False
    return all(map(_same_name, vocabulary.tokens, found.tokens))


def _same_name(token: str, own: str) -> bool:
    return token == own or (_RESERVED in token and token.startswith("<|") and own.startswith("<|"))


def _unfit(vocabulary: Vocabulary) -> str | None:
    """Why no tokenizer.model can hold `vocabulary`; None where one may."""
    if vocabulary.kind == "sentencepiece":
        return None if "byte" in vocabulary.types else "without byte tokens, SentencePiece would differ"
    n_ranks = len(vocabulary.tokens) - len(SPECIAL)
    if vocabulary.pre != "llama-bpe":
        return f"Meta's class cuts text as Llama 3 does, this model as {vocabulary.pre!r}"
    if n_ranks <= 0 or not all(map(_same_name, vocabulary.tokens[n_ranks:], SPECIAL)):
        return "Meta's class has 256 special tokens of its own at the end, this model others"
    tokens = list(vocabulary.tokens[:n_ranks])
    if any(kind != "normal" for kind in vocabulary.types[:n_ranks]) or None in map(unspelled, tokens):
        return "some tokens before the special ones are no text"
    if list(vocabulary.merges) != merges_of(tokens):
        return "its merges are not those that follow from the order of the tokens"
    return None


def _write_model(vocabulary: Vocabulary, path: Path) -> str | None:
    """Write tokenizer.model; why it does not give the ids of `vocabulary`, None if it does."""
    if vocabulary.kind == "bpe":
        ranks = (unspelled(token) for token in vocabulary.tokens[: -len(SPECIAL)])
        write_ranks(path, [data for data in ranks if data is not None])
    else:
        write_sentencepiece(
            path,
            SentencePieceFile(
                pieces=vocabulary.tokens,
                scores=vocabulary.scores,
                types=vocabulary.types,
                bos_id=vocabulary.bos_id,
                eos_id=vocabulary.eos_id,
                pad_id=vocabulary.pad_id,
                unk_id=vocabulary.unk_id,
                space_prefix=vocabulary.space_prefix,
            ),
        )
    return first_difference(vocabulary, path)


def _without_model(vocabulary: Vocabulary) -> Vocabulary:
    files = {name: path for name, path in vocabulary.files.items() if name != "tokenizer.model"}
    return replace(vocabulary, files=files)
