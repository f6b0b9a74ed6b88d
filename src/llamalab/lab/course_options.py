"""Options of the course's functions: the engine's own, and llama-cpp-python's names of the same, checked."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from llamalab.checkpoints.ggml_types import NAMES
from llamalab.engine import SamplingParams, Schema
from llamalab.engines.options import Options, nearest
from llamalab.errors import ConfigError

_ENGINE = tuple(field.name for field in dataclasses.fields(Options))
_SAMPLING = tuple(field.name for field in dataclasses.fields(SamplingParams))

_TRANSLATED = ("use_mmap", "use_mlock", "lora_path", "lora_scale", "n_threads_batch", "logits_all")
_CHAT = ("chat_format", "seed")
_RANDOM_SEED = 0xFFFFFFFF
"""How llama.cpp says that each generation draws afresh."""

_CHAT_FORMATS = {
    "llama-2": "llama2",
    "llama-3": "llama3",
    "mistral-instruct": "mistral",
    "qwen": "chatml",
    "phi-3": "phi3",
}
"""llama-cpp-python's names of chat formats to ours, where they differ."""

_NATIVE_LOGGER = "llamalab.llama_cpp"


def engine_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options for the llama.cpp engine, with one sequence unless more are asked for.

    Raises:
        ConfigError: an unknown name, with the nearest that is known; or a value that cannot be translated.
    """
    known = (*_ENGINE, *_TRANSLATED, *_CHAT)
    for name in given:
        if name not in known:
            raise ConfigError(f"load_model has no option {name!r}.{nearest(name, known)}")
    options: dict[str, Any] = {"n_seq": 1}
    options |= {name: value for name, value in given.items() if name in _ENGINE and value is not None}
    for name in ("type_k", "type_v"):
        if name in options:
            options[name] = _cache_type(name, options[name])
    if given.get("use_mlock"):
        options.setdefault("load_mode", "mlock")
    elif given.get("use_mmap") is not None:
        options.setdefault("load_mode", "mmap" if given["use_mmap"] else "read")
    if given.get("lora_path") is not None:
        options.setdefault("adapters", [(given["lora_path"], given.get("lora_scale", 1.0))])
    for_batch = given.get("n_threads_batch")
    if for_batch not in (None, given.get("n_threads")):
        raise ConfigError(
            "n_threads_batch cannot differ from n_threads: prompts and answers use the same threads here."
        )
    return options


def chat_options(given: Mapping[str, Any]) -> tuple[str | None, int | None]:
    """Chat template and seed for a model.

    Raises:
        ConfigError: a chat format that is no text, or an impossible seed.
    """
    template = given.get("chat_format")
    if template is not None and not isinstance(template, str):
        raise ConfigError(f"chat_format is the name of a chat template, not {template!r}.")
    return (None if template is None else _CHAT_FORMATS.get(template, template)), _seed(given.get("seed"))


def generation_options(given: Mapping[str, Any], seed: int | None) -> tuple[SamplingParams, Schema | None, str | None]:
    """How to draw, and the schema or grammar to hold to.

    Args:
        given: by name: `SamplingParams`, `schema`, `grammar`, or llama-cpp-python's `response_format`.
        seed: of the model, for a generation that is given none.

    Raises:
        ConfigError: an unknown name, with the nearest that is known; or a value that cannot be.
    """
    known = (*_SAMPLING, "schema", "grammar", "response_format")
    for name in given:
        if name not in known:
            raise ConfigError(f"A generation has no option {name!r}.{nearest(name, known)}")
    values = {name: value for name, value in given.items() if name in _SAMPLING and value is not None}
    values["seed"] = _seed(values.get("seed", seed))
    stop = values.get("stop", ())
    values["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    if values.get("max_tokens") == -1:
        values["max_tokens"] = None
    if values.get("top_k") == -1:
        values["top_k"] = 0
    return SamplingParams(**values), given.get("schema", _schema(given.get("response_format"))), given.get("grammar")


@contextmanager
def told(verbose: bool) -> Iterator[None]:
    """With `verbose`, what llama.cpp logs inside the block goes to standard error."""
    if not verbose:
        yield
        return
    logger, handler = logging.getLogger(_NATIVE_LOGGER), logging.StreamHandler(sys.stderr)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


def _cache_type(name: str, value: object) -> str:
    """The name of a cache's type, which llama-cpp-python gives by ggml's number."""
    if isinstance(value, str):
        return value.lower()
    if isinstance(value, int) and value in NAMES:
        return NAMES[value].lower()
    raise ConfigError(f"{name} must be the name of a type, or its number in ggml, not {value!r}.")


def _seed(value: object) -> int | None:
    if value is None or value in (-1, _RANDOM_SEED):
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"seed must be a whole number of at least 0, not {value!r}.")
    return value


def _schema(response_format: object) -> Schema | None:
    """The schema in llama-cpp-python's `response_format`; any object where it names none."""
    match response_format:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object", **rest}:
            schema = rest.get("schema")
            return schema if isinstance(schema, Mapping | str) else {"type": "object"}
    raise ConfigError(f'response_format is {{"type": "json_object", "schema": ...}}, not {response_format!r}.')
