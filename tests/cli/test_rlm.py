"""`llamalab rlm`: ask, replay and bench, as somebody types them."""

from __future__ import annotations

import io
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len

from llamalab.cli.rlm_view import print_answer, turns_view
from llamalab.rlm import Answer, Done, Evidence, Started, SubCall, Turn
from tests.chat_servers import Answer as Http
from tests.chat_servers import Asked, ChatServer, ollama
from tests.cli.conftest import Cli

QUESTION = "What is the access code of the Blue Harbor vault?"
TRUTH = "The access code of the Blue Harbor vault is 48213."
KEY = "sk-97f0c1"
FIND, FINAL = '{"op":"find","text":"access code"}', '{"op":"final","answer":"48213"}'
CONTROLS = "\x1b]0;PWNED\x07\x1b[2J\u202e\u2028"
ESCAPES = set("\x1b\x07\u202e\u2028")


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A text that does not fit pico's context."""
    lines = [f"{'ERROR' if n % 50 == 0 else 'INFO'} request {n} took {n % 97} ms" for n in range(1, 1001)]
    lines[700] = TRUTH
    path = tmp_path / "big.log"
    path.write_text("\n".join(lines) + "\n")
    return path


Serve = Callable[[Callable[[Asked], str]], tuple[ChatServer, Path]]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Gives a server in ollama's shape, and a configuration that names it and a key."""
    monkeypatch.setenv("VAULT_KEY", KEY)
    servers: list[ChatServer] = []

    def start(text: Callable[[Asked], str]) -> tuple[ChatServer, Path]:
        servers.append(ChatServer(ollama(text)))
        config = tmp_path / "config.toml"
        config.write_text(
            'bypass_enabled = false\n[[providers]]\nprovider_type = "ollama"\nmodel = "m"\nretries = 0\n'
            f'timeout = 5\nbase_url = "{servers[-1].url}"\napi_key_env = "VAULT_KEY"\n'
        )
        return servers[-1], config

    yield start
    for server in servers:
        server.stop()


def steer(asked: Asked) -> str:
    """A root that looks once and answers; a sub model that says "fine"."""
    if "final" not in str(asked.body["messages"][0]):
        return "fine"
    return FIND if len(asked.body["messages"]) < 4 else FINAL


def test_pico_answers_over_a_text_that_it_never_sees(cli: Cli, big: Path) -> None:
    done = cli("rlm", "ask", QUESTION, "big.log", "--journal", "run.jsonl")

    assert done.code == 0, done.err
    answer, evidence, took, journal = [line for line in done.out.splitlines() if line]
    assert (answer, evidence) == ("48213", f"big.log:701: {TRUTH}")
    assert took.startswith("2 turns; root: ")
    assert journal == "journal: run.jsonl"
    assert "pico answers: a demonstration model" in done.err


def test_a_line_of_a_windows_file_is_shown_without_its_end(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_bytes(f"{TRUTH}\r\nanother line\r\n".encode())
    assert f"short.txt:1: {TRUTH}\n" in cli("rlm", "ask", QUESTION, "short.txt", "--no-journal").out


def test_limits_alone_are_a_configuration_of_pico(cli: Cli, big: Path, tmp_path: Path) -> None:
    (tmp_path / "limits.toml").write_text("max_iterations = 2\n")
    done = cli("rlm", "ask", QUESTION, "big.log", "--config", "limits.toml", "--journal", "run.jsonl")
    assert (done.code, done.out.splitlines()[0]) == (0, "48213")
    assert "pico answers: a demonstration model" in done.err
    assert json.loads(Path("run.jsonl").read_text().splitlines()[0])["settings"]["limits"]["max_iterations"] == 2


def test_a_short_text_is_read_as_a_whole(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(TRUTH)
    found = json.loads(cli("rlm", "ask", QUESTION, "short.txt", "--no-journal", "--json").out)
    assert (found["text"], found["mode"], found["turns"]) == ("48213", "direct", 1)
    assert "would cost about" in found["route"]["why"]
    assert found["journal"] is None


def test_turns_are_shown_where_they_are_asked_for(cli: Cli, big: Path) -> None:
    done = cli("rlm", "ask", "How many ERROR lines are there?", "-", "--turns", "--no-journal", stdin=big.read_text())
    assert done.out.splitlines()[0] == "20"
    assert ' 1 {"op":"find","text":"ERROR","store":"hits"}' in done.err.splitlines()
    assert "   20 matches in hits" in done.err.splitlines()


def test_pico_told_to_speak_the_full_protocol_says_that_its_window_is_too_small(
    cli: Cli, big: Path, tmp_path: Path
) -> None:
    (tmp_path / "full.toml").write_text(
        'protocol = "full"\nbypass_enabled = false\n[[providers]]\nprovider_type = "llama_cpp"\nmodel = "pico"\n'
    )
    done = cli("rlm", "ask", QUESTION, "big.log", "--config", "full.toml", "--no-journal")
    assert (done.code, done.out.splitlines()[0]) == (1, "no answer was reached")
    assert 'window has 2,048: give it a longer context (n_ctx) or protocol = "compact"' in done.out


def test_a_typed_answer(cli: Cli, big: Path, tmp_path: Path) -> None:
    (tmp_path / "code.json").write_text('{"type": "string", "pattern": "^[0-9]{5}$"}')
    done = cli("rlm", "ask", QUESTION, "big.log", "--schema", "code.json", "--no-journal", "--json")
    assert json.loads(done.out)["value"] == "48213"


def test_a_run_is_replayed_without_its_model(cli: Cli, serve: Serve, big: Path) -> None:
    server, config = serve(steer)
    first = cli("rlm", "ask", QUESTION, "big.log", "--config", str(config), "--journal", "run.jsonl")
    server.stop()
    again = cli("rlm", "replay", "run.jsonl")

    assert (first.code, again.code) == (0, 0)
    assert again.out.startswith(first.out.partition("\njournal: ")[0])
    assert "replayed without a model: " in again.out
    assert json.loads(cli("rlm", "replay", "run.jsonl", "--json").out)["equal"] is True

    text = Path("run.jsonl").read_text()
    Path("other.jsonl").write_text(text.replace('"1 match"', '"2 matches"'))
    other = cli("rlm", "replay", "other.jsonl")
    assert (other.code, "all the same" in other.out) == (1, False)
    big.write_text("another text\n")
    changed = cli("rlm", "replay", "run.jsonl")
    assert (changed.code, "is not as it was" in changed.err) == (2, True)


def test_a_key_is_in_no_output_and_no_journal(cli: Cli, serve: Serve, big: Path) -> None:
    server, config = serve(steer)
    done = cli("rlm", "ask", QUESTION, "big.log", "-c", str(config), "--journal", "run.jsonl", "--json", "--turns")
    assert server.asked[-1].headers["Authorization"] == f"Bearer {KEY}"
    server.answer = lambda _: Http({"error": f"no such key {KEY}"}, 401)
    refused = cli("rlm", "ask", QUESTION, "big.log", "-c", str(config), "--journal", "refused.jsonl", "--turns")
    assert refused.code == 2
    assert refused.err.count("error: ") == 1
    seen = done.out + done.err + refused.out + refused.err
    assert KEY not in seen + "".join(path.read_text() for path in Path().glob("*.jsonl"))


@pytest.mark.parametrize("turn", [1, 2])
def test_a_server_that_is_killed_in_any_turn_ends_the_run_and_it_goes_on(
    cli: Cli, serve: Serve, big: Path, turn: int
) -> None:
    def dies(asked: Asked) -> str:
        if len(asked.body["messages"]) == 2 * turn and "canary" not in json.dumps(asked.body):
            threading.Thread(target=server.stop).start()
            time.sleep(0.1)
        return steer(asked)

    server, config = serve(dies)
    broken = cli("rlm", "ask", QUESTION, "big.log", "-c", str(config), "--journal", "run.jsonl")
    assert (broken.code, broken.out) == (1, "")
    assert f"go on with: llamalab rlm ask --resume run.jsonl --config {config}" in broken.err
    assert "Traceback" not in broken.err

    server.answer = ollama(steer)
    server.start()
    resumed = cli("rlm", "ask", "--resume", "run.jsonl", "--config", str(config))
    assert (resumed.code, resumed.out.splitlines()[0]) == (0, "48213"), resumed.err
    asked_once = [
        asked for asked in server.asked if len(asked.body["messages"]) == 2 and "canary" not in str(asked.body)
    ]
    assert len(asked_once) == (2 if turn == 1 else 1)
    assert cli("rlm", "replay", "run.jsonl").code == 0


def test_an_answer_that_a_budget_ended_is_marked_and_the_exit_code_is_1(cli: Cli, serve: Serve, big: Path) -> None:
    _, config = serve(lambda _: FIND)
    config.write_text("max_iterations = 2\n" + config.read_text())
    done = cli("rlm", "ask", QUESTION, "big.log", "--config", str(config), "--no-journal")
    assert done.code == 1
    assert done.out.splitlines()[0]
    assert "\nincomplete: " in done.out


def test_an_answer_that_claims_more_than_was_read_says_so_in_text_and_json(cli: Cli, serve: Serve, big: Path) -> None:
    invented = FINAL.replace("48213", "Thursday")
    _, config = serve(lambda asked: FIND if len(asked.body["messages"]) < 4 else invented)
    ask = ("rlm", "ask", QUESTION, "big.log", "--config", str(config), "--no-journal")
    done = cli(*ask)
    assert (done.code, done.out.splitlines()[0]) == (0, "Thursday")
    assert "\nnote: no line that was read says it" in done.out
    assert json.loads(cli(*ask, "--json").out)["doubt"].startswith("no line that was read")

    _, config = serve(lambda _: invented)
    unread = cli(*ask)
    assert (unread.code, unread.out.splitlines()[0]) == (1, "Thursday")
    assert "\nincomplete: no evidence: nothing of the text was read before it" in unread.out
    assert "no evidence" in json.loads(cli(*ask, "--json").out)["why"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "There is no question"),
        (("", "big.log"), "The question is empty"),
        ((QUESTION,), "No document was named"),
        (("big.log", QUESTION), "big.log is there as a file. The question comes first"),
        ((QUESTION, "no.log"), "no.log cannot be read"),
        ((QUESTION, "*.csv"), "there is no such file"),
        ((QUESTION, "empty.txt"), "There is no text to ask about: empty.txt is empty"),
        ((QUESTION, "~nobody-here/a.txt"), "no user here"),
        ((QUESTION, "binary"), "is binary"),
        ((QUESTION, "-"), "standard input (-), which is empty"),
        ((QUESTION, "big.log", "--root", "no-such-model"), "no model called 'no-such-model'"),
        ((QUESTION, "big.log", "--config", "~nobody-here/c.toml"), "no user here"),
        ((QUESTION, "big.log", "--config", "no.toml"), "no.toml cannot be read"),
        ((QUESTION, "big.log", "--config", "bad.toml"), "bad.toml, line 2, max_iteration"),
        ((QUESTION, "big.log", "--schema", "bad.toml"), "bad.toml, line 1, column 1: not valid JSON"),
        ((QUESTION, "big.log", "--schema", "deep.json"), "deep.json is no JSON schema"),
        ((QUESTION, "big.log", "--schema", "digits.json"), "digits.json, line 2: a number of 6,000 digits"),
        ((QUESTION, "big.log", "--schema", "twice.json"), 'twice.json, line 3: the key "a" stands twice'),
        ((QUESTION, "big.log", "--schema", "nan.json"), "nan.json, line 1: NaN is no number"),
        ((QUESTION, "big.log", "--schema", "true.json"), "must be an object"),
        ((QUESTION, "big.log", "--schema", "strange.json"), "cannot be compiled"),
        ((QUESTION, "big.log", "--journal", "empty.txt"), "empty.txt exists"),
        ((QUESTION, "big.log", "--journal", "a.jsonl", "--no-journal"), "Give one of these"),
        ((QUESTION, "big.log", "--resume", "no.jsonl"), "no.jsonl cannot be"),
        (("--resume", "empty.txt"), "is no journal"),
        (("--resume", "binary"), "not valid JSON"),
    ],
)
def test_bad_input_is_one_paragraph_and_exit_code_2(
    cli: Cli, big: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    for name, content in {
        "empty.txt": b"",
        "binary": b"\x7fELF\0\0\n",
        "bad.toml": b"# a comment\nmax_iteration = 5\n",
        "deep.json": b"[" * 100_000,
        "digits.json": b'{"maximum":\n -' + b"9" * 6000 + b"}",
        "twice.json": b'{"a": 1,\n"b": {"a": [2, {"a": 3}, "a"]},\n"\\u0061": 4}',
        "nan.json": b'{"maximum": NaN}',
        "true.json": b"true",
        "strange.json": b'{"type": "string", "pattern": "("}',
    }.items():
        (tmp_path / name).write_bytes(content)
    options = () if "--journal" in arguments or "--resume" in arguments else ("--no-journal",)
    done = cli("rlm", "ask", *arguments, *options)

    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert "Traceback" not in done.err
    assert done.err.rstrip().splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("content", ["", "{}", "[1]", "x" * 1000, '{"type":"run","version":9}'])
def test_what_is_no_journal_is_not_replayed(cli: Cli, content: str) -> None:
    Path("run.jsonl").write_text(content + "\n")
    done = cli("rlm", "replay", "run.jsonl")
    assert (done.code, "error: run.jsonl" in done.err) == (2, True)


def test_a_terminal_is_shown_nothing_that_could_move_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence = Evidence(f"a{CONTROLS}.txt", 1, 0, 9, f"{CONTROLS}[red]code[/red]")
    answer = Answer("?", f"{CONTROLS}[bold]48213[/bold]", complete=False, why=CONTROLS, evidence=(evidence,))
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", stream)
    print_answer(answer)
    monkeypatch.undo()
    assert not ESCAPES & set(stream.getvalue())
    assert "[bold]48213[/bold]" in stream.getvalue()

    with turns_view(True) as view:
        view(Started(CONTROLS, (CONTROLS,), 1, 1, "full", (), (CONTROLS,)))
        view(Turn(1, f"[/]{CONTROLS}", CONTROLS, malformed=CONTROLS))
        view(SubCall(1, 0, 1, "", CONTROLS))
        view(Done(1, CONTROLS, f"[red]{CONTROLS}\n{CONTROLS}", (CONTROLS,)))
    shown = capsys.readouterr().err
    assert "[red]" in shown
    assert not ESCAPES & set(shown)


@pytest.mark.parametrize("columns", ["20", "40", "80"])
def test_no_line_of_the_turns_is_wider_than_the_screen_and_the_operation_is_seen(
    columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is the thought shown twice, which would leave no room for the command."""
    monkeypatch.setenv("COLUMNS", columns)
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", stream)
    command = json.dumps({"thought": "why not", "op": "map", "prompt": "誰が書いたのか。" * 9, "store": "names"})
    with turns_view(True) as view:
        view(Turn(1, command, "why not"))
        view(SubCall(1, 0, 2, "", "nobody answers"))
        view(Done(1, "2 answers in names", "L1: a\tb\n" + "L2: 長い行" * 30, ("a note of some length, " * 9,)))
    shown = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", stream.getvalue())]
    assert max(map(cell_len, shown)) <= int(columns)
    assert sum(line.count("why not") for line in shown) == 1
    assert any(line.startswith(' 1 {"op":"map",') for line in shown)
    assert "   L1: a b" in shown


def test_bench_measures_pico(cli: Cli, tmp_path: Path) -> None:
    options = ("--tasks", "find", "--sizes", "4k", "-n", "1", "--modes", "rlm,grep", "--output", "out.jsonl")
    done = cli("rlm", "bench", *options)
    assert done.code == 0, done.err
    assert [line.split()[:3] for line in done.out.splitlines()[1:]] == [
        ["pico", "rlm", "find"],
        ["pico", "grep", "find"],
    ]
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [row["mode"] for row in rows] == ["rlm", "grep"]
    cells = json.loads(cli("rlm", "bench", *options[:-2], "--json").out)["cells"]
    assert [cell["n"] for cell in cells] == [1, 1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tasks", "finds"), "no kind of question 'finds'"),
        (("--sizes", "8q"), "'8q' is no size"),
        (("--sizes", "8"), "cannot be asked for"),
        (("--modes", "rag"), "There is no mode 'rag'"),
        (("--quick", "--sizes", "8k"), "leave out"),
        (("--matrix", "--plot", "a.svg"), "--matrix goes with"),
        (("pico", "--root", "pico"), "not both"),
        (("--output", "no/such/folder/a.jsonl", "--quick"), "cannot be written"),
        (("no-such-model",), "no model called"),
    ],
)
def test_bench_refuses_what_it_cannot_do(cli: Cli, options: tuple[str, ...], said: str) -> None:
    done = cli("rlm", "bench", *options)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
