"""Tokenisers in Hugging Face folders: tokenizer.json, tokenizer_config.json, generation_config.json."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llamalab.checkpoints.json_file import read_json_if_there
from llamalab.checkpoints.pieces import SPACE, is_byte_token
from llamalab.checkpoints.pretokenizers import UNKNOWN, name_of
from llamalab.checkpoints.sentencepiece_file import SentencePieceFile, read_sentencepiece
from llamalab.checkpoints.tiktoken_file import is_tiktoken
from llamalab.checkpoints.tokenizer_json import build_tokenizer_json
from llamalab.checkpoints.tokenizer_json_file import TokenizerJson, read_tokenizer_json
from llamalab.checkpoints.vocabulary import Kind, TokenType, Vocabulary, unused_name
from llamalab.errors import ModelFileError

_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
)


def vocabulary_from_huggingface(folder: Path) -> Vocabulary:
    """The tokeniser of a Hugging Face folder.

    Raises:
        ModelFileError: no tokenizer.json (or SentencePiece tokenizer.model), a damaged one, or one of a kind that no
            Llama has.
    """
    files = {name: folder / name for name in _FILES if (folder / name).is_file()}
    model = files.get("tokenizer.model")
    original = None if model is None or is_tiktoken(model) else read_sentencepiece(model)
    if "tokenizer.json" not in files:
        if original is None:
            raise ModelFileError(
                f"{folder} has no tokeniser: neither a tokenizer.json nor SentencePiece's tokenizer.model."
            )
        vocabulary, said = vocabulary_from_sentencepiece(original), None
    else:
        file = read_tokenizer_json(files["tokenizer.json"])
        vocabulary, said = _vocabulary(file, original), _begins_with(file.post_processor)
    return replace(_with_settings(vocabulary, folder, said), files=files)


def read_chat_template(folder: Path) -> str | None:
    """Jinja source from chat_template.jinja or tokenizer_config.json; None where neither has one.

    Of several named templates, the one called "default".
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelFileError(f"{path} cannot be read: {error}.") from error
    template = read_json_if_there(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        named = (entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default")
        template = next(named, {}).get("template")
    return template if isinstance(template, str) else None


def write_huggingface_tokenizer(vocabulary: Vocabulary, folder: Path, chat_template: str | None = None) -> None:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json into `folder`.

    Files that came with the vocabulary are copied as they are; what is missing is built.

    Raises:
        ModelFileError: a pre-tokeniser that only llama.cpp knows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copied = {name: path for name, path in vocabulary.files.items() if name in _FILES}
    if vocabulary.kind == "bpe":
        copied.pop("tokenizer.model", None)  # tiktoken's, which belongs into Meta's folders
    for name, path in copied.items():
        if path.resolve() != (folder / name).resolve():
            shutil.copyfile(path, folder / name)
    if "tokenizer.json" not in copied:
        _write_json(folder / "tokenizer.json", build_tokenizer_json(vocabulary))
    if "tokenizer_config.json" not in copied:
        _write_json(folder / "tokenizer_config.json", _config(vocabulary, chat_template))
    elif chat_template is not None and read_chat_template(folder) != chat_template:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    if "generation_config.json" not in copied:
        stops = sorted(vocabulary.stop_ids, key=lambda stop: (stop != vocabulary.eos_id, stop))
        eos = stops if len(stops) > 1 else vocabulary.eos_id
        ids = {"bos_token_id": vocabulary.bos_id, "eos_token_id": eos, "pad_token_id": vocabulary.pad_id}
        known = {name: id for name, id in ids.items() if id is not None}
        _write_json(folder / "generation_config.json", {"_from_model_config": True, **known})


def vocabulary_from_sentencepiece(file: SentencePieceFile) -> Vocabulary:
    """The tokeniser of a SentencePiece model, as Llama 2 has it."""
    return Vocabulary(
        kind="sentencepiece",
        tokens=file.pieces,
        types=file.types,
        scores=file.scores,
        bos_id=file.bos_id,
        eos_id=file.eos_id,
        pad_id=file.pad_id,
        unk_id=file.unk_id,
        stop_ids=frozenset() if file.eos_id is None else frozenset({file.eos_id}),
        add_bos=file.bos_id is not None,
        space_prefix=file.space_prefix,
    )


def _vocabulary(file: TokenizerJson, original: SentencePieceFile | None) -> Vocabulary:
    """What tokenizer.json alone says.

    Args:
        file: as read.
        original: the SentencePiece model that it was made from, for its scores; None where that is not there.
    """
    kind = _kind(file)
    by_id: dict[int, tuple[str, TokenType]] = {id: (text, "normal") for text, id in file.vocab.items()}
    if kind == "sentencepiece":
        by_id |= {id: (text, "byte") for id, (text, _) in by_id.items() if is_byte_token(text)}
    by_id |= {token.id: (token.text, "control" if token.special else "user_defined") for token in file.added}
    if kind == "sentencepiece" and file.unk_id is not None:
        by_id[file.unk_id] = (by_id[file.unk_id][0], "unknown")
    by_id |= {id: (text, "unused") for id, (text, _) in by_id.items() if text == unused_name(id)}
    rows = [by_id.get(id, (unused_name(id), "unused")) for id in range(max(by_id) + 1)]
    tokens, types = [text for text, _ in rows], [kind for _, kind in rows]
    vocabulary = Vocabulary(kind=kind, tokens=tokens, types=types)
    if kind == "bpe":
        pre = name_of(file.pre_tokenizer, whole_words=file.ignore_merges)
        notes = () if pre != UNKNOWN else (f"Its pre-tokeniser is {_short(file.pre_tokenizer)}.",)
        if file.normalizer is not None:
            pre, notes = UNKNOWN, (f"It changes text before cutting it: {_short(file.normalizer)}.",)
        return replace(vocabulary, merges=[" ".join(merge) for merge in file.merges], pre=pre, notes=notes)
    if original is not None and list(original.pieces) == tokens[: len(original.pieces)]:
        scores = [*original.scores, *[-1e4] * (len(tokens) - len(original.pieces))]
    else:
        scores = _scores(tokens, file.merges)
    prefix, scheme = _space_prefix(file)
    notes = ()
    if prefix and scheme is not None:
        where = "; and after a control token it puts none" if scheme == "first" else ""
        notes = (f"Its tokenizer.json puts no space before text that begins with one, llama.cpp does{where}.",)
    return replace(vocabulary, scores=scores, unk_id=file.unk_id, space_prefix=prefix, notes=notes)


def _kind(file: TokenizerJson) -> Kind:
    """Byte-level where its pre-tokeniser or decoder says so; SentencePiece's where it falls back to byte tokens."""
    if "'ByteLevel'" in f"{file.pre_tokenizer}{file.decoder}":
        return "bpe"
    if file.byte_fallback and SPACE in f"{file.normalizer}{file.pre_tokenizer}":
        return "sentencepiece"
    raise ModelFileError(
        f"{file.path} holds neither a byte-level BPE nor one made from SentencePiece (byte_fallback), as Llamas have."
    )


def _scores(tokens: Sequence[str], merges: Sequence[tuple[str, str]]) -> list[float]:
    """Scores under which SentencePiece joins in the order of `merges`: minus the place where a token first appears."""
    place: dict[str, int] = {}
    for merge in merges:
        place.setdefault("".join(merge), len(place))
    last = -float(len(place))
    return [-float(place[token]) if token in place else last if len(token) == 1 else -1e6 for token in tokens]


def _space_prefix(file: TokenizerJson) -> tuple[bool, str | None]:
    """Whether a space is put in front of text; and the scheme, where a pre-tokeniser does it and not a normaliser."""
    structure = file.pre_tokenizer or {}
    if structure.get("type") == "Metaspace":
        scheme = str(structure.get("prepend_scheme", "always"))
        return scheme != "never" and bool(structure.get("add_prefix_space", True)), scheme
    return "'Prepend'" in str(file.normalizer), None


def _begins_with(structure: Any) -> str | None:
    """The special token that the post-processor puts in front of a text: "" for none, None where it does not say."""
    match structure:
        case {"type": "Sequence", "processors": [*parts]}:
            return next((said for said in map(_begins_with, parts) if said is not None), None)
        case {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": str(text)}}, *_]}:
            return text
        case {"type": "TemplateProcessing"}:
            return ""
    return None


def _with_settings(vocabulary: Vocabulary, folder: Path, begins_with: str | None) -> Vocabulary:
    """BOS, EOS, padding and stop tokens, from the files beside tokenizer.json.

    Args:
        vocabulary: as tokenizer.json has it.
        folder: where the files lie.
        begins_with: see `_begins_with`.
    """
    config, names, *numbers = (
        read_json_if_there(folder / f"{name}.json")
        for name in ("tokenizer_config", "special_tokens_map", "generation_config", "config")
    )
    ids = {text: id for id, text in enumerate(vocabulary.tokens)}

    def token(name: str, default: int | None) -> int | None:
        for source in (config, names):
            said = source.get(f"{name}_token")
            text = said.get("content") if isinstance(said, dict) else said
            if isinstance(text, str) and text in ids:
                return ids[text]
        if default is None and not config:
            default = next((id for settings in numbers for id in _ids(settings, name) if id < len(ids)), None)
        return default

    bos = ids.get(begins_with) if begins_with else token("bos", vocabulary.bos_id)
    eos, pad = token("eos", vocabulary.eos_id), token("pad", vocabulary.pad_id)
    stops = {id for settings in numbers for id in _ids(settings, "eos") if id < len(ids)}
    named = {id for id in (bos, eos, pad) if id is not None and vocabulary.types[id] in ("normal", "user_defined")}
    add_bos = bool(config.get("add_bos_token", vocabulary.add_bos)) if begins_with is None else bool(begins_with)
    return replace(
        vocabulary,
        types=["control" if id in named else kind for id, kind in enumerate(vocabulary.types)],
        bos_id=bos,
        eos_id=eos,
        pad_id=pad,
        unk_id=token("unk", vocabulary.unk_id),
        stop_ids=frozenset(stops | vocabulary.stop_ids | ({eos} if eos is not None else set())),
        add_bos=add_bos and bos is not None,
    )


def _ids(settings: Mapping[str, Any], name: str) -> list[int]:
    found = settings.get(f"{name}_token_id")
    return [id for id in (found if isinstance(found, list) else [found]) if type(id) is int and id >= 0]


def _config(vocabulary: Vocabulary, chat_template: str | None) -> dict[str, Any]:
    """tokenizer_config.json of a tokeniser that came without."""
    named = {
        "bos": vocabulary.bos_id,
        "eos": vocabulary.eos_id,
        "pad": vocabulary.pad_id,
        "unk": vocabulary.unk_id,
    }
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": vocabulary.add_bos,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        **{f"{name}_token": None if id is None else vocabulary.tokens[id] for name, id in named.items()},
    }
    return config if chat_template is None else {**config, "chat_template": chat_template}


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _short(structure: object) -> str:
    text = json.dumps(structure, ensure_ascii=False)
    return text if len(text) <= 300 else text[:300] + "..."
