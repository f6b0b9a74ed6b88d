"""Whole runs whose every command is drawn, token by token, by a model with random weights under the compiled schema."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from llamalab import rlm
from llamalab.chat import EngineChat
from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.rlm.grammar import turn_schema
from llamalab.rlm.providers import Pool, Provider
from llamalab.rlm.replay import replay
from tests.rlm.scripted import settings
from tests.rlm.steered import LOG, PROSE, Steered, narrowed
from tests.tiny import write_bpe

CONFIG = settings(max_iterations=6, max_sub_calls=4, max_depth=1, max_tokens=60_000, output_limit=400, sub_tokens=8)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    path = write_bpe(tmp_path_factory.mktemp("random") / "random.gguf", context=8192)
    with LlamaCppEngine(path, n_ctx=8192, n_seq=2, n_threads=1, cache_prompts=True) as engine:
        yield Pool([Provider("random", Steered(EngineChat(engine)), concurrency=2)])


@pytest.mark.parametrize("number", range(2))
def test_a_drawn_run_is_valid_within_its_budget_resumable_and_replayed(number: int, pool: Pool, tmp_path: Path) -> None:
    files = [tmp_path / "log.txt", tmp_path / "tale.txt"]
    for file, text in zip(files, (LOG, PROSE), strict=True):
        file.write_text(text)
    journal = tmp_path / "run.jsonl"

    def run(**where: Path) -> rlm.Answer:
        events = list(rlm.events(f"What of {number}?", files, config=CONFIG, pool=pool, **where))
        turns = [event for event in events if isinstance(event, rlm.Turn)]
        assert not [turn.malformed for turn in turns if turn.malformed]
        assert not [event for event in events if isinstance(event, rlm.Done) and "not allowed" in (event.error or "")]
        assert isinstance(events[-1], rlm.Answered)
        answer = events[-1].answer
        assert (answer.turns <= 6, answer.sub_calls <= 4, answer.tokens <= 60_000) == (True, True, True)
        assert replay(journal).equal
        return answer

    run(journal=journal)
    whole = journal.read_bytes()
    header = whole.index(b"\n") + 1
    journal.write_bytes(whole[: Random(number).randrange(header, len(whole))])
    run(resume=journal)


def test_a_decoder_that_is_led_comes_to_every_operation_and_to_nothing_else() -> None:
    """What it is led through is a part of what the turn's schema allows."""
    whole = turn_schema(variables=("_", "a"), documents=2)
    branches = {branch["properties"]["op"]["const"]: branch for branch in whole["anyOf"]}
    led = [branch for seed in range(300) for branch in narrowed(whole, Random(seed))["anyOf"]]
    assert {branch["properties"]["op"]["const"] for branch in led} == set(branches)
    for branch in led:
        properties = branches[branch["properties"]["op"]["const"]]["properties"]
        assert set(branch["properties"]) <= set(properties)
        for name, field in branch["properties"].items():
            words = [word for word in field.get("enum", ()) if isinstance(word, str)]
            assert all(len(word) <= properties[name].get("maxLength", 100) for word in words), branch
