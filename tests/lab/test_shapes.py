"""Shapes: published sizes, names, and what no Llama has."""

from __future__ import annotations

import dataclasses

import pytest

from llamalab.errors import ConfigError
from llamalab.lab.shapes import SHAPES, changed_shape, shape_named

PUBLISHED = {
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "llama-2-7b": 6_738_415_616,
    "llama-3.1-70b": 70_553_706_496,
}
"""Parameters as the models' cards on the Hugging Face hub count them."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_have_as_many_parameters_as_published(name: str) -> None:
    assert shape_named(name).n_params == PUBLISHED[name]


def test_all_published_shapes_are_checked_here() -> None:
    assert set(SHAPES) == set(PUBLISHED)


def test_llama_3_scales_its_rope_and_llama_2_does_not() -> None:
    factors = {name: shape.rope_factor for name, shape in SHAPES.items()}
    assert factors == {
        "llama-3.2-1b": 32.0,
        "llama-3.2-3b": 32.0,
        "llama-3.1-8b": 8.0,
        "llama-2-7b": None,
        "llama-3.1-70b": 8.0,
    }


def test_name_in_upper_case_is_found_and_a_wrong_one_gets_the_nearest() -> None:
    assert shape_named("Llama-3.1-8B") is SHAPES["llama-3.1-8b"]
    with pytest.raises(ConfigError, match=r"no shape 'llama-3-70b'.*Did you mean llama-3.1-70b\?"):
        shape_named("llama-3-70b")


def test_options_change_single_sizes_of_a_published_shape() -> None:
    base = shape_named("llama-3.1-8b")
    assert changed_shape("llama-3.1-8b") == base
    changed = changed_shape("llama-3.1-8b", n_layers=2, tied=True, ffn_dim=None)
    assert dataclasses.replace(changed, name=base.name, n_layers=32, tied=False) == base


def test_heads_follow_the_width() -> None:
    assert changed_shape("llama-3.1-8b", dim=1024).head_dim == 32
    assert changed_shape("llama-3.1-8b", dim=1024, head_dim=128).head_dim == 128
    with pytest.raises(ConfigError, match="give a head_dim"):
        changed_shape("llama-3.1-8b", dim=1000, n_heads=48, n_kv_heads=48)


def test_custom_shape_takes_what_is_given() -> None:
    shape = changed_shape("custom", n_layers=2, dim=64, n_heads=4, ffn_dim=96, vocab_size=100)
    assert (shape.n_kv_heads, shape.head_dim, shape.tied, shape.rope_factor) == (4, 16, False, None)
    embedding, layer = 100 * 64, 4 * 64 * 64 + 3 * 64 * 96 + 2 * 64
    assert shape.n_params == 2 * embedding + 2 * layer + 64


def test_custom_shape_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match="not given: heads, vocab"):
        changed_shape("custom", n_layers=2, dim=64, ffn_dim=96)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layers": 0}, "n_layers is 0"),
        ({"n_layers": 513}, "at most 512"),
        ({"n_kv_heads": 5}, "no multiple of n_kv_heads"),
        ({"head_dim": 33}, "even"),
        ({"vocab_size": 10}, "vocab_size is 10"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rope_factor": 0.5}, "rope_factor"),
    ],
)
def test_sizes_that_no_llama_has_are_refused_by_name(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        changed_shape("llama-3.2-1b", **changes)
