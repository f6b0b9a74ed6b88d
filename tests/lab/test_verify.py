"""`verify` on engines whose differences are known, because they were put there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llamalab.checkpoints.checkpoint import Tensor, open_checkpoint
from llamalab.checkpoints.gguf import write_gguf_checkpoint
from llamalab.engine import Event, GenerateRequest, Generation, LogitsEngine, ModelInfo
from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.errors import ConfigError, InputError
from llamalab.lab.differences import DifferenceSum, divergences, log_softmax
from llamalab.lab.prompts import BUILT_IN, parse_prompts
from llamalab.lab.rounding import Rounding, explain, rounding_of
from llamalab.lab.verify import Verdict, verify
from llamalab.scored import Scored, ScoreRequest
from tests import tiny

V, LAYERS, WIDTH = 260, 3, 8
N_TINY = 349  # tokens of the tiny model's vocabulary
TEXTS = {"one": "abcdef", "two": "a longer text, of some forty characters.."}
Change = Callable[[np.ndarray, int], None]
"""Changes an array whose first row stands at the position that is given with it."""


def nothing(_values: np.ndarray, _first: int) -> None:
    """Leaves everything as it is."""


class SumEngine:
    """Bytes as tokens; logits that depend on the sum of the ids so far, with changes where a test wants them.

    Attributes:
        change: of the logits of full passes and of cached decoding.
        change_stepped: of cached decoding alone.
        change_layer: of the output of layer number n, by n.
        vocabulary: tokens of the vocabulary.
    """

    def __init__(
        self,
        *,
        change: Change = nothing,
        change_stepped: Change = nothing,
        change_layer: dict[int, Change] | None = None,
        vocabulary: int = V,
        shows_layers: bool = True,
    ) -> None:
        self.change, self.change_stepped = change, change_stepped
        self.change_layer = change_layer or {}
        self.vocabulary = vocabulary
        self.shows_layers = shows_layers
        self.fetched: list[int] = []
        self.closed = False
        self.table = np.random.default_rng(0).normal(size=(997, 300)).astype(np.float32) * 3

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(
            name="sum",
            provider="sum",
            path=None,
            architecture="none",
            n_params=0,
            size_bytes=0,
            context_length=512,
            n_ctx=512,
            n_vocab=self.vocabulary,
            bos_id=256,
            eos_id=257,
            stop_ids=frozenset({257}),
            add_bos=True,
            special_tokens={},
        )

    def tokenize(self, text: str, **_: bool) -> list[int]:
        return list(text.encode())

    def detokenize(self, ids: Sequence[int], **_: bool) -> str:
        return bytes(id for id in ids if id < 256).decode("utf-8", "replace")

    def token_bytes(self, id: int, **_: bool) -> bytes:
        return bytes([id]) if id < 256 else b""

    def logits(self, ids: Sequence[int], *, rows: slice | None = None) -> np.ndarray:
        begin, end, _ = (rows or slice(None)).indices(len(ids))
        found = self.table[np.cumsum(ids)[begin:end] % 997, : self.vocabulary].copy()
        self.fetched.append(found.size)
        self.change(found, begin)
        return found

    def stepped_logits(self, ids: Sequence[int], first: int) -> np.ndarray:
        found = self.logits(ids, rows=slice(first, len(ids)))
        self.change_stepped(found, first)
        return found

    def hidden(self, ids: Sequence[int]) -> list[np.ndarray] | None:
        if not self.shows_layers:
            return None
        layers = [np.outer(np.cumsum(ids) % 7 + n, np.ones(WIDTH)).astype(np.float32) for n in range(LAYERS)]
        for number, change in self.change_layer.items():
            change(layers[number], 0)
        return layers

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[Event]:
        for number, request in enumerate(requests):
            ids = list(request.prompt_ids)
            assert request.params.max_tokens is not None
            for _ in range(request.params.max_tokens):
                ids.append(int(self.logits(ids)[-1].argmax()))
            made = tuple(ids[len(request.prompt_ids) :])
            yield Generation(number, "", made, "length")

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scored]:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True


def at(position: int, token: int, by: float) -> Change:
    """Add `by` to one logit (or one value of the residual stream) at one position."""

    def change(values: np.ndarray, first: int) -> None:
        if first <= position < first + len(values):
            values[position - first, token] += by

    return change


def run(a: LogitsEngine, b: LogitsEngine, **options: Any) -> Verdict:
    return verify(a, b, TEXTS, **({"tokens": 4} | options))


def test_the_same_engine_agrees_with_itself() -> None:
    verdict = run(SumEngine(), SumEngine(), layers=True)
    (found,) = verdict.comparisons
    assert verdict.agree
    assert (found.logits.largest, found.logits.outside, found.kl_largest, found.top1) == (0, 0, 0, 1)
    assert found.rows == sum(len(text) + 1 for text in TEXTS.values())  # BOS in front
    assert found.greedy is not None
    assert (found.greedy.equal, found.greedy.departures) == (8, ())
    assert found.first_layer is None


def test_a_difference_is_found_where_it_is() -> None:
    """Prompt, position and token of one changed logit among thousands, and how large the change is."""
    verdict = run(SumEngine(change=at(25, 77, 0.5)), SumEngine())
    (found,) = verdict.comparisons
    assert not verdict.agree
    assert found.logits.where is not None
    assert dataclasses.astuple(found.logits.where) == (1, 25, 77)
    assert found.logits.largest == pytest.approx(0.5, rel=1e-5)
    assert found.logits.mean == pytest.approx(0.5 / found.logits.values, rel=1e-5)
    assert found.logits.outside == 1
    assert [p.largest > 0 for p in found.positions] == [False, True]  # 0-15 and 16-41
    assert [i for i, value in enumerate(found.by_position) if value] == [25]


@pytest.mark.parametrize(("by", "agree"), [(0.009, True), (0.011 + 1e-3 * 20, False)])
def test_the_tolerance_decides(by: float, agree: bool) -> None:
    assert run(SumEngine(change=at(3, 5, by)), SumEngine(), tokens=0).agree is agree


def test_the_tolerance_is_of_the_second_engine() -> None:
    """|a - b| <= atol + rtol * |b|, as numpy.allclose has it."""
    total = DifferenceSum(rtol=0.1, atol=0.0)
    total.add(np.array([[10.9, 0.0, 1.0]], np.float32), np.array([[10.0, 0.0, 1.2]], np.float32), prompt=0, first=0)
    assert total.result().outside == 1  # 1.0 against 1.2; 10.9 against 10.0 is within a tenth


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_not_finite_is_a_disagreement(value: float, side: int) -> None:
    """In either engine, and its place is named."""

    def spoil(values: np.ndarray, first: int) -> None:
        if first <= 4 < first + len(values):
            values[4 - first, 9] = value

    engines = [SumEngine(), SumEngine()]
    engines[side].change = spoil
    verdict = run(engines[0], engines[1], tokens=0, rtol=1e9, atol=1e9)
    (found,) = verdict.comparisons
    assert not verdict.agree
    assert found.logits.where is not None
    assert (found.logits.largest, found.logits.where.position, found.logits.where.token) == (math.inf, 4, 9)
    assert found.top1 < 1


def test_nan_on_both_sides_is_no_agreement() -> None:
    def spoil(values: np.ndarray, _first: int) -> None:
        values[:, 3] = np.nan

    assert not run(SumEngine(change=spoil), SumEngine(change=spoil), tokens=0).agree


def test_a_wrong_cache_is_found_though_full_passes_agree() -> None:
    verdict = run(SumEngine(change_stepped=at(30, 2, 1.0)), SumEngine())
    (found,) = verdict.comparisons
    assert not verdict.agree
    assert found.logits.close
    assert [cached.close for cached in found.cached] == [False, True]
    assert found.cached[0].where is not None
    assert dataclasses.astuple(found.cached[0].where) == (1, 30, 2)


def test_the_first_layer_that_departs_is_named() -> None:
    changes = {1: at(2, 3, 0.25), 2: at(0, 0, 5.0)}
    (found,) = run(SumEngine(change_layer=changes), SumEngine(), layers=True).comparisons
    assert found.layers is not None
    assert (found.first_layer, len(found.layers)) == (1, LAYERS)
    assert found.layers[1].where is not None
    assert dataclasses.astuple(found.layers[1].where) == (1, 2, 3)  # of the two prompts, the one with the smaller row
    assert found.layers[1].largest == pytest.approx(0.25)
    assert found.layers[2].where is not None
    assert (found.layers[2].where.position, found.layers[2].where.token) == (0, 0)


def test_layers_that_an_engine_does_not_show_are_left_out_with_a_note() -> None:
    verdict = run(SumEngine(), SumEngine(shows_layers=False), layers=True)
    assert verdict.comparisons[0].layers is None
    assert any("does not show" in note for note in verdict.notes)


def test_greedy_continuations_part_where_the_best_token_changes() -> None:
    """After the prompt and two tokens another token wins: there the departure is, and it is no tie."""
    length = len(TEXTS["one"]) + 1
    a = SumEngine(change=at(length + 1, 200, 100.0))
    verdict = verify(a, SumEngine(), {"one": TEXTS["one"]}, tokens=6)
    (found,) = verdict.comparisons
    assert found.logits.close
    assert found.greedy is not None
    (departure,) = found.greedy.departures
    assert (departure.prompt, departure.step, departure.a, departure.tie) == (0, 2, 200, False)
    assert found.greedy.equal == 2
    assert not verdict.agree


def test_a_tie_is_no_disagreement() -> None:
    """Two tokens as probable as each other within the tolerance: either may come first."""

    def level(token: int) -> Change:
        def change(values: np.ndarray, _first: int) -> None:
            values[:, 7] = values[:, 8] = 50
            values[:, token] += 0.004

        return change

    verdict = run(SumEngine(change=level(7)), SumEngine(change=level(8)))
    (found,) = verdict.comparisons
    assert found.greedy is not None
    assert [d.tie for d in found.greedy.departures] == [True, True]
    assert verdict.agree


def bars_of(row: int, move: float) -> Callable[[Sequence[int]], np.ndarray]:
    """Rounding that moves one row."""
    return lambda ids: np.where(np.arange(len(ids)) == row, move, 1e-6)


@pytest.mark.parametrize(("move", "agree"), [(0.05, True), (0.04, False)])
def test_a_row_that_rounding_moves_as_far_is_no_disagreement(
    monkeypatch: pytest.MonkeyPatch, move: float, agree: bool
) -> None:
    """Each of the two engines rounds, so 0.1 is explained by 0.05; elsewhere, nothing is; and it can be refused."""
    monkeypatch.setattr("llamalab.lab.verify.rounding_of", lambda _: bars_of(25, move))
    verdict = run(SumEngine(change=at(25, 77, 0.1)), SumEngine(), tokens=0, rtol=0, atol=1e-4)
    assert verdict.agree is agree
    assert verdict.comparisons[0].logits.outside == 1  # it is explained, not hidden
    assert verdict.comparisons[0].rounding == Rounding(1, int(agree), move)
    assert any(note.startswith("1 of 49 rows lie outside the tolerance") for note in verdict.notes)
    assert not run(SumEngine(change=at(24, 77, 0.1)), SumEngine(), tokens=0, rtol=0, atol=1e-4).agree
    strict = run(SumEngine(change=at(25, 77, 0.1)), SumEngine(), tokens=0, rtol=0, atol=1e-4, strict=True)
    assert not strict.agree
    assert strict.comparisons[0].rounding is None


@pytest.mark.parametrize("rows", [6, 42])
def test_rounding_is_not_asked_about_many_rows_nor_about_what_is_not_finite(rows: int) -> None:
    def bars(_ids: Sequence[int]) -> np.ndarray:
        raise AssertionError("asked")

    shares = [0.01] * 100
    assert explain(bars, {(0, i): 1e-3 for i in range(rows)}, [range(100)], shares) is None
    assert explain(bars, {(0, 3): math.inf}, [range(100)], shares) is None
    assert explain(bars, {}, [range(100)], shares) is None


def test_rounding_is_not_asked_where_most_rows_differ_a_little() -> None:
    """Rounding strikes single rows; slightly other weights move all of them."""

    def bars(ids: Sequence[int]) -> np.ndarray:
        return np.ones(len(ids))

    assert explain(bars, {(0, 3): 1e-3}, [range(100)], [0.05] * 76 + [0.5] * 24) == Rounding(1, 1, 1.0)
    assert explain(bars, {(0, 3): 1e-3}, [range(100)], [0.05] * 74 + [0.5] * 26) is None


def test_rounding_is_what_another_way_to_the_same_angles_does(tiny_gguf: Path, tmp_path: Path) -> None:
    """Of a model with sharp attention: as far as its logits move in float64 when theta's last places change."""
    sharpness, ids = 400.0, np.random.default_rng(0).integers(0, 300, 64).tolist()
    bars = rounding_of([at_path(sharpened(tiny_gguf, tmp_path / "sharp.gguf", sharpness))])
    assert bars is not None
    step = 8 * 2.0**-23  # eight pairs
    plain, up, down = (
        tiny.reference_logits(ids, n_vocab=N_TINY, sharpness=sharpness, theta=10000.0 * (1 + change))
        for change in (0, step, -step)
    )
    expected = np.maximum(np.abs(up - plain).max(axis=1), np.abs(down - plain).max(axis=1))
    found = bars(ids)
    worst = expected.argsort()[-3:]
    assert (np.abs(np.log(found[worst] / expected[worst])) < np.log(3)).all()  # float32 rounds the angles once more
    assert expected[worst].min() > 10 * np.median(expected)  # single rows are struck
    assert found[0] < 1e-5  # the first token sees itself alone, wherever it stands


def test_sharp_attention_is_no_disagreement_and_a_wrong_weight_is(tiny_gguf: Path, tmp_path: Path) -> None:
    """JAX and llama.cpp, where float32 cannot tell at some rows."""
    sharp = sharpened(tiny_gguf, tmp_path / "sharp.gguf", 400.0)
    wrong = sharpened(tiny_gguf, tmp_path / "wrong.gguf", 400.0, {"layers.1.feed_forward.w2.weight": 1.01})
    text = {"one": "hello world, true or false: the name and the age of her code, access the world and the hello"}
    settings: dict[str, Any] = {"tokens": 0, "rtol": 0, "atol": 1e-3}
    assert verify(f"jax:{sharp}", f"llama_cpp:{sharp}", text, **settings).agree
    assert not verify(f"jax:{sharp}", f"llama_cpp:{wrong}", text, **settings).agree


def at_path(path: Path) -> LogitsEngine:
    """An engine of which only the model file matters."""
    engine = SumEngine()
    return SimpleNamespace(info=dataclasses.replace(engine.info, path=str(path)))  # type: ignore[return-value]


def sharpened(source: Path, path: Path, sharpness: float, scales: dict[str, float] | None = None) -> Path:
    """The model with query projections so many times as large, and other matrices scaled."""
    model = open_checkpoint(source)

    def scaled(tensor: Tensor) -> Tensor:
        by = sharpness if tensor.name.endswith("wq.weight") else (scales or {}).get(tensor.name, 1.0)
        return dataclasses.replace(tensor, read=lambda: (tensor.read() * np.float32(by)).astype(np.float32))

    tensors = {name: scaled(tensor) for name, tensor in model.tensors.items()}
    write_gguf_checkpoint(dataclasses.replace(model, tensors=tensors), path, "F32")
    return path


def test_divergence_equals_the_closed_form() -> None:
    """KL of (p, 1 - p) from (q, 1 - q) is p ln(p/q) + (1 - p) ln((1 - p)/(1 - q)); logits may be shifted."""
    p, q = 0.8, 0.3
    a, b = (np.array([[math.log(x) + 5, math.log(1 - x) + 5]], np.float32) for x in (p, q))
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert divergences(log_softmax(a), log_softmax(b))[0] == pytest.approx(expected, rel=1e-6)


def test_divergence_of_small_differences_keeps_its_digits() -> None:
    """To second order KL is half the variance of the difference under p; float32 sums would drown it."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, 5000)).astype(np.float32)
    delta = (rng.normal(size=(1, 5000)) * 1e-3).astype(np.float32)
    p = np.exp(log_softmax(logits))
    variance = (p * delta.astype(np.float64) ** 2).sum() - (p * delta).sum() ** 2
    assert divergences(log_softmax(logits), log_softmax(logits + delta))[0] == pytest.approx(variance / 2, rel=0.02)


def test_perplexity_equals_the_definition() -> None:
    """Of a uniform distribution it is the size of the vocabulary."""

    def flat(values: np.ndarray, _first: int) -> None:
        values[:] = 1.5

    (found,) = run(SumEngine(change=flat), SumEngine(), tokens=0).comparisons
    assert found.perplexity_a == pytest.approx(V)


def test_padding_of_the_vocabulary_is_left_out_with_a_note() -> None:
    verdict = run(SumEngine(vocabulary=300), SumEngine(), tokens=0)
    assert verdict.agree
    assert any("the first 260 are compared" in note for note in verdict.notes)


def test_other_tokens_of_the_vocabulary_are_named() -> None:
    other = SumEngine()
    other.token_bytes = lambda token, **_: b"!" if token == 42 else SumEngine.token_bytes(other, token)
    with pytest.raises(InputError, match=r"token 42 is b'\*' for sum and b'!' for sum"):
        run(SumEngine(), other)


def test_another_way_to_cut_a_text_is_named() -> None:
    other = SumEngine()
    other.tokenize = lambda text, **_: [*text[:3].encode(), 90, 91]
    with pytest.raises(InputError, match=r"in the prompt one, at token 3, sum has 100 \(b'd'\) and sum has 90"):
        run(SumEngine(), other)


def test_prompts_are_cut_to_the_context_with_a_note() -> None:
    verdict = verify(SumEngine(), SumEngine(), {"line 1": "x" * 600}, tokens=10)
    assert verdict.prompts == (("line 1", 502),)
    assert any("has 601 tokens; the first 502" in note for note in verdict.notes)


def test_built_in_prompts_reach_far_and_touch_the_vocabulary() -> None:
    verdict = verify(SumEngine(), SumEngine(), tokens=0)
    lengths = dict(verdict.prompts)
    assert set(BUILT_IN) < set(lengths)
    assert lengths["long"] == 400
    assert verdict.comparisons[0].positions[-1].last == 399
    assert dict(verify(SumEngine(), SumEngine(), tokens=0, long=True).prompts)["long"] == 512  # all of the context


def test_long_prompts_are_fetched_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more logits at once than the bound, and the numbers are those of one block."""
    whole = run(SumEngine(change=at(25, 7, 0.5)), SumEngine(), tokens=0).comparisons
    monkeypatch.setattr("llamalab.lab.comparison._FETCHED", 10 * V)
    monkeypatch.setattr("llamalab.lab.comparison._WIDENED", 3 * V)
    monkeypatch.setattr("llamalab.lab.comparison._STEPS", 4)
    a = SumEngine(change=at(25, 7, 0.5))
    (parts,) = run(a, SumEngine(), tokens=0).comparisons
    assert max(a.fetched) == 10 * V
    same = ("logits", "rows", "top1", "by_position", "positions")
    assert [getattr(parts, name) for name in same] == [getattr(whole[0], name) for name in same]


def test_open_engines_stay_open() -> None:
    engines = SumEngine(), SumEngine()
    run(*engines)
    assert not any(engine.closed for engine in engines)


def test_prompts_of_a_file() -> None:
    """Lines of text, lines of JSON; empty lines are left out, numbers are those of the file."""
    content = 'plain\n\n{"prompt": "a"}\n{"text": "b"}\n{ brace\n'
    assert parse_prompts(content, "f") == {"line 1": "plain", "line 3": "a", "line 4": "b", "line 5": "{ brace"}
    with pytest.raises(InputError, match=r'f:1: a JSON line needs a text under "prompt"'):
        parse_prompts('{"question": "a"}', "f")
    with pytest.raises(InputError, match="f holds no prompt"):
        parse_prompts("\n \n", "f")


@pytest.mark.parametrize("tolerance", [{"rtol": -1}, {"atol": math.nan}])
def test_a_tolerance_below_zero_is_refused(tolerance: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="Tolerances must be 0 or more"):
        run(SumEngine(), SumEngine(), **tolerance)


@pytest.mark.parametrize("options", [{}, {"n_batch": 16, "n_ubatch": 8}, {"n_outputs_max": 5, "n_seq": 1}])
def test_llama_cpp_shows_the_logits_of_the_definition(tiny_gguf: Path, options: dict[str, int]) -> None:
    """Whole passes, parts of them, and decoding through the cache, against a float64 forward pass of our own."""
    exact = {"type_k": "f32", "type_v": "f32", "flash_attn": False}
    ids = np.random.default_rng(0).integers(0, 300, 70).tolist()
    with LlamaCppEngine(tiny_gguf, n_threads=1, **({"n_seq": 1} | options), **exact) as engine:
        expected = tiny.reference_logits(ids, n_vocab=engine.info.n_vocab)
        np.testing.assert_allclose(engine.logits(ids), expected, atol=1e-4)
        np.testing.assert_allclose(engine.logits(ids, rows=slice(20, -3)), expected[20:-3], atol=1e-4)
        np.testing.assert_allclose(engine.stepped_logits(ids, 50), expected[50:], atol=1e-4)
        layers = engine.hidden(ids)
    assert layers is not None
    weights = dict(tiny.llama_weights(N_TINY, seed=0))
    x = layers[-1] / np.sqrt((layers[-1] ** 2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(x @ weights["output.weight"].T, expected, atol=1e-3)
    assert [layer.shape for layer in layers] == [(70, tiny.WIDTH)] * tiny.LAYERS


def test_other_weights_are_found_from_the_first_layer_on(tiny_gguf: Path, tmp_path: Path) -> None:
    """Two files that differ in their weights, through one runtime."""
    other = tiny.write_bpe(tmp_path / "other.gguf", seed=1)
    verdict = verify(f"llama_cpp:{tiny_gguf}", f"llama_cpp:{other}", {"one": "hello world"}, tokens=3, layers=True)
    assert not verdict.agree
    assert verdict.comparisons[0].first_layer == 0
    same = verify(f"llama_cpp:{tiny_gguf}", f"llama_cpp:{tiny_gguf}", {"one": "hello world"}, tokens=3, layers=True)
    assert same.agree
    assert same.comparisons[0].logits.largest == 0
