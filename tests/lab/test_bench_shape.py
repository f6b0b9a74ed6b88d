"""Benchmarks of shapes: which layers are measured, and the line through them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamalab.errors import ConfigError, OutOfMemory
from llamalab.lab import bench_shape
from llamalab.lab.bench import Result, plan
from llamalab.lab.bench_shape import Fit, fit, run_shape
from llamalab.lab.shapes import Shape
from tests.lab.test_bench import result

GIB = 2**30
TINY = Shape("tiny", 6, 64, 4, 2, 16, 128, 300, 512, 10_000.0, True)
LAYER = 4 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64)
OUTSIDE = 4 * (300 * 64 + 64)


@pytest.fixture
def in_f32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_shape, "planned_types", lambda shape, _: dict.fromkeys(shape.tensors, "F32"))


@pytest.mark.usefixtures("in_f32")
@pytest.mark.parametrize(
    ("memory", "disk", "most", "layers"),
    [
        (10 * GIB, 10 * GIB, None, (6,)),
        (None, 10 * GIB, None, (6,)),
        (int((OUTSIDE + 4.5 * LAYER) / bench_shape._MEMORY_SHARE), 10 * GIB, None, (2, 4)),
        (10 * GIB, GIB + OUTSIDE + 3 * LAYER, None, (1, 3)),
        (10 * GIB, 10 * GIB, 4, (2, 4)),
        (10 * GIB, 10 * GIB, 9, (6,)),
    ],
)
def test_as_many_layers_as_fit(memory: int | None, disk: int, most: int | None, layers: tuple[int, ...]) -> None:
    assert fit(TINY, "F32", memory=memory, disk=disk, most=most) == Fit(layers, OUTSIDE + 6 * LAYER)


@pytest.mark.usefixtures("in_f32")
def test_what_does_not_fit_is_refused_with_numbers() -> None:
    with pytest.raises(OutOfMemory, match="Two layers of tiny in F32 take"):
        fit(TINY, "F32", memory=OUTSIDE + LAYER, disk=10 * GIB)
    with pytest.raises(ConfigError, match="measure 2 or more"):
        fit(TINY, "F32", memory=None, disk=10 * GIB, most=1)


@given(outside=st.floats(1e-6, 1), layer=st.floats(1e-6, 1), few=st.integers(1, 40), more=st.integers(1, 40))
def test_times_that_lie_on_a_line_are_continued_exactly(outside: float, layer: float, few: int, more: int) -> None:
    shape = dataclasses.replace(TINY, n_layers=80)

    def measured(layers: int) -> Result:
        return result(rates=(1 / (outside + layers * layer),) * 3)

    found = bench_shape._extrapolated("x", shape, Fit((few, few + more), 1), [measured(few), measured(few + more)])
    assert found.rates == pytest.approx([1 / (outside + 80 * layer)] * 3, rel=1e-6)
    assert found.extrapolated == f"{few} and {few + more} of 80 layers"


def test_a_shape_is_written_measured_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def setups(specs: list[str]) -> list[object]:
        return plan(specs, prompt=[8], generate=[4], repetitions=1)

    results = list(run_shape(TINY, "Q8_0", setups, most=4))
    assert [(found.test, found.extrapolated) for found in results] == [
        ("pp8", "2 and 4 of 6 layers"),
        ("tg4", "2 and 4 of 6 layers"),
    ]
    assert results[0].n_params == TINY.n_params
    assert results[0].model == "tiny Q8_0 (random weights)"
    assert not list((tmp_path / "llamalab" / "synthetic").iterdir())
    (whole, _) = run_shape(TINY, "Q8_0", setups, keep=True)
    assert whole.extrapolated == ""
    assert [path.name for path in (tmp_path / "llamalab" / "synthetic").iterdir()] == ["tiny-6-layers-Q8_0.gguf"]
