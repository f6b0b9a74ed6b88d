"""Prompts from every kind of file, Chatbot Arena's layout among them; draws by seed; every fault with file and line."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamalab.arena.prompts import drawn, read_prompts
from llamalab.arena.settings import CHATBOT_ARENA, PromptSettings
from llamalab.errors import InputError, ProviderError

ROWS = [{"prompt_id": f"q{i}", "prompt": f"What is {i}?", "kind": "even" if i % 2 == 0 else "odd"} for i in range(10)]


def lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


def ids(settings: PromptSettings) -> list[str]:
    return [prompt["prompt_id"] for prompt in read_prompts(settings)]


def test_the_same_rows_in_every_kind_of_file(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    with (tmp_path / "q.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "q.parquet")
    lines(tmp_path / "q.jsonl", ROWS)

    found = [read_prompts(PromptSettings(str(tmp_path / f"q.{kind}"))) for kind in ("jsonl", "csv", "parquet")]

    assert found == [ROWS] * 3


def test_fields_beyond_the_prompt_are_kept(tmp_path: Path) -> None:
    rows = [{**row, "reference": "1", "candidates": ["1", "2"]} for row in ROWS]
    assert read_prompts(PromptSettings(lines(tmp_path / "q.jsonl", rows))) == rows


def test_a_conversation_is_a_prompt(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    source = lines(tmp_path / "q.jsonl", [{"id": 1, "messages": turns}, {"id": 2, "question": "d"}])

    first, second = read_prompts(PromptSettings(source))

    assert (first["prompt_id"], first["prompt"], first["messages"]) == ("1", "c", turns)
    assert (second["prompt_id"], second["prompt"]) == ("2", "d")


def arena_row(number: int, question: str, language: str = "English") -> dict[str, Any]:
    """As the data set has them."""

    def conversation(answer: str) -> list[dict[str, str]]:
        asked = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return [*asked, {"role": "user", "content": "And?"}, {"role": "assistant", "content": "That is all."}]

    return {
        "question_id": f"{number:032x}",
        "model_a": "vicuna-13b",
        "model_b": "koala-13b",
        "winner": "model_a",
        "judge": "arena_user_1",
        "conversation_a": conversation("One."),
        "conversation_b": conversation("Two."),
        "turn": 2,
        "anony": True,
        "language": language,
        "tstamp": 1682351591.1322,
        "toxic_chat_tag": {"roberta-large": {"flagged": False, "probability": 0.01}},
    }


def test_chatbot_arenas_layout_from_a_local_folder(tmp_path: Path) -> None:
    """`data/train-00000-of-00001-HASH.parquet`: the first question is the prompt, an empty one is none."""
    import pyarrow
    from pyarrow import parquet

    rows = [arena_row(0, "Who are you?"), arena_row(1, " "), arena_row(2, "Qui es-tu ?", "French")]
    folder = tmp_path / "chatbot_arena_conversations"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("# Dataset Card\n")
    parquet.write_table(
        pyarrow.Table.from_pylist(rows), folder / "data" / "train-00000-of-00001-cced8514c7ed782a.parquet"
    )

    found = read_prompts(PromptSettings(str(folder), stratify="language"))

    assert found == [
        {"prompt_id": f"{0:032x}", "prompt": "Who are you?", "stratum": "English"},
        {"prompt_id": f"{2:032x}", "prompt": "Qui es-tu ?", "stratum": "French"},
    ]
    with pytest.raises(InputError, match="has no split 'test'"):
        read_prompts(PromptSettings(str(folder), split="test"))


def test_a_draw_is_the_same_whatever_the_order_of_rows(tmp_path: Path) -> None:
    there = lines(tmp_path / "a.jsonl", ROWS)
    back = lines(tmp_path / "b.jsonl", ROWS[::-1])

    assert ids(PromptSettings(there, num=4)) == sorted(ids(PromptSettings(back, num=4)))
    assert ids(PromptSettings(there, num=4)) != ids(PromptSettings(there, num=4, seed=1))
    assert set(ids(PromptSettings(there, num=4))) < set(ids(PromptSettings(there, num=7)))


def test_every_prompt_is_drawn_as_often_as_every_other() -> None:
    prompts = [{"prompt_id": str(number)} for number in range(20)]
    counts = Counter(prompt["prompt_id"] for seed in range(2000) for prompt in drawn(prompts, 5, seed))

    # Binomial(2000, 1/4): mean 500, sd 19.4.
    assert all(abs(counts[prompt["prompt_id"]] - 500) < 5 * 19.4 for prompt in prompts)


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=40), st.data())
def test_strata_keep_their_shares(strata: list[str], data: st.DataObject) -> None:
    """Each stratum has its exact share, rounded down or up; and they add up."""
    num = data.draw(st.integers(1, len(strata)))
    prompts = [{"prompt_id": str(number), "stratum": name} for number, name in enumerate(strata)]

    found = Counter(prompt["stratum"] for prompt in drawn(prompts, num, 0))

    assert sum(found.values()) == num
    for name, size in Counter(strata).items():
        assert abs(found[name] - num * size / len(strata)) < 1


FAULTS = {
    "an id twice": ([{"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"}], "line 2, field 'id'", "that of .*line 1"),
    "no prompt": ([{"id": 1, "prompt": "x"}, {"id": 2, "ask": "y"}], "line 2", "'prompt' .* is missing"),
    "an empty prompt": ([{"prompt": "x"}, {"prompt": "  "}], "line 2, field 'prompt'", "empty"),
    "a prompt that is no text": ([{"prompt": "x"}, {"prompt": 3}], "line 2, field 'prompt'", "text, or a list"),
    "an id that is none": ([{"prompt": "x"}, {"id": 1.5, "prompt": "y"}], "line 2, field 'id'", "whole number"),
    "a conversation without a question": (
        [{"prompt": "x"}, {"messages": [{"role": "assistant", "content": "y"}]}],
        "line 2, field 'messages'",
        "end with a user's message",
    ),
    "one prompt": ([{"prompt": "x"}], "q.jsonl", "at least 2"),
    "no object": ([{"prompt": "x"}, 3], "line 2", "no JSON object"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_with_file_and_line(name: str, tmp_path: Path) -> None:
    rows, place, said = FAULTS[name]
    with pytest.raises(InputError, match=rf"q\.jsonl.*{said}") as caught:
        read_prompts(PromptSettings(lines(tmp_path / "q.jsonl", rows)))
    assert place in str(caught.value)


def test_what_is_missing_is_named_with_the_setting(tmp_path: Path) -> None:
    source = lines(tmp_path / "q.jsonl", ROWS)
    with pytest.raises(InputError, match=r"line 1: the field 'topic' \(prompts\.stratify\) is missing"):
        read_prompts(PromptSettings(source, stratify="topic"))
    with pytest.raises(InputError, match=r"'ask' is missing. Name the right one in prompts\.field"):
        read_prompts(PromptSettings(source, field="ask"))
    with pytest.raises(InputError, match=r"has 10 prompts, and prompts\.num .* asks for 11"):
        read_prompts(PromptSettings(source, num=11))
    with pytest.raises(InputError, match="no such file"):
        read_prompts(PromptSettings(str(tmp_path / "no.jsonl")))


def test_a_file_cut_off_in_its_last_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"prompt": "x"}\n{"prompt": "y"}\n{"prom')
    with pytest.raises(InputError, match=r"line 3: not valid JSON"):
        read_prompts(PromptSettings(str(path)))


def test_broken_csv_and_parquet_are_named(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("id,prompt\n1,x\n2\n")
    (tmp_path / "q.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"q\.csv, line 3: not as many fields"):
        read_prompts(PromptSettings(str(tmp_path / "q.csv")))
    with pytest.raises(InputError, match=r"q\.parquet is no Parquet file"):
        read_prompts(PromptSettings(str(tmp_path / "q.parquet")))


def test_offline_the_hub_says_what_to_give_instead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ProviderError, match=r"--prompts FILE"):
        read_prompts(PromptSettings(CHATBOT_ARENA))
