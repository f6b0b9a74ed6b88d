"""`llamalab arena`: run, status and report, as somebody types them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llamalab.arena.results import read_results
from tests.arena.rows_cases import made_rows, write_run
from tests.cli.conftest import Cli

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "arena_sample"


@pytest.fixture
def config(tmp_path: Path, model: str) -> Path:
    """Two policies as the guide has them: nothing but policies."""
    (tmp_path / "judge.py").write_text("def length(prompt, response, row):\n    return min(len(response), 20) / 20\n")
    rows = [{"id": f"q{number}", "prompt": f"say {number}"} for number in range(5)]
    (tmp_path / "q.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    path = tmp_path / "arena.yaml"
    path.write_text(
        f"policies:\n  p0: {{model: {model}, temperature: 0.9}}\n  hot: {{model: {model}}}\n"
        "responses: {max_tokens: 5}\nestimators: {replicates: 100}\n"
    )
    return path


def test_the_rest_of_a_bare_file_comes_from_the_command_line(cli: Cli, config: Path, tmp_path: Path) -> None:
    options = ("--prompts", str(tmp_path / "q.jsonl"), "--num-prompts", "4", "--judge", "python:judge.length")
    options += ("--judge-range", "0,1", "--out", str(tmp_path / "out"))
    done = cli("arena", "run", str(config), *options)

    assert done.code == 0, done.err
    assert [line.split()[:2] for line in done.out.splitlines()[1:3]] == [["p0", "SHOWN"], ["hot", "REFUSED"]]
    assert "4 responses to 4 prompts, values on the judge's scale" in done.out
    assert f"report: {tmp_path / 'out' / 'report.html'}" in done.out
    assert "oracle: there is none, so values stand on the judge's scale." in done.err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["commands"] == [
        f"llamalab arena run {config} --prompts {tmp_path / 'q.jsonl'} --num-prompts 4 --judge python:judge.length "
        "--judge-range 0,1"
    ]

    looked = cli("arena", "status", str(config), "--out", str(tmp_path / "out"), "--json")
    steps = {step["step"]: step["done"] for step in json.loads(looked.out)["steps"]}
    assert steps == {
        "prompts": 4, "responses": 4, "draws": 0, "logprobs": 4, "judge": 4, "labels": 0, "estimate": 1, "report": 1
    }  # fmt: skip

    (tmp_path / "out" / "report.html").unlink()
    again = cli("arena", "report", str(tmp_path / "out"))
    assert (again.code, again.out) == (0, done.out)
    assert (tmp_path / "out" / "report.html").is_file()


def test_steps_and_what_is_left(cli: Cli, config: Path, tmp_path: Path) -> None:
    common = (str(config), "--prompts", str(tmp_path / "q.jsonl"), "--out", str(tmp_path / "out"))
    assert cli("arena", "run", *common, "--only", "prompts", "--judge", "exact_match").code == 0
    looked = cli("arena", "status", str(config), "--out", str(tmp_path / "out"))

    rows = {line.split()[0]: line.split()[1:4] for line in looked.out.splitlines()[1:-1]}
    assert rows["prompts"] == ["5", "0", "0"]
    assert rows["responses"] == ["0", "0", "5"]
    assert rows["logprobs"] == ["0", "0", "5"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--judge", "python:judge.length"), "the command line, judge.range: it is missing"),
        (("--judge-range", "0,1"), "--judge-range goes with --judge"),
        (("--judge", "llm", "--judge-range", "0"), "the command line, judge.range: a range is two numbers"),
        (("--judge", "llm", "--judge-range", "a,b"), "--judge-range takes two numbers"),
        (("--num-prompts", "0"), "the command line, prompts.num: "),
        (("--only", "score"), "There is no step 'score'."),
        (("--only", "judge", "--from", "judge"), "not both"),
        (("--prompts", "no.jsonl", "--judge", "exact_match"), "the command line, prompts.file: there is no file"),
    ],
)
def test_bad_input_is_one_paragraph_and_exit_code_2(
    cli: Cli, config: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    done = cli("arena", "run", str(config), "--out", str(tmp_path / "out"), *options)

    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err
    assert done.err.rstrip().splitlines()[-1].startswith("error: ")


def test_a_config_or_folder_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    for command in ("run", "status", "report"):
        done = cli("arena", command, str(tmp_path / "no.yaml"))
        assert (done.code, "cannot be read" in done.err) == (2, True)
    done = cli("arena", "report", str(tmp_path))
    assert (done.code, "is no run folder" in done.err) == (2, True)


def test_a_folder_that_cannot_be_made_is_named(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = write_run(tmp_path / "run", made_rows(40))
    done = cli("arena", "report", str(run), "--out", str(tmp_path / "file" / "out"))
    assert done.code == 2
    assert "The folder" in done.err
    assert "cannot be made" in done.err


def test_rows_go_into_cje_s_layout_and_come_back_from_it(cli: Cli, tmp_path: Path) -> None:
    run, cje = write_run(tmp_path / "run", made_rows(60)), tmp_path / "cje"

    assert cli("arena", "report", str(run), "--cje", str(cje)).code == 0
    assert cli("arena", "report", str(cje), "--out", str(tmp_path / "again")).code == 0
    first, second = (read_results(folder / "results.json") for folder in (run, tmp_path / "again"))
    one, other = ({v.estimator: v.value for v in r.policy("far").values if v.scale == "judge"} for r in (first, second))
    assert one["snips"] == pytest.approx(other["snips"])


@pytest.mark.slow
@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the arena sample is not here")
def test_report_on_the_arena_sample(cli: Cli, tmp_path: Path) -> None:
    done = cli("arena", "report", str(SAMPLE), "--out", str(tmp_path))

    assert done.code == 0
    verdicts = {line.split()[0]: line.split()[1:] for line in done.out.splitlines()[1:5]}
    assert verdicts["base"][0] == "SHOWN"
    assert verdicts["clone"] == ["REFUSED", "21.5%"]
    assert verdicts["parallel_universe_prompt"] == ["REFUSED", "0.342%"]
    assert verdicts["unhelpful"] == ["REFUSED", "0.776%"]
    assert "A/A FAILED: 10.2% of the rows" in done.out


WITHOUT_EXTRA = """
import importlib.util, sys
from llamalab.cli import app

GONE = ("scipy", "sklearn", "pyarrow", "matplotlib", "cje")
here = importlib.util.find_spec

class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in GONE:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Gone())
importlib.util.find_spec = lambda name, package=None: None if name in GONE else here(name, package)
sys.exit(app.run(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", ["run", "report"])
def test_without_its_extra_the_arena_names_it(command: str, tmp_path: Path) -> None:
    (tmp_path / "arena.yaml").write_text(
        "policies: {p0: {model: pico, temperature: 0.9}, pi: {model: pico, temperature: 0.8}}\nbase: p0\n"
        "prompts: {file: prompts.jsonl}\njudge: {kind: exact_match}\n"
    )
    arguments = [sys.executable, "-c", WITHOUT_EXTRA, "arena", command, "arena.yaml"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'llamalab[arena]'" in done.stderr
    assert "Traceback" not in done.stderr
