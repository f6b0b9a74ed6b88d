"""Windowed perplexity, against closed forms: models whose answer to any text is known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llamalab.engines import load
from llamalab.errors import ConfigError, InputError
from llamalab.scoring.perplexity import Perplexity, perplexity, windows
from llamalab.scoring.policy import make_policy
from llamalab.scoring.session import Session
from llamalab.scoring.store import Store
from tests import tiny

TEXT = "hello world, the code and the access: " * 9 + "é name"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def measured(model: Path, text: str = TEXT, **settings: int | Store | None) -> Perplexity:
    return perplexity(make_policy("tiny", {"model": str(model)}), text, **settings)  # type: ignore[arg-type]


def tokens_of(model: Path, text: str = TEXT) -> list[int]:
    engine = load(model, vocab_only=True)
    try:
        return engine.tokenize(text)
    finally:
        engine.close()


@pytest.fixture
def unigram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray]:
    """A model without attention whose hidden state is all ones: each token has one probability, whatever is before it.

    Logits are then the sums of the rows of its output matrix, and log probabilities follow by hand.
    """
    logits: list[np.ndarray] = []
    weights = tiny.llama_weights

    def flat(n_vocab: int, *, seed: int, layers: int) -> Iterator[tuple[str, np.ndarray]]:
        for name, value in weights(n_vocab, seed=seed, layers=layers):
            if name == "token_embd.weight":
                yield name, np.ones_like(value)
            elif name.endswith(("attn_output.weight", "ffn_down.weight")):
                yield name, np.zeros_like(value)
            else:
                if name == "output.weight":
                    logits.append(value.astype(np.float64).sum(1) / math.sqrt(1 + 1e-5))
                yield name, value

    monkeypatch.setattr(tiny, "llama_weights", flat)
    path = tiny.write_bpe(tmp_path / "unigram.gguf")
    (z_V,) = logits
    return path, z_V - z_V.max() - math.log(np.exp(z_V - z_V.max()).sum())


@pytest.mark.parametrize(("context", "stride"), [(32, 16), (32, 31), (64, 1), (512, 256), (2, 1)])
def test_it_is_the_closed_form_of_a_model_without_memory(
    unigram: tuple[Path, np.ndarray], context: int, stride: int
) -> None:
    """Each token counts once, whatever the windows; the mean and its standard error are those of the tokens."""
    path, log_p_V = unigram
    ids = tokens_of(path)
    expected = -log_p_V[ids]
    found = measured(path, context=context, stride=stride)
    error = float(expected.std(ddof=1) / math.sqrt(len(ids)))
    assert found.n_tokens == len(ids)
    assert found.nats_per_token == pytest.approx(float(expected.mean()), abs=1e-5)
    assert found.standard_error_nats == pytest.approx(error, rel=1e-5)
    assert found.value == pytest.approx(math.exp(expected.mean()), rel=1e-5)
    assert found.standard_error == pytest.approx(math.exp(expected.mean()) * error, rel=1e-4)
    assert found.bits_per_byte == pytest.approx(float(expected.sum()) / math.log(2) / len(TEXT.encode()), rel=1e-5)


def test_it_is_what_the_definition_says_of_a_model_with_memory(tiny_gguf: Path) -> None:
    """In one window: the mean of -log softmax at each token, computed in float64 from the definition."""
    engine = load(tiny_gguf, vocab_only=True)
    bos, n_vocab = engine.info.bos_id, engine.info.n_vocab
    engine.close()
    assert bos is not None
    ids = [bos, *tokens_of(tiny_gguf)]
    logits_TV = tiny.reference_logits(ids, n_vocab=n_vocab)[:-1]
    peak_T = logits_TV.max(1)
    log_sums_T = peak_T + np.log(np.exp(logits_TV - peak_T[:, None]).sum(1))
    expected = float((log_sums_T - logits_TV[np.arange(len(ids) - 1), ids[1:]]).mean())
    found = measured(tiny_gguf)
    assert found.n_windows == 1
    assert found.nats_per_token == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("length", "bos", "context", "stride"),
    list(itertools.product((1, 2, 7, 16, 100), ((), (99,)), (2, 5, 16), (1, 2, 4))),
)
def test_each_token_is_scored_once_after_as_many_as_fit(
    length: int, bos: tuple[int, ...], context: int, stride: int
) -> None:
    if stride >= context:
        with pytest.raises(ConfigError, match="stride"):
            list(windows(range(length), bos, context, stride))
        return
    ids = list(range(length))
    found = list(windows(ids, bos, context, stride))
    assert [id for window in found for id in window.response_ids] == ids[0 if bos else 1 :]
    for number, window in enumerate(found):
        whole = [*window.prefix_ids, *window.response_ids]
        assert 0 < len(window.prefix_ids) < len(whole) <= context
        assert tuple(whole[: len(bos)]) == bos
        text = whole[len(bos) :]
        assert text == ids[text[0] : text[-1] + 1]
        assert number == 0 or len(window.response_ids) <= stride
        assert len(whole) == min(context, len(bos) + text[-1] + 1)


def test_a_second_time_reads_the_store(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path / "scores.sqlite") as store:
        first = measured(tiny_gguf, context=32, stride=16, store=store)

        def no_engine(self: Session, policy: object) -> None:
            raise AssertionError("the model was loaded")

        monkeypatch.setattr(Session, "engine", no_engine)
        second = measured(tiny_gguf, context=32, stride=16, store=store)
    assert (first.value, first.standard_error_nats) == (second.value, second.standard_error_nats)
    assert first.stored == 0
    assert second.stored == second.n_windows == first.n_windows > 2


def test_what_cannot_be_measured_is_refused(tiny_gguf: Path) -> None:
    with pytest.raises(InputError, match="no token"):
        measured(tiny_gguf, "")
    with pytest.raises(ConfigError, match="longer than the context of 512"):
        measured(tiny_gguf, context=513)
    with pytest.raises(ConfigError, match="stride"):
        measured(tiny_gguf, context=16, stride=16)
