"""The model for lm-evaluation-harness, against the harness's own `hf` model on the same float32 weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llamalab.checkpoints.convert import convert
from llamalab.errors import ConfigError, ContextOverflow, InputError
from tests import tiny
from tests.test_architecture import SOURCE

if TYPE_CHECKING:
    from llamalab.scoring.lm_eval import LlamalabLM

pytestmark = [pytest.mark.reference, pytest.mark.xdist_group("pytorch")]

for library in ("torch", "transformers", "accelerate", "lm_eval"):
    pytest.importorskip(library)

TASKS = Path(__file__).parent / "lm_eval_tasks"
PICO = SOURCE / "models" / "pico.gguf"
ATOL = 1e-4
RTOL = 1e-6  # the harness's own model sums in float32
LENGTH = 48
TEXT = "The code is 48213, and the name of the man who has it is Bob. " * 6


def harness_model(*arguments: Any, **options: Any) -> LlamalabLM:
    from llamalab.scoring.lm_eval import LlamalabLM

    return LlamalabLM(*arguments, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pico in float32 in both formats: what Q8_0 rounds away is the same for both."""
    folder = tmp_path_factory.mktemp("pico")
    convert(PICO, folder / "hf", to="safetensors", dtype="F32")
    convert(folder / "hf", folder / "pico.gguf", to="gguf", dtype="F32")
    return folder


@pytest.fixture(scope="module")
def ours(folder: Path) -> Iterator[LlamalabLM]:
    model = harness_model(str(folder / "pico.gguf"), n_ctx=256, n_seq=2, n_threads=1, max_length=LENGTH)
    yield model
    model.engine.close()


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder / "hf"), device="cpu", dtype="float32", batch_size=1, max_length=LENGTH)


def instances(*arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, given, number) for number, given in enumerate(arguments)]


PAIRS = [
    ("The code is", " 48213"),
    ("The code is ", "48213"),
    ("The code is \n ", "48213"),
    ("", "The code is"),
    ("hello", " world, it is me"),
    ("naïve café", " 👋 fin"),
    ("Repeat after me: silver harbor", " silver harbor"),
]


def test_log_likelihoods_are_those_of_the_harnesss_own_model(ours: LlamalabLM, theirs: Any) -> None:
    (written,) = ours.generate_until(instances(("hello", {"until": [], "max_gen_toks": 3})), True)
    requests = instances(*PAIRS, ("hello", written))
    mine, its = ours.loglikelihood(requests, True), theirs.loglikelihood(requests, True)
    assert [value for value, _ in mine] == pytest.approx([value for value, _ in its], abs=ATOL)
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in its]
    assert mine[-1][1]


def test_rolling_windows_are_those_of_the_harnesss_own_model(ours: LlamalabLM, theirs: Any) -> None:
    """One shorter than a window, one of several, and one that ends with a window."""
    ids = ours.engine.tokenize(TEXT)
    assert len(ids) > 2 * LENGTH + 7
    exact = ours.engine.detokenize(ids[: 2 * LENGTH])
    assert len(ours.engine.tokenize(exact)) == 2 * LENGTH
    requests = instances((TEXT[:40],), (TEXT,), (exact,))
    mine, its = ours.loglikelihood_rolling(requests, True), theirs.loglikelihood_rolling(requests, True)
    assert mine == pytest.approx(its, abs=ATOL, rel=RTOL)


def test_greedy_texts_are_those_of_the_harnesss_own_model(ours: LlamalabLM, theirs: Any) -> None:
    settings = {"until": [".", "\n"], "max_gen_toks": 12}
    requests = instances(*((context, settings) for context in ("The code is", "Once upon a time", "hello")))
    assert ours.generate_until(requests, True) == theirs.generate_until(requests, True)


def test_conversations_are_those_of_the_harnesss_own_model(ours: LlamalabLM, theirs: Any) -> None:
    chats = [
        [{"role": "user", "content": "Repeat after me: silver harbor"}],
        [{"role": "system", "content": "Be short."}, {"role": "user", "content": "The code is 48213."}],
    ]
    mine = [ours.apply_chat_template(chat) for chat in chats]
    assert mine == [theirs.apply_chat_template(chat) for chat in chats]
    requests = instances(*((text, "silver harbor") for text in mine))
    expected = [value for value, _ in theirs.loglikelihood(requests, True)]
    assert [value for value, _ in ours.loglikelihood(requests, True)] == pytest.approx(expected, abs=ATOL)


def test_control_tokens_come_from_the_template_alone(ours: LlamalabLM) -> None:
    special = ours.engine.info.special_tokens["<|end|>"]
    text = ours.apply_chat_template([{"role": "user", "content": "a <|end|> b"}])
    prefix, _ = ours._ids.pair(text, "yes")
    assert prefix.count(special) == 1
    assert special not in ours._ids.pair("a <|end|> b", "yes <|end|>")[0]


def test_a_token_over_the_border_leaves_the_continuation_its_own_tokens(model_folder: Path) -> None:
    """The harness's other models score nothing at all there, or a token that is half context."""
    path = tiny.once(model_folder, "tiny.gguf", tiny.write_bpe)
    model = harness_model(str(path), n_ctx=64, n_seq=1, n_threads=1)
    prefix, response = model._ids.pair("he says hel", "lo")
    assert prefix == [model.engine.info.bos_id, *model.engine.tokenize("he says hel")]
    assert response == model.engine.tokenize("lo")
    model.engine.close()


def test_a_text_that_is_too_long_is_an_error_unless_it_may_be_cut(folder: Path, ours: LlamalabLM) -> None:
    requests = instances((TEXT, " it"))
    with pytest.raises(ContextOverflow, match="truncate=True"):
        ours.loglikelihood(requests, True)
    cutting = harness_model(
        str(folder / "pico.gguf"), n_ctx=256, n_seq=0, n_threads=1, max_length=LENGTH, truncate=True
    )
    ids = cutting.engine.tokenize(TEXT.rstrip())[-LENGTH + 1 :]
    kept = cutting._score([(ids, cutting.engine.tokenize("  it"))], "", [], True)
    assert cutting.loglikelihood(requests, True)[0][0] == pytest.approx(kept[0].total, abs=1e-9)
    cutting.engine.close()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [({}, "Name one model"), ({"model": "pico", "pretrained": "pico"}, "Name one model")],
)
def test_one_model_has_to_be_named(arguments: Mapping[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        harness_model(**arguments)


def test_requests_that_mean_nothing_are_refused(ours: LlamalabLM) -> None:
    with pytest.raises(InputError, match="continuation is empty"):
        ours.loglikelihood(instances(("a", "")), True)
    with pytest.raises(ConfigError, match="'num_beams' means nothing"):
        ours.generate_until(instances(("a", {"until": [], "num_beams": 4})), True)


def test_our_tasks_have_the_same_values_with_both(
    ours: LlamalabLM, theirs: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each request that the harness logs, and so its results."""
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(TASKS)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    names = ["llamalab_codes", "llamalab_text", "llamalab_write"]
    tasks = TaskManager(include_path=str(TASKS), include_defaults=False)
    mine, its = (
        simple_evaluate(model=model, tasks=names, task_manager=tasks, bootstrap_iters=0, log_samples=True)
        for model in (ours, theirs)
    )
    for name in names:
        assert len(mine["samples"][name]) == len(its["samples"][name]) == 4
        for one, other in zip(mine["samples"][name], its["samples"][name], strict=True):
            assert one["doc"] == other["doc"]
            values, expected = flat(one["resps"]), flat(other["resps"])
            close = {
                number: pytest.approx(value, abs=ATOL, rel=RTOL)
                for number, value in enumerate(expected)
                if isinstance(value, float)
            }
            assert values == [close.get(number, value) for number, value in enumerate(expected)]
        numbers = {key: value for key, value in its["results"][name].items() if isinstance(value, float)}
        assert {key: mine["results"][name][key] for key in numbers} == pytest.approx(numbers, rel=1e-5)


def test_the_harnesss_command_knows_the_model(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "llamalab.scoring.lm_eval",
        "--model",
        "llamalab",
        "--model_args",
        "model=pico,n_threads=1",
    ]
    command += ["--tasks", "llamalab_codes", "--include_path", str(TASKS), "--output_path", str(tmp_path)]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=TASKS, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(next(tmp_path.rglob("results_*.json")).read_text())
    assert results["n-samples"]["llamalab_codes"]["effective"] == 4
    assert 0 < results["results"]["llamalab_codes"]["acc,none"] <= 1
    assert results["config"]["llamalab_mode"] == "strict"


def flat(values: Any) -> list[Any]:
    """Numbers as numbers, all else as text, in order."""
    if isinstance(values, list | tuple):
        return [item for value in values for item in flat(value)]
    try:
        return [float(values)]
    except (TypeError, ValueError):
        return [str(values)]
