"""An arena whose base is local and whose targets or judge are real HTTP endpoints, up, down and up again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llamalab.arena.config import load_config
from llamalab.arena.pipeline import run
from llamalab.arena.results import read_results
from llamalab.errors import ConfigError, ProviderUnavailable
from tests import tiny
from tests.arena.test_pipeline import jsonl, write_config
from tests.chat_servers import Answer, Asked, ChatServer, openai
from tests.scoring.endpoints import KEY, LetterModel, llama_cpp_server, small_endpoint

TEXTS = ("the name of the code is hello", "her age", "hello world", "a code", "the world is old", "yes")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def logged(folder: Path) -> str:
    """The base's responses, as readable text: what a tiny model writes is no text that an endpoint takes back."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt_id": f"q{number}", "response": text, "finished": False} for number, text in enumerate(TEXTS)]
    (folder / "logged.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return "{file: logged.jsonl, generated_by: p0}"


def there(url: str, model: str = "tiny", **settings: str) -> str:
    """The settings of a policy that is scored by an endpoint; short of patience."""
    given = {"provider": "openai", "model": model, "base_url": url, "retries": "1", "backoff": "0.01"} | settings
    return f"{{{', '.join(f'{name}: {value}' for name, value in given.items())}}}"


def test_a_target_behind_a_server_has_the_weights_of_the_same_model_here(model_folder: Path, tmp_path: Path) -> None:
    """llama-cpp-python's own server: base local, one target there, its twin here."""
    model = tiny.once(model_folder, "tiny-readable.gguf", lambda path: tiny.write_bpe(path, seed=6))
    template = tmp_path / "tiny.jinja"
    template.write_text(tiny.TEMPLATE)
    settings = {"template": f"'{template}'", "system_prompt": "Be old."}
    with llama_cpp_server(tmp_path, {"tiny": model}) as url:
        path = write_config(
            tmp_path / "arena",
            model,
            p0=f"{{model: {model}, template: '{template}'}}",
            hot=f"{{model: {model}, template: '{template}', system_prompt: Be old.}}",
            responses=logged(tmp_path / "arena"),
            oracle="",
        )
        path.write_text(path.read_text().replace("  hot:", f"  remote: {there(url, **settings)}\n  hot:"))
        folder = run(load_config(path))

    rows = [row["policies"] for row in jsonl(folder / "logprobs.jsonl")]
    assert [row["remote"]["method"] for row in rows] == ["echo"] * len(TEXTS)
    for row in rows:
        assert row["remote"]["logprob"] == pytest.approx(row["hot"]["logprob"], abs=1e-4 * row["hot"]["n_tokens"])
        assert row["remote"]["logprob"] != row["p0"]["logprob"]
    results = read_results(folder / "results.json")
    remote, twin = (results.policy(name).diagnostics for name in ("remote", "hot"))
    assert remote is not None
    assert twin is not None
    assert remote.ess == pytest.approx(twin.ess, abs=1e-3)
    assert any("'remote' is scored on the text" in note for note in results.notes)
    assert any("'remote' runs on openai" in note for note in results.notes)


def letters(fault: str = "") -> Callable[[Asked], Answer]:
    """A made-up model whose tokens are letters, as a server that can go away."""
    model = LetterModel(fault)
    return lambda asked: Answer(json.loads(model(asked.body).content))


@contextmanager
def server(answer: Callable[[Asked], Answer]) -> Iterator[ChatServer]:
    found = ChatServer(answer)
    try:
        yield found
    finally:
        found.stop()


def letters_arena(folder: Path, model: Path, url: str) -> Path:
    """A base here, a target there that takes the prompt as it is."""
    hot = there(f"{url}/v1", "letters")
    return write_config(folder, model, p0=f"{{model: {model}}}", hot=hot, responses=logged(folder), oracle="")


class Flaky:
    """Calls `down` before the answer with that number; an endpoint that dies in the middle of its work."""

    def __init__(self, answer: Callable[[Asked], Answer], number: int) -> None:
        self.answer, self.left = answer, number

    def __call__(self, asked: Asked) -> Answer:
        self.left -= 1
        return Answer({"error": "no machine is free"}, 503) if self.left < 0 else self.answer(asked)


def test_an_endpoint_that_goes_down_while_it_scores_costs_no_row(tmp_path: Path, tiny_gguf: Path) -> None:
    """The run stops, nothing is written for a row that has no number, and the same command goes on."""
    with server(letters()) as up:
        one = run(load_config(letters_arena(tmp_path / "one", tiny_gguf, up.url)))
    checks = 2 * 2  # of the check before the run and of that before the first score: each generates, and repeats
    with server(Flaky(letters(), checks + 3)) as down:
        path = letters_arena(tmp_path / "many", tiny_gguf, down.url)
        with pytest.raises(ProviderUnavailable, match=r"503.* the same command goes on") as caught:
            run(load_config(path))
        assert caught.value.exit_code == 1
        done = jsonl(tmp_path / "many" / "run" / "logprobs.jsonl")
        assert 0 < len(done) < len(TEXTS)
        assert all("error" not in row["policies"]["hot"] for row in done)
        with pytest.raises(ProviderUnavailable, match=r"line 3, policies\.hot: .*503"):
            run(load_config(path))  # still down: said before anything runs
        down.answer = letters()
        many = run(load_config(path))
    for name in ("responses.jsonl", "judged.jsonl"):
        assert (many / name).read_bytes() == (one / name).read_bytes()
    assert [_numbers(row) for row in jsonl(many / "logprobs.jsonl")] == [
        _numbers(row) for row in jsonl(one / "logprobs.jsonl")
    ]
    assert (
        read_results(many / "results.json").policies[1].values == read_results(one / "results.json").policies[1].values
    )


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    return {name: (found["logprob"], found["tokens"]) for name, found in row["policies"].items()}


def test_a_finished_run_needs_no_endpoint(tmp_path: Path, tiny_gguf: Path) -> None:
    """What is scored is scored: another estimate is made without asking anybody."""
    with server(letters()) as up:
        path = letters_arena(tmp_path, tiny_gguf, up.url)
        folder = run(load_config(path))
    (folder / "report.html").unlink()
    run(load_config(path))
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("deaf", r"line 3, policies\.hot: .*letters at"),
        ("silent", r"line 3, policies\.hot: "),
        ("shifted", r"line 3, policies\.hot: .*shifted by one token"),
        ("unrelated", r"line 3, policies\.hot: .*not those of its own generation"),
    ],
)
def test_an_endpoint_that_cannot_score_is_refused_before_anything_runs(
    tmp_path: Path, tiny_gguf: Path, fault: str, said: str
) -> None:
    """One that does not echo, or echoes other numbers: by the policy's name."""
    with small_endpoint(LetterModel(fault)) as url:
        path = letters_arena(tmp_path, tiny_gguf, url.removesuffix("/v1"))
        with pytest.raises(ConfigError, match=said):
            run(load_config(path))
    assert not list((tmp_path / "run").glob("*.jsonl"))


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("{provider: ollama, model: 'llama3.2:3b'}", r"line 3, policies\.hot: ollama gives no log probabilities"),
        (
            "{provider: openai, model: m, base_url: 'http://127.0.0.1:9/v1', temperature: 0.7}",
            r"hot: .*temperature 0\.7",
        ),
        ("{provider: openai, model: m}", r"line 3, policies\.hot: .*give base_url"),
        ("{provider: openai, model: m, base_url: 'http://127.0.0.1:9/v1', method: ehco}", r"line 3, policies\.hot"),
    ],
    ids=["no echo", "temperature", "no address", "method"],
)
def test_what_no_endpoint_gives_is_refused_before_anything_runs(
    tmp_path: Path, tiny_gguf: Path, policy: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    path = write_config(
        tmp_path, tiny_gguf, p0=f"{{model: {tiny_gguf}}}", hot=policy, responses=logged(tmp_path), oracle=""
    )
    with pytest.raises(ConfigError, match=said):
        run(load_config(path))
    assert not list((tmp_path / "run").glob("*.jsonl"))


def graded(asked: Asked) -> str:
    """A judge that counts the letters of what it is shown."""
    response = asked.body["messages"][-1]["content"].partition("<response>\n")[2].partition("\n</response>")[0]
    return json.dumps({"reason": "its length", "score": len(response) % 11})


def judged_arena(folder: Path, model: Path, url: str) -> Path:
    """Everything here but the judge."""
    judge = f"{{kind: llm, model: {there(f'{url}/v1', 'm')}}}"
    return write_config(folder, model, judge=judge, responses="{draws: 1, max_tokens: 6}", oracle="")


def test_a_judge_behind_an_endpoint_gives_its_scores(tmp_path: Path, tiny_gguf: Path) -> None:
    with server(openai(graded)) as up:
        folder = run(load_config(judged_arena(tmp_path, tiny_gguf, up.url)))
    texts = {row["response_id"]: row["response"] for row in jsonl(folder / "responses.jsonl")}
    texts |= {row["response_id"]: row["response"] for row in jsonl(folder / "draws" / "hot.jsonl")}
    judged = jsonl(folder / "judged.jsonl")
    assert len(judged) == len(texts) == 12
    assert all(row["score"] == len(texts[row["response_id"]]) % 11 for row in judged)


def test_a_judge_that_goes_down_in_the_middle_goes_on_to_the_same_results(tmp_path: Path, tiny_gguf: Path) -> None:
    """Also where the connection breaks off within an answer: no row says that the judge failed."""
    with server(openai(graded)) as up:
        one = run(load_config(judged_arena(tmp_path / "one", tiny_gguf, up.url)))
    seen = 0

    def breaking(asked: Asked) -> Answer:
        nonlocal seen
        answer = openai(graded)(asked)
        seen += asked.path.endswith("/chat/completions") and "<response>" in json.dumps(asked.body)
        return Answer(answer.body, cut=40) if seen > 5 else answer

    with server(breaking) as down:
        path = judged_arena(tmp_path / "many", tiny_gguf, down.url)
        with pytest.raises(ProviderUnavailable, match="the same command goes on"):
            run(load_config(path))
        done = jsonl(tmp_path / "many" / "run" / "judged.jsonl")
        assert len(done) == 5
        assert all("score" in row for row in done)
        down.stop()
        with pytest.raises(ProviderUnavailable, match="the same command goes on"):
            run(load_config(path))
        down.answer = openai(graded)
        down.start()
        many = run(load_config(path))
    for name in ("responses.jsonl", "judged.jsonl"):
        assert (many / name).read_bytes() == (one / name).read_bytes()
    assert read_results(many / "results.json").policies == read_results(one / "results.json").policies


def test_an_answer_without_a_score_is_a_row_and_ends_no_run(tmp_path: Path, tiny_gguf: Path) -> None:
    """An empty answer to one response is about that response; the others are judged."""

    def moody(asked: Asked) -> str:
        return "" if '"score"' not in graded(asked) or "say 3" in json.dumps(asked.body["messages"]) else graded(asked)

    with server(openai(moody)) as up:
        folder = run(load_config(judged_arena(tmp_path, tiny_gguf, up.url)))
    failed = [row["response_id"] for row in jsonl(folder / "judged.jsonl") if "error" in row]
    assert failed == ["p0/q3/0", "hot/q3/0"]


def test_a_judge_without_its_key_is_named_before_anything_runs(
    tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEEPSEEK_API_KEY", raising=False)
    path = write_config(tmp_path, tiny_gguf, judge="{kind: llm, model: 'deepseek:deepseek-chat'}")
    with pytest.raises(ConfigError, match=r"line 6, judge\.model: .*DEEPSEEK_API_KEY"):
        run(load_config(path))
    assert not (tmp_path / "run").exists()
