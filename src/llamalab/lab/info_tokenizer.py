"""The tokeniser of a folder as far as its small files tell: no vocabulary is loaded.

A damaged file here is a warning and no error: the rest of the folder can be described without it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamalab.checkpoints.json_file import read_json
from llamalab.checkpoints.tiktoken_file import BOS, EOS, PAD, SPECIAL, is_tiktoken
from llamalab.errors import ModelFileError
from llamalab.lab.info import SpecialToken, TokenizerInfo

_MODEL = re.compile(rb'"model"\s*:\s*\{\s*"type"\s*:\s*"(\w+)"')
_LARGEST = 256 << 20
_PARTS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def folder_tokenizer(folder: Path, n_tokens: int | None) -> tuple[TokenizerInfo | None, list[str]]:
    """The tokeniser, None where the folder has none; and what is wrong with its files, one sentence each.

    Args:
        folder: in Hugging Face's format or Meta's.
        n_tokens: that the settings name.
    """
    warnings: list[str] = []
    settings, names, generation, config = (
        _read(folder / f"{name}.json", warnings)
        for name in ("tokenizer_config", "special_tokens_map", "generation_config", "config")
    )
    model, whole = folder / "tokenizer.model", folder / "tokenizer.json"
    kind = _kind_of_json(whole) if whole.is_file() else None
    if model.is_file() and not whole.is_file() and not settings:
        if is_tiktoken(model):
            return _tiktoken(n_tokens), warnings
        return TokenizerInfo(kind="SentencePiece", n_tokens=n_tokens), warnings
    if kind is None and model.is_file():
        kind = "BPE" if is_tiktoken(model) else "SentencePiece"
    if kind is None and not settings:
        return None, warnings
    added = _added(settings, whole, warnings)
    ids = {text: id for id, (text, _) in added.items()}
    special: dict[str, SpecialToken] = {}
    for part in _PARTS:
        text = next((found for source in (settings, names) if (found := _text(source.get(f"{part}_token")))), None)
        id = ids.get(text) if text is not None else None
        if id is None:
            id = next((said for source in (config, generation) if (said := _id(source, part)) is not None), None)
            text = added[id][0] if id in added else text
        if id is not None:
            special[part] = SpecialToken(id, text)
    add_bos = settings.get("add_bos_token")
    return TokenizerInfo(
        kind=kind or _text(settings.get("tokenizer_class")),
        n_tokens=n_tokens,
        add_bos=add_bos if isinstance(add_bos, bool) else None,
        special=special,
        control={id: text for id, (text, control) in sorted(added.items()) if control},
    ), warnings


def folder_chat_template(folder: Path, warnings: list[str]) -> str | None:
    """Jinja source: of chat_template.jinja, or the default one in tokenizer_config.json; None where there is none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            warnings.append(f"{file.name} cannot be read ({error}).")
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = _read(folder / name, []).get("chat_template")
        if isinstance(found, list):
            named = {str(entry.get("name")): entry.get("template") for entry in found if isinstance(entry, dict)}
            found = named.get("default")
        if isinstance(found, str):
            return found
    return None


def _read(path: Path, warnings: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return read_json(path)
    except ModelFileError as error:
        warnings.append(str(error))
        return {}


def _kind_of_json(path: Path) -> str | None:
    """What tokenizer.json calls its model; looked for as text, for the whole is megabytes of vocabulary."""
    try:
        if path.stat().st_size > _LARGEST:
            return None
        content = path.read_bytes()
    except OSError:
        return None
    match = _MODEL.search(content)
    if match is None:
        return None
    found = match[1].decode()
    return "SentencePiece" if found == "BPE" and b'"byte_fallback":true' in content.replace(b" ", b"") else found


def _added(settings: Mapping[str, Any], whole: Path, warnings: list[str]) -> dict[int, tuple[str, bool]]:
    """Tokens that were added to the vocabulary: id to text, and whether it is a control token."""
    listed = settings.get("added_tokens_decoder")
    found: dict[int, tuple[str, bool]] = {}
    if isinstance(listed, dict):
        pairs = [(int(id), entry) for id, entry in listed.items() if id.isdecimal() and len(id) < 10]
    else:
        added = _read(whole, warnings).get("added_tokens") if whole.is_file() else None
        entries = [entry for entry in added if isinstance(entry, dict)] if isinstance(added, list) else []
        pairs = [(entry["id"], entry) for entry in entries if type(entry.get("id")) is int]
    for id, entry in pairs:
        if isinstance(entry, dict) and isinstance(entry.get("content"), str):
            found[id] = (entry["content"], entry.get("special") is True)
    return found


def _text(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _id(source: Mapping[str, Any], part: str) -> int | None:
    value = source.get(f"{part}_token_id")
    if isinstance(value, list):
        value = value[0] if value else None
    return value if type(value) is int and value >= 0 else None


def _tiktoken(n_tokens: int | None) -> TokenizerInfo:
    """Llama 3's: Meta's class puts 256 special tokens behind the ranks."""
    if n_tokens is None or n_tokens <= len(SPECIAL):
        return TokenizerInfo(kind="BPE", pre="llama-bpe", n_tokens=n_tokens, add_bos=True)
    first = n_tokens - len(SPECIAL)
    ids = {text: first + i for i, text in enumerate(SPECIAL)}
    parts = {"bos": BOS, "eos": EOS, "pad": PAD, "eot": "<|eot_id|>", "eom": "<|eom_id|>"}
    return TokenizerInfo(
        kind="BPE",
        pre="llama-bpe",
        n_tokens=n_tokens,
        add_bos=True,
        special={part: SpecialToken(ids[text], text) for part, text in parts.items()},
        control={id: text for text, id in ids.items()},
    )
