"""Engines: one file per runtime, found by the provider's name.

engine = load("pico")
engine = load("llama_cpp:~/models/x.gguf", n_ctx=8192)
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from llamalab.engine import Engine
from llamalab.errors import ModelFileError, ProviderError

if TYPE_CHECKING:
    from llamalab.engines.tokenizer import Tokenizer

PROVIDERS = {
    "llama_cpp": "llamalab.engines.llama_cpp:LlamaCppEngine",
    "jax": "llamalab.engines.jax:JaxEngine",
    "transformers": "llamalab.engines.transformers:TransformersEngine",
    "meta": "llamalab.engines.meta:MetaEngine",
}
"""Provider to the class that is its engine, as "module:Class"; it takes (path, **options)."""

REMOTE = ("ollama", "deepseek", "fireworks", "openai", "litellm")
"""Providers whose models run elsewhere: `llamalab.chat_model` talks with them, and there is no engine to load."""

SUFFIXES = {".gguf": "llama_cpp"}
"""File suffix to the provider that runs it, for specs without a provider."""

FOLDERS = "jax"
"""The provider that runs folders: Meta's and Hugging Face's checkpoints."""

_PREFIX = re.compile(r"^([A-Za-z_][A-Za-z0-9_.-]+):(?!//)(.+)$")
_SOURCES = ("hub",)


def load(spec: str | Path, **options: Any) -> Engine:
    """Load the model that `spec` names.

    Args:
        spec: "provider:model", or a model alone: a path, "pico" (the built-in one), "hub:org/repo[:Q4_K_M]",
            or the name of a model in the hub's cache or in ollama's store.
        options: of the engine, e.g. `llamalab.engines.options.Options` for llama.cpp.

    Raises:
        ProviderError: no such provider, or one that runs models elsewhere.
        ModelNotFound: nothing under that name or path.
        ModelFileError: a file that cannot be run.
        ConfigError: a wrong option.
    """
    provider, name = _local(spec)
    from llamalab.checkpoints.locate import locate

    path = locate(name)
    if provider is None:
        provider = _provider_of(path)
    module, _, attribute = PROVIDERS[provider].partition(":")
    return cast("Engine", getattr(importlib.import_module(module), attribute)(path, **options))


def load_tokenizer(spec: str | Path) -> Engine | Tokenizer:
    """What cuts texts into the tokens of the model that `spec` names, without the weights.

    Raises:
        As `load`.
    """
    provider, name = _local(spec)
    from llamalab.checkpoints.locate import locate

    path = locate(name)
    if (provider or _provider_of(path)) == "llama_cpp":
        return load(spec, vocab_only=True)
    from llamalab.checkpoints.checkpoint import open_checkpoint
    from llamalab.engines.tokenizer import open_tokenizer

    return open_tokenizer(open_checkpoint(path))


def provider_of(spec: str | Path) -> str:
    """The provider that `load` or `llamalab.chat_model` takes for `spec`.

    Raises:
        As `load`, for what cannot be found or is no model file.
    """
    provider, name = split_spec(spec)
    if provider is not None:
        return provider
    from llamalab.checkpoints.locate import locate

    return _provider_of(locate(name))


def split_spec(spec: str | Path) -> tuple[str | None, str]:
    """A model spec as (provider or None, model).

    Raises:
        ProviderError: a provider that does not exist; names the nearest.
    """
    text = str(spec)
    match = _PREFIX.match(text)
    if match is None or isinstance(spec, Path) or Path(text).expanduser().exists():
        return None, text
    prefix, model = match.groups()
    if prefix in PROVIDERS or prefix in REMOTE:
        return prefix, model
    if prefix in _SOURCES or len(prefix) == 1:  # a source of files, or a Windows drive
        return None, text
    if "/" not in prefix and "." not in prefix and not _looks_like_tag(model):
        from llamalab.engines.options import nearest

        raise ProviderError(f"There is no provider {prefix!r}.{nearest(prefix, [*PROVIDERS, *REMOTE])}")
    return None, text


def _local(spec: str | Path) -> tuple[str | None, str]:
    """As `split_spec`, for a model that is to be loaded here."""
    provider, name = split_spec(spec)
    if provider in REMOTE:
        here = f" What ollama has downloaded is loaded by its name alone: {name}." if provider == "ollama" else ""
        raise ProviderError(
            f"{spec} runs elsewhere: one can talk with it (llamalab chat, llamalab.chat_model), and not load it.{here}"
        )
    return provider, name


def _looks_like_tag(model: str) -> bool:
    """`name:tag` of a model store ("llama3.2:3b"), as opposed to `provider:model`."""
    return "/" not in model and "." not in model and len(model) <= 32


def _provider_of(path: Path) -> str:
    """The provider for a file, from its suffix or its first bytes."""
    if path.is_dir():
        return FOLDERS
    found = SUFFIXES.get(path.suffix.lower())
    if found is None and path.is_file():
        with path.open("rb") as file:
            found = "llama_cpp" if file.read(4) == b"GGUF" else None
    if found is None:
        known = ", ".join(SUFFIXES)
        raise ModelFileError(f"{path} is not a model file that can be run here (known: {known}).")
    return found
