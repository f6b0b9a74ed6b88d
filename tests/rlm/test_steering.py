"""What the full protocol shows is enough to steer by: roots that read nothing but their messages, over real HTTP."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llamalab import rlm
from llamalab.rlm.replay import replay
from tests.chat_servers import SENTENCE, Answering, Asked, ChatServer, ollama, openai
from tests.rlm.reader import Command, Plan, Read, read

SHAPES: dict[str, tuple[str, Any]] = {
    "ollama": ("ollama", ollama),
    "deepseek": ("deepseek", lambda says, **more: openai(says, deepseek=True, **more)),
    "openai": ("openai", openai),
}
NAMES = ("ada", "bob", "cy", "dee")
LOG = "".join(
    f"10:{at // 60:02}:{at % 60:02} {'ERROR' if at % 10 == 3 else 'INFO'} user={NAMES[at * at % 7 % 4]} "
    f"upload took {at * 37 % 90} ms\n"
    for at in range(400)
)
TALES = "Nothing is said on this page.\n" * 900
VAULT = "The access code of the Blue Harbor vault is 48213, and its keeper is Grace."


def needle(seen: Read) -> Command:
    """Look for what the question names; the number in the line that is shown."""
    if not seen.results:
        (name,) = re.findall(r"of the (.*)\?", seen.question)
        return {"op": "find", "text": name}
    for line in seen.results[0].lines:
        if code := re.search(r"is (\d+)", line.text):
            return {"op": "final", "answer": code[1]}
    return {"op": "final", "answer": "not found"}


def count_and_mean(seen: Read) -> Command:
    """A search that is kept, counted, and computed with; the numbers stand in the heads."""
    match len(seen.results):
        case 0:
            return {"op": "regex", "pattern": "ERROR.*", "store": "errors"}
        case 1:
            assert seen.results[0].head.endswith(" in errors")
            return {"op": "count", "what": "matches", "on": "errors", "store": "n"}
        case 2:
            return {"op": "aggregate", "pattern": "took ([0-9]+) ms", "what": "mean", "on": "errors", "store": "mean"}
    return {"op": "final", "answer": f"{seen.results[1].number} errors, {seen.results[2].number} ms"}


def top_user(seen: Read) -> Command:
    """The most frequent value, and how often it occurs."""
    if not seen.results:
        return {"op": "aggregate", "pattern": "user=([a-z]+)", "what": "top", "limit": 3}
    return {"op": "final", "answer": seen.results[0].lines[0].text.replace(": ", " ")}


def asked_of_each(seen: Read) -> Command:
    """A sub model about every line that was found; its answers are counted by what they say."""
    match len(seen.results):
        case 0:
            return {"op": "find", "text": "ERROR", "store": "hits"}
        case 1:
            many = int(seen.results[0].number)
            return {"op": "map", "prompt": "Who is the user? One name.", "on": "hits", "limit": many, "store": "names"}
        case 2:
            return {"op": "aggregate", "pattern": ".+", "what": "top", "on": "names"}
    return {"op": "final", "answer": seen.results[2].lines[0].text.replace(": ", " ")}


def comparison(seen: Read) -> Command:
    """The end of each document, by the numbers in the first message; a sub model is shown both."""
    match len(seen.results):
        case 0:
            return {"op": "lines", "on": "doc1", "start": seen.documents[0][1] - 1, "store": "one"}
        case 1:
            return {"op": "slice", "on": "doc2", "start": max(seen.documents[1][2] - 80, 0), "store": "two"}
        case 2:
            return {"op": "llm_query", "prompt": "Which of ${one} and ${two} was signed later? Its year.", "store": "y"}
    return {"op": "final_var", "name": "y"}


def delegated(seen: Read) -> Command:
    """A run of its own finds the name; then the code is looked for."""
    if seen.question.startswith("Which vault"):
        if not seen.results:
            return {"op": "regex", "pattern": "the [A-Z]\\w+ [A-Z]\\w+ vault .* keeper is Grace"}
        (line,) = seen.results[0].lines
        return {"op": "final", "answer": re.findall(r"[A-Z]\w+ [A-Z]\w+ vault", line.text)[0]}
    match len(seen.results):
        case 0:
            return {"op": "delegate", "task": "Which vault has the keeper Grace?", "store": "vault"}
        case 1:
            return {"op": "find", "text": seen.results[0].lines[0].text, "how": "phrase"}
    return {"op": "final", "answer": re.findall(r"is (\d+)", seen.results[1].lines[0].text)[0]}


def within_a_line(seen: Read) -> Command:
    """A text without line ends: what is shown says where it stands, and more of it is read there."""
    match len(seen.results):
        case 0:
            return {"op": "find", "text": "Blue Harbor"}
        case 1:
            (line,) = seen.results[0].lines
            at = line.at + line.text.index("Blue Harbor")
            return {"op": "slice", "start": at, "end": at + 900}
    text = seen.results[1].lines[0].text
    return {"op": "final", "answer": re.findall(r"code: (\d+)", text)[0]}


def summed(seen: Read) -> Command:
    """A sub model goes through all of it in chunks, and brings together what it found."""
    if not seen.results:
        return {"op": "reduce", "directive": "Add up the ms.", "chunk_size": 3000, "overlap": 0, "store": "sum"}
    return {"op": "final_var", "name": "sum"}


def noted(seen: Read) -> Command:
    """Terms, pieces and lengths; what is found is kept in a note, looked at again, and put into the answer."""
    match len(seen.results):
        case 0:
            return {"op": "index_terms", "pattern": "all_caps", "store": "terms"}
        case 1:
            return {"op": "split", "delimiter": "\n", "store": "rows"}
        case 2:
            return {"op": "set", "name": "note", "value": f"{seen.results[1].number} rows"}
        case 3:
            return {"op": "len", "on": "rows"}
        case 4:
            return {"op": "get", "name": "terms"}
        case 5:
            most = seen.results[4].lines[0].text
            return {"op": "print", "value": f"${{note}}, {seen.results[3].number} characters, {most}"}
    return {"op": "final", "answer": seen.results[5].lines[0].text}


def sub(asked: Asked) -> str:
    """Sub models do what they are told, with the text that stands between the fences."""
    text = str(asked.body["messages"][-1]["content"])
    if "Task: " not in text:
        return SENTENCE  # how it holds a schema is found out
    if "Add up" in text:
        data = text.split(text.split()[1])[2]
        return str(sum(map(int, re.findall(r"took (\d+)", data) or data.split())))
    if "user" in text[text.index("Task: ") :].splitlines()[0]:
        return re.findall(r"user=([a-z]+)", text)[0]
    return max(re.findall(r"signed in (\d+)", text))


def counted(users: list[str]) -> str:
    return max(sorted(set(users)), key=users.count) + f" {max(map(users.count, users))}"


ERRORS = [line for line in LOG.splitlines() if "ERROR" in line]
TIMES = [int(re.findall(r"took (\d+)", line)[0]) for line in ERRORS]
USERS = {line: re.findall(r"user=([a-z]+)", line)[0] for line in LOG.splitlines()}
QUESTIONS: dict[str, tuple[str, Plan, list[str], str]] = {
    "needle": ("What is the access code of the Blue Harbor vault?", needle, [TALES + VAULT + "\n" + TALES], "48213"),
    "nothing": ("What is the access code of the Red Lion vault?", needle, [TALES], "not found"),
    "count": ("How many errors, and how long?", count_and_mean, [LOG], f"{len(TIMES)} errors, {sum(TIMES) / 40:g} ms"),
    "top": ("Who is seen most?", top_user, [LOG], counted(list(USERS.values()))),
    "map": ("Who has most errors?", asked_of_each, [TALES, LOG], counted([USERS[line] for line in ERRORS])),
    "compare": (
        "Which contract is newer?", comparison, [TALES + "It was signed in 1987.\n", TALES + "It was signed in 2003."],
        "2003",
    ),
    "delegate": ("What is the code of the vault that Grace keeps?", delegated, [TALES, VAULT + "\n"], "48213"),
    "sum": ("How long did it all take?", summed, [LOG], str(sum(at * 37 % 90 for at in range(400)))),
    "notes": ("What is in it?", noted, [LOG], f"400 rows, {len(LOG) - 400} characters, INFO: 360"),
    "one line": (
        "What is its code?", within_a_line,
        [f"{'{é}; ' * 9000}Blue Harbor: {'-' * 500} code: 48213 {'{x}; ' * 9000}"], "48213",
    ),
}  # fmt: skip


@pytest.fixture(params=SHAPES)
def provider(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any]:
    monkeypatch.setenv("TEST_API_KEY", "sk-secret")
    return SHAPES[request.param]


@pytest.mark.parametrize("kind", QUESTIONS)
def test_a_root_that_sees_only_its_messages_comes_to_the_answer(
    kind: str, provider: tuple[str, Any], tmp_path: Path
) -> None:
    question, plan, texts, wanted = QUESTIONS[kind]
    name, shape = provider

    def says(asked: Asked) -> str:
        if "You answer a question" not in asked.body["messages"][0]["content"]:
            return sub(asked)
        seen = read(asked.body["messages"])
        command = plan(seen)
        assert command["op"] in seen.operations
        return json.dumps({"thought": "", **command})

    served: Answering = shape(says, context=32_768)
    server = ChatServer(served)
    config = tmp_path / "config.toml"
    config.write_text(
        f'bypass_enabled = false\n[[providers]]\nprovider_type = "{name}"\nmodel = "m"\nbase_url = "{server.url}"\n'
        + ("" if name == "ollama" else 'api_key_env = "TEST_API_KEY"\n')
    )
    files = [tmp_path / f"{n}.txt" for n in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    try:
        answer = rlm.ask(question, files, config=config, journal=tmp_path / "run.jsonl")
    finally:
        server.stop()
    assert (answer.text, answer.complete, answer.malformed) == (wanted, True, 0)
    assert replay(tmp_path / "run.jsonl").equal
