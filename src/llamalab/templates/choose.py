"""Which template a model gets: its own, a built-in, or one from a file."""

from __future__ import annotations

import difflib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llamalab.errors import TemplateMissing
from llamalab.templates import ChatTemplate
from llamalab.templates.builtin import BUILT_IN

logger = logging.getLogger(__name__)

_OFFICIAL = {r"(?:Meta-)?Llama-?3[.\d]*-.*Instruct": "llama3", r"Llama-?2-.*chat": "llama2"}
"""Names under which Meta gives out its instruct models, and the template they were trained with."""


def choose_template(
    template: ChatTemplate | str | None,
    *,
    own: str | None = None,
    path: str | None = None,
    bos: str = "",
    eos: str = "",
    variables: Mapping[str, Any] | None = None,
) -> ChatTemplate:
    """The template to use for a model.

    Args:
        template: a template, whose empty fields are filled in; the name of a built-in; a file (Jinja text, or JSON with
            the field `chat_template`) or a model folder; None takes the model's own, for an instruct model in Meta's
            form, which has none, the built-in of its generation, or else `plain` with a warning.
        own: Jinja text that came with the model.
        path: the model's file or folder; a Hugging Face folder may hold a template.
        bos: text of the BOS token.
        eos: text of the EOS token.
        variables: further variables for the template.

    Raises:
        TemplateMissing: no such built-in or file, or a file without a template.
    """
    variables = dict(variables or {})
    if isinstance(template, ChatTemplate):
        variables = {**template.variables, **variables}
        return replace(template, bos=template.bos or bos, eos=template.eos or eos, variables=variables)
    name = template or "own"
    if template is None:
        name, found = own_template(own, path)
        if found is None:
            logger.warning(
                "The model%s has no chat template; its conversations are written as plain 'User:' and 'Assistant:' "
                "lines. Choose a template with --template: %s.",
                f" {Path(path).name}" if path else "",
                ", ".join(BUILT_IN),
            )
            name = "plain"
            found = BUILT_IN[name]
    else:
        found = BUILT_IN.get(template) or _template_at(template)
    stop = ("\nUser:",) if name == "plain" else ()
    return ChatTemplate(found, name, bos, eos, stop, variables)


def own_template(own: str | None, path: str | None) -> tuple[str, str | None]:
    """What a model's template is called, and its text; None where the model has none.

    Args:
        own: Jinja text that came with the model.
        path: the model's file or folder.
    """
    found = own or (folder_template(Path(path)) if path else None)
    official = _official(Path(path)) if path and found is None else None
    return ("own", found) if official is None else (official, BUILT_IN[official])


def folder_template(folder: Path) -> str | None:
    """The template in a Hugging Face model folder; None where there is none.

    Looks at `chat_template.jinja`, then at the field `chat_template` of `chat_template.json` and
    `tokenizer_config.json`: a text, or a list of named ones, of which "default" is taken.
    """
    if not folder.is_dir():
        return None
    if (file := folder / "chat_template.jinja").is_file():
        return _read(file)
    files = [folder / "chat_template.json", folder / "tokenizer_config.json"]
    return next((found for file in files if file.is_file() and (found := _json_template(file))), None)


def _official(folder: Path) -> str | None:
    """The built-in for a folder that Meta's command has downloaded, by its name; None for base models and others."""
    if not any((place / "params.json").is_file() for place in (folder, folder / "original")):
        return None
    name = folder.parent.name if folder.name == "original" else folder.name
    return next((template for pattern, template in _OFFICIAL.items() if re.match(pattern, name, re.IGNORECASE)), None)


def _template_at(place: str) -> str:
    file = Path(place).expanduser()
    if file.is_dir():
        found = folder_template(file)
    elif file.is_file():
        found = _json_template(file) if file.suffix == ".json" else _read(file)
    else:
        near = difflib.get_close_matches(place, BUILT_IN, n=1)
        raise TemplateMissing(
            f"No chat template '{place}': neither a built-in nor a file. "
            + (f"Did you mean '{near[0]}'? " if near else "")
            + f"The built-ins are {', '.join(BUILT_IN)}."
        )
    if not found:
        raise TemplateMissing(f"{file} holds no chat template.")
    return found


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateMissing(f"The chat template {file} cannot be read: {error}.") from error


def _json_template(file: Path) -> str | None:
    try:
        config = json.loads(_read(file))
    except json.JSONDecodeError as error:
        raise TemplateMissing(f"{file}, line {error.lineno}: not valid JSON: {error.msg}.") from error
    template = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
