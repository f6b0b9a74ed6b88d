"""The interface of the course lab "llama.cpp": ten functions, each a few lines over what llamalab has anyway.

`llamacpp_inference` hands the same names on, so that code written for the course runs unchanged. Sizes are in GB of
10^9 bytes, times in seconds.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

from llamalab.errors import EngineError, InputError, ModelFileError
from llamalab.lab.course_model import LoadedModel, events, last
from llamalab.lab.course_options import chat_options, engine_options, generation_options, told

__all__ = [
    "BenchmarkMetrics",
    "LoadedModel",
    "benchmark_inference",
    "count_tokens",
    "estimate_memory_usage",
    "generate_chat",
    "generate_text",
    "get_model_info",
    "get_quantization_from_filename",
    "is_gguf_file",
    "llamacpp_available",
    "load_model",
]

ModelPath: TypeAlias = str | os.PathLike[str]

_GB = 10**9
_UNKNOWN_OVERHEAD = 0.2
"""Share of a file's size that is taken for the rest, where the file is no GGUF and nothing better is known."""


@dataclass(frozen=True, slots=True)
class BenchmarkMetrics:
    """How fast a model was; each figure is an attribute and a key: `m.total_time`, `m["total_time"]`.

    Attributes:
        total_tokens: generated.
        total_time: from the first prompt to the last token, seconds.
        tokens_per_second: total_tokens / total_time; reading the prompts counts as time.
        time_to_first_token: mean over the prompts, seconds.
        prompts_processed: how many.
        peak_memory_gb: most memory that this process has had resident since it began, the mapped model file
            included; None where the system does not say.
    """

    total_tokens: int
    total_time: float
    tokens_per_second: float
    time_to_first_token: float
    prompts_processed: int
    peak_memory_gb: float | None

    def keys(self) -> list[str]:
        """Names of the figures; with it, `dict(metrics)` works."""
        return [field.name for field in fields(self)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __getitem__(self, key: str) -> Any:
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)


def load_model(
    model_path: ModelPath,
    n_ctx: int = 2048,
    n_threads: int | None = None,
    n_gpu_layers: int = 0,
    verbose: bool = False,
    **kwargs: Any,
) -> LoadedModel:
    """Load a GGUF model.

    Args:
        model_path: of the file, or any other name of a model ("pico", "hub:org/repo:Q4_K_M").
        n_ctx: context, tokens.
        n_threads: None: one for each physical core.
        n_gpu_layers: layers on the GPU; -1: all.
        verbose: show what llama.cpp says while it loads.
        kwargs: options of the engine (`llamalab.engines.options.Options`), or llama-cpp-python's names of the same:
            `seed`, `use_mmap`, `use_mlock`, `chat_format`, `lora_path`, numbers for `type_k` and `type_v`, ...

    Raises:
        ModelFileError: no such file, or one that cannot be run.
        ConfigError: an option that does not exist (with the nearest that does), or cannot be.
        OutOfMemory: it does not fit.
    """
    options = engine_options({"n_ctx": n_ctx, "n_threads": n_threads, "n_gpu_layers": n_gpu_layers, **kwargs})
    template, seed = chat_options(kwargs)

    from llamalab.engines import load, provider_of

    spec = os.fspath(model_path)
    if provider_of(spec) != "llama_cpp":
        raise ModelFileError(f"{spec} is no GGUF file, which alone is run here; `llamalab.load` runs other formats.")
    with told(verbose):
        return LoadedModel(load(spec, **options), template, seed)


def generate_text(
    model: LoadedModel,
    prompt: str,
    max_tokens: int = 100,
    temperature: float = 0.7,
    top_p: float = 0.95,
    top_k: int = 40,
    stop: str | Sequence[str] | None = None,
    **kwargs: Any,
) -> str:
    """What the model writes after `prompt`; the prompt itself is not part of it.

    Args:
        model: from `load_model`.
        prompt: continued as it stands, without a chat template; the text of a control token in it stays text.
        max_tokens: most tokens to generate; -1: until the context is full.
        temperature: 0 takes the most probable token.
        top_p: keep the smallest set of tokens whose mass reaches p; 1 keeps all.
        top_k: keep the k most probable tokens; 0 keeps all.
        stop: text, or several, before which to end.
        kwargs: more of `llamalab.SamplingParams` (seed, min_p, repeat_penalty, ...), `schema` or `grammar`.

    Raises:
        ContextOverflow: a prompt longer than the context.
        ConfigError: an option that does not exist, or cannot be.
    """
    given = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k, "stop": stop}
    return last(events(model, prompt, given | kwargs)).text


def generate_chat(
    model: LoadedModel,
    messages: Sequence[Mapping[str, Any]],
    max_tokens: int = 100,
    temperature: float = 0.7,
    **kwargs: Any,
) -> str:
    """The assistant's next message.

    Args:
        model: from `load_model`; its own chat template is used, or plain lines where it has none.
        messages: each with `role` ("system", "user" or "assistant") and `content`, oldest first.
        max_tokens: most tokens to generate; -1: until the context is full.
        temperature: 0 takes the most probable token.
        kwargs: as for `generate_text`; there is no `grammar`.

    Raises:
        InputError: messages that cannot be used.
        ContextOverflow: a conversation longer than the context.
        ConfigError: an option that does not exist, or cannot be.
    """
    params, schema, grammar = generation_options(
        {"max_tokens": max_tokens, "temperature": temperature, **kwargs}, model.seed
    )
    if grammar is not None:
        raise InputError("A chat takes a schema, no grammar; generate_text takes both.")
    return model.chat.chat(messages, params, schema=schema).text


def get_model_info(model_path: ModelPath) -> dict[str, Any]:
    """What the file's header says; no weights are loaded. `llamalab.lab.info.model_info` tells much more.

    Returns:
        architecture, quantization (told from the tensors, not from the name), parameters (exact), context_length
        (tokens), file_size_gb, vocab_size. None for what the header does not say.

    Raises:
        ModelFileError: no such file, no model, or damaged.
    """
    from llamalab.lab.info import model_info

    info = model_info(os.fspath(model_path))
    for warning in info.warnings:
        warnings.warn(warning, stacklevel=2)
    return {
        "architecture": info.architecture,
        "quantization": info.quantisation,
        "parameters": info.n_params,
        "context_length": info.context_length,
        "file_size_gb": info.size_bytes / _GB,
        "vocab_size": info.n_vocab,
    }


def estimate_memory_usage(model_path: ModelPath, n_ctx: int = 2048, n_batch: int = 512) -> dict[str, float]:
    """Memory that a model needs on the CPU, in GB.

    A file that is no GGUF gets an estimate from its size alone, with a warning.

    Args:
        model_path: of the file.
        n_ctx: context, tokens.
        n_batch: tokens computed at once.

    Returns:
        model_size (the file), kv_cache, and total_estimate, which has the compute buffers and the process as well.

    Raises:
        ModelNotFound: no such file.
        ConfigError: a context or batch of less than one token.
    """
    from llamalab.checkpoints.locate import locate

    path = locate(os.fspath(model_path))
    try:
        model, cache, total = _estimated(path, n_ctx, n_batch)
    except ModelFileError as error:
        size = path.stat().st_size if path.is_file() else 0
        warnings.warn(f"The estimate is from the size of the file alone. {error}", stacklevel=2)
        model, cache, total = size, size * _UNKNOWN_OVERHEAD, size * (1 + _UNKNOWN_OVERHEAD)
    return {"model_size": model / _GB, "kv_cache": cache / _GB, "total_estimate": total / _GB}


def benchmark_inference(
    model: LoadedModel, prompts: Iterable[str], max_tokens: int = 50, **kwargs: Any
) -> BenchmarkMetrics:
    """Generate after each prompt in turn and measure; `llamalab bench` measures more, and several times.

    Args:
        model: from `load_model`.
        prompts: continued as they stand.
        max_tokens: most tokens after each.
        kwargs: as for `generate_text`.

    Raises:
        InputError: no prompts.
    """
    waits: list[float] = []
    n_tokens = 0
    begin = time.perf_counter()
    for prompt in [prompts] if isinstance(prompts, str) else prompts:
        start = time.perf_counter()
        found = events(model, prompt, {"max_tokens": max_tokens, **kwargs})
        first = next(found)
        waits.append(time.perf_counter() - start)
        n_tokens += last([first, *found]).usage.output
    total = time.perf_counter() - begin
    if not waits:
        raise InputError("There are no prompts to measure with.")
    return BenchmarkMetrics(
        total_tokens=n_tokens,
        total_time=total,
        tokens_per_second=n_tokens / total,
        time_to_first_token=sum(waits) / len(waits),
        prompts_processed=len(waits),
        peak_memory_gb=_peak_memory_gb(),
    )


def count_tokens(model: LoadedModel, text: str) -> int:
    """Tokens of `text` alone: no BOS is counted."""
    return len(model.engine.tokenize(text))


def is_gguf_file(path: ModelPath) -> bool:
    """Whether there is a file whose name ends in .gguf; what is in it is not looked at."""
    file = Path(path)
    return file.is_file() and file.suffix.lower() == ".gguf"


def get_quantization_from_filename(filename: ModelPath) -> str | None:
    """The quantisation that a file's name says, in upper case, e.g. "Q4_K_M" or "IQ2_XXS"; None if it says none."""
    from llamalab.checkpoints.names import quantisation_of

    return quantisation_of(Path(filename).name)


def llamacpp_available() -> bool:
    """Whether llama.cpp can be used here."""
    try:
        import llamalab.engines.native
    except EngineError:
        return False
    return bool(llamalab.engines.native.api)


def _estimated(path: Path, n_ctx: int, n_batch: int) -> tuple[float, float, float]:
    """Bytes of the model's files, of the KV cache, and of everything."""
    from llamalab.engines.context import padded
    from llamalab.engines.weights import weight_bytes
    from llamalab.lab.memory import ModelMemory

    with ModelMemory(path) as memory:
        # The estimate refuses a context that the model was not trained for; the course's code may load one.
        known = min(n_ctx, memory.header.context_length or n_ctx)
        found = memory.estimate(n_ctx=known, n_batch=n_batch)
        asked, within = (memory.header.cache_bytes(padded(n), "f16", "f16") for n in (n_ctx, known))
    part = next(part for part in found.parts if part.name == "KV cache")
    cache = part.ram if part.formula is None else part.formula  # llama.cpp reports it rounded
    return weight_bytes(path), cache + asked - within, found.total + asked - within


def _peak_memory_gb() -> float | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _GB
