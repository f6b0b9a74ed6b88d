"""The module of the course lab "llama.cpp", as `llamalab.lab.course` implements it."""

from llamalab.lab.course import (
    BenchmarkMetrics,
    LoadedModel,
    benchmark_inference,
    count_tokens,
    estimate_memory_usage,
    generate_chat,
    generate_text,
    get_model_info,
    get_quantization_from_filename,
    is_gguf_file,
    llamacpp_available,
    load_model,
)

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
