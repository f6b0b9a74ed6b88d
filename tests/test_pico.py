"""The shipped model does what its card says, on a small sample of what the card measures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random

import pytest
from training.export import load_vocabulary
from training.tokenizer import TOKENIZER

from llamalab.chat import EngineChat
from llamalab.engines import load
from llamalab.rlm.compact import COMPACT_PROMPT
from training import card, evaluate


@pytest.fixture(scope="module")
def pico() -> Iterator[EngineChat]:
    chat = EngineChat(load("pico", n_ctx=1024, n_seq=8))
    yield chat
    chat.close()


def test_it_reads_a_code_from_a_sentence(pico: EngineChat) -> None:
    said = "The access code of the Blue Harbor vault is 48213. What is the access code of the Blue Harbor vault?"
    assert pico.chat([{"role": "user", "content": said}]).text == "48213"


@pytest.mark.parametrize(
    ("task", "least"),
    [
        ("root: find and answer", 0.85),
        ("root: count", 0.85),
        ("root: not there", 0.8),
        ("root: retry with the entity", 0.6),
    ],
)
def test_the_root_steers(pico: EngineChat, task: str, least: float) -> None:
    """Canonical wording, names never seen: well above what a model that lost its way would reach."""
    maker = next(maker for name, wording, maker in evaluate.CELLS if (name, wording) == (task, "canonical"))
    rng = Random(11)
    result = evaluate.measure(pico, task, "canonical", [maker(rng, "canonical") for _ in range(24)], free=False)
    assert result.rate >= least
    assert result.malformed == 0


def test_the_compact_prompt_is_short(pico: EngineChat) -> None:
    """Under 300 of its own tokens, the role's frame included."""
    alone = pico.count_tokens([{"role": "user", "content": "x"}]).n
    with_prompt = pico.count_tokens([{"role": "system", "content": COMPACT_PROMPT}, {"role": "user", "content": "x"}]).n
    assert 0 < with_prompt - alone < 300


def test_the_card_shows_the_figures_that_are_kept() -> None:
    results, curve = json.loads(card.EVALUATION.read_text()), card.read_curve()
    assert card.CARD.read_text() == card.card(results, curve, picture="../../../docs/pictures/pico-loss.svg")
    assert card.PAGE.read_text() == card.card(results, curve, picture="pictures/pico-loss.svg")


def test_the_file_holds_the_tokeniser_of_its_training(pico: EngineChat) -> None:
    vocabulary = load_vocabulary(TOKENIZER)
    assert pico.engine.info.n_vocab == len(vocabulary.tokens)
    assert {pico.engine.info.special_tokens[vocabulary.tokens[i]] for i in vocabulary.control} == vocabulary.control
