"""Options of the llama.cpp engine: wrong ones are named, with what is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamalab.engines.options import parse_options
from llamalab.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("n_cxt", "n_ctx"),
        ("nthreads", "n_threads"),
        ("flash_attention", "flash_attn"),
        ("N_GPU_LAYERS", "n_gpu_layers"),
    ],
)
def test_an_unknown_option_is_answered_with_the_nearest(given: str, nearest: str):
    with pytest.raises(ConfigError, match=rf"no option '{given}'.*Did you mean '{nearest}'"):
        parse_options({given: 1})


def test_an_option_like_no_other_is_answered_with_the_list():
    with pytest.raises(ConfigError, match="There are: adapters, cache_prompts"):
        parse_options({"xyzzy": 1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_ctx": 0}, "n_ctx must be 1 or more, not 0"),
        ({"n_ctx": "4k"}, "n_ctx must be a whole number"),
        ({"n_ctx": True}, "n_ctx must be a whole number"),
        ({"n_seq": 257}, "at most 256"),
        ({"n_seq": 64, "n_batch": 32}, "n_batch=32 is too small for n_seq=64"),
        ({"n_seq": 8, "n_outputs_max": 4}, "n_outputs_max=4 is less than n_seq=8"),
        ({"n_gpu_layers": -2}, "-1 or more"),
        ({"type_k": "q3"}, "one of f32, f16"),
        ({"type_v": "q8_0", "flash_attn": False}, "needs flash attention"),
        ({"flash_attn": "yes"}, "True, False or 'auto'"),
        ({"load_mode": "map"}, "one of auto, mmap, mlock, read"),
        ({"vocab_only": 1}, "True or False"),
        ({"tensor_split": "half"}, "list of numbers"),
        ({"tensor_split": [1.0, -1.0]}, "at least 0"),
        ({"adapters": [3]}, r"a path or \(path, scale\)"),
    ],
)
def test_a_wrong_value_is_named_with_what_it_may_be(options: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        parse_options(options)


def test_one_adapter_may_be_given_alone_or_with_a_scale():
    """They stay where they are when the process goes to another folder."""
    here = Path.cwd()
    assert parse_options({"adapters": "a.gguf"}).adapters == ((here / "a.gguf", 1.0),)
    assert parse_options({"adapters": ["a.gguf", ("b.gguf", 0.5)]}).adapters == (
        (here / "a.gguf", 1.0),
        (here / "b.gguf", 0.5),
    )


def test_a_physical_batch_is_never_larger_than_the_logical_one():
    assert parse_options({"n_batch": 64}).n_ubatch == 64
