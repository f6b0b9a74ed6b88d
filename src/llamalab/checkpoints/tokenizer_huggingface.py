"""Tokenisers in Hugging Face folders: tokenizer.json, tokenizer_config.json, generation_config.json."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llamalab.checkpoints.pieces import SPACE, is_byte_token
from llamalab.checkpoints.pretokenizers import UNKNOWN, name_of
from llamalab.checkpoints.sentencepiece_file import SentencePieceFile, read_sentencepiece
from llamalab.checkpoints.tiktoken_file import is_tiktoken
from llamalab.checkpoints.tokenizer_json import build_tokenizer_json
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
        path = files["tokenizer.json"]
        try:
            data = read_json(path)
            vocabulary = _from_json(data, original)
            said = _begins_with(data.get("post_processor"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelFileError(f"{path} is no tokeniser that can be read: {type(error).__name__} {error}.") from None
        except _NoLlama as error:
            raise ModelFileError(f"{path} {error}.") from None
    return replace(_with_settings(vocabulary, folder, said), files=files)


def read_chat_template(folder: Path) -> str | None:
    """Jinja source from chat_template.jinja or tokenizer_config.json; None where neither has one.

    Of several named templates, the one called "default".
    """
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    template = read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        template = {entry.get("name"): entry.get("template") for entry in template}.get("default")
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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file.

    Raises:
        ModelFileError: no JSON, or no object.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelFileError(f"{path} is no JSON: {error}.") from None
    if not isinstance(found, dict):
        raise ModelFileError(f"{path} holds no JSON object.")
    return found


class _NoLlama(Exception):
    """A tokeniser of another kind; the message goes on from the path."""


def _from_json(data: Mapping[str, Any], original: SentencePieceFile | None) -> Vocabulary:
    model = data["model"]
    if model.get("type", "BPE") != "BPE":
        raise _NoLlama(f"holds a tokeniser of the kind {model.get('type')!r}; Llamas have BPE")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _NoLlama("marks parts of words (continuing_subword_prefix, end_of_word_suffix); no Llama does")
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    by_id: dict[int, tuple[str, TokenType]] = {id: (text, "normal") for text, id in model["vocab"].items()}
    kind = _kind(data)
    if kind == "sentencepiece":
        by_id |= {id: (text, "byte") for id, (text, _) in by_id.items() if is_byte_token(text)}
        unknown = model.get("unk_token")
        if unknown is not None:
            by_id[model["vocab"][unknown]] = (unknown, "unknown")
    for added in data.get("added_tokens") or ():
        if by_id.get(added["id"], ("", "normal"))[1] != "unknown":
            by_id[added["id"]] = (added["content"], "control" if added["special"] else "user_defined")
    if not by_id or min(by_id) < 0:
        raise ValueError("ids of tokens")
    by_id |= {id: (text, "unused") for id, (text, _) in by_id.items() if text == unused_name(id)}
    rows = [by_id.get(id, (unused_name(id), "unused")) for id in range(max(by_id) + 1)]
    tokens, types = [text for text, _ in rows], [kind for _, kind in rows]
    vocabulary = Vocabulary(kind=kind, tokens=tokens, types=types)
    if kind == "bpe":
        pre = name_of(data.get("pre_tokenizer"), whole_words=bool(model.get("ignore_merges")))
        notes = () if pre != UNKNOWN else (f"Its pre-tokeniser is {_short(data.get('pre_tokenizer'))}.",)
        if data.get("normalizer") is not None:
            pre, notes = UNKNOWN, (f"It changes text before cutting it: {_short(data['normalizer'])}.",)
        return replace(vocabulary, merges=[" ".join(merge) for merge in merges], pre=pre, notes=notes)
    if original is not None and list(original.pieces) == tokens[: len(original.pieces)]:
        scores = [*original.scores, *[-1e4] * (len(tokens) - len(original.pieces))]
    else:
        scores = _scores(tokens, merges)
    unk = types.index("unknown") if "unknown" in types else None
    prefix, scheme = _space_prefix(data)
    notes = ()
    if prefix and scheme is not None:
        where = "; and after a control token it puts none" if scheme == "first" else ""
        notes = (f"Its tokenizer.json puts no space before text that begins with one, llama.cpp does{where}.",)
    return replace(vocabulary, scores=scores, unk_id=unk, space_prefix=prefix, notes=notes)


def _kind(data: Mapping[str, Any]) -> Kind:
    """Byte-level where its pre-tokeniser or decoder says so; SentencePiece's where it falls back to byte tokens."""
    if "'ByteLevel'" in f"{data.get('pre_tokenizer')}{data.get('decoder')}":
        return "bpe"
    if data["model"].get("byte_fallback") and SPACE in f"{data.get('normalizer')}{data.get('pre_tokenizer')}":
        return "sentencepiece"
    raise _NoLlama("holds neither a byte-level BPE nor one made from SentencePiece (byte_fallback), as Llamas have")


def _scores(tokens: list[str], merges: list[tuple[str, ...]]) -> list[float]:
    """Scores under which SentencePiece joins in the order of `merges`: minus the place where a token first appears."""
    place: dict[str, int] = {}
    for merge in merges:
        place.setdefault("".join(merge), len(place))
    last = -float(len(place))
    return [-float(place[token]) if token in place else last if len(token) == 1 else -1e6 for token in tokens]


def _space_prefix(data: Mapping[str, Any]) -> tuple[bool, str | None]:
    """Whether a space is put in front of text; and the scheme, where a pre-tokeniser does it and not a normaliser."""
    structure: Any = data.get("pre_tokenizer") or {}
    if structure.get("type") == "Metaspace":
        scheme = str(structure.get("prepend_scheme", "always"))
        return scheme != "never" and bool(structure.get("add_prefix_space", True)), scheme
    return "'Prepend'" in str(data.get("normalizer")), None


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
    config, names = read_json(folder / "tokenizer_config.json"), read_json(folder / "special_tokens_map.json")
    numbers = read_json(folder / "generation_config.json"), read_json(folder / "config.json")
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
    return [id for id in (found if isinstance(found, list) else [found]) if isinstance(id, int) and id >= 0]


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
