"""Parts of `rlm.py` that run models: pico, one with random weights, and a synthetic 1B."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import llguidance
import numpy as np
from tests.tiny import write_bpe

import synthetic
from llamalab import rlm
from llamalab.chat import EngineChat
from llamalab.engine import GenerateRequest, Generation, Reply, SamplingParams
from llamalab.engines import load
from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.errors import InputError
from llamalab.rlm import commands, compact, grammar
from llamalab.rlm.bench import TASKS, Outcome, make_case
from llamalab.rlm.bench.baselines import reading_tokens
from llamalab.rlm.bench.matrix import Listened
from llamalab.rlm.bench.runner import answer
from llamalab.rlm.config import RlmConfig, default_config
from llamalab.rlm.providers import Pool, Provider, open_pool
from llamalab.rlm.replay import replay
from rlm_line import Line

ASKED = ("find", "count", "absent")
OTHERS = ("find-other-wording", "count-other-wording", "absent-other-wording")


class Drawing(Listened):
    """A chat model that draws its replies, each with a seed of its own, instead of taking the likeliest words."""

    def __init__(self, model: Any) -> None:
        self.said: list[str] = []
        super().__init__(model, self.said.append)

    def chat(self, messages: Any, params: SamplingParams | None = None, **rest: Any) -> Reply:
        drawn = replace(params or SamplingParams(), temperature=1.0, seed=len(self.said))
        return super().chat(messages, drawn, **rest)


# ---- turns and replay --------------------------------------------------------------------------------------------


def pico_turns(quick: bool) -> list[Line]:
    """A thousand turns of pico, drawn and not greedy; each run is written down, the first ones are replayed."""
    return _turns("pico", 15 if quick else 1000)


def random_turns(quick: bool) -> list[Line]:
    """A thousand turns of a model with random weights, which knows nothing but what the schema lets it say.

    In states of every kind, sixteen at once after short prompts; and some whole runs, which are replayed.
    """
    n, rng = (16 if quick else 1008), Random(0)
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(_random_engine(Path(folder), n_ctx=8192, n_seq=16)) as engine,
    ):
        prompt = engine.tokenize("Question: what is the access code of the Blue Harbor vault?")
        cut = rejected = 0
        for _ in range(0, n, 16):
            asked = [_state(rng) for _ in range(16)]
            requests = [
                GenerateRequest(
                    prompt,
                    SamplingParams(seed=rng.getrandbits(30), max_tokens=grammar.longest_sentence(schema)),
                    schema=schema,
                )
                for _, schema in asked
            ]
            for event in engine.generate(requests):
                if isinstance(event, Generation):
                    rejected += not _parses(asked[event.request][0], event.text)
                    cut += event.finish_reason != "stop"
    return [
        Line("random", f"random weights: commands rejected by the parser, of {n:,} turns", rejected, "", 0),
        Line("random", "random weights: turns that ended before their command did", cut, "", 0),
        *_turns("random weights", 4 if quick else 80),
    ]


def _turns(kind: str, wanted: int) -> list[Line]:
    """Whole runs with so many turns; the first 180 are replayed."""
    rejected = errors = turns = replayed = different = 0
    with tempfile.TemporaryDirectory() as folder:
        for at, journal, events in _runs(kind, Path(folder), wanted):
            said = [event for event in events if isinstance(event, rlm.Turn)]
            turns += len(said)
            rejected += sum(bool(turn.malformed) for turn in said)
            errors += sum(isinstance(event, rlm.Done) and bool(event.error) for event in events)
            if at < 180:
                replayed += 1
                different += not replay(journal).equal
    return [
        Line("turns", f"{kind}: commands of whole runs rejected by the parser, of {turns:,} turns", rejected, "", 0),
        Line("turns", f"{kind}: valid commands that ended in an error (a bad pattern ...)", errors),
        Line("turns", f"{kind}: runs whose replay differs, of {replayed}", different, "", 0),
    ]


def _state(rng: Random) -> tuple[Callable[[str], object], dict[str, Any]]:
    """The parser and the schema of a turn in some state of a run."""
    variables = [f"v{number}" for number in range(rng.choice((0, 1, 3)))]
    if rng.random() < 0.2:
        return compact.parse_command, compact.command_schema(variables=variables)
    ops = grammar.allowed_ops(sub_calls=rng.random() < 0.7, last=rng.random() < 0.1)
    return commands.parse_command, grammar.turn_schema(ops, variables=variables, documents=rng.choice((1, 3)))


def _random_engine(folder: Path, *, n_ctx: int = 32768, n_seq: int = 1) -> LlamaCppEngine:
    return LlamaCppEngine(write_bpe(folder / "random.gguf", context=32768), n_ctx=n_ctx, n_seq=n_seq)


def _runs(kind: str, folder: Path, turns: int) -> Iterator[tuple[int, Path, list[rlm.Event]]]:
    """Runs until they have so many turns: number, journal, events."""
    config, pool = _pool_of(kind, folder)
    seen = at = 0
    with pool:
        while seen < turns:
            case = make_case(list(TASKS)[at % len(TASKS)], 8_000, at)
            text, journal = folder / f"{at}.txt", folder / f"{at}.jsonl"
            text.write_text(case.text)
            events = list(rlm.events(case.question, [text], config=config, pool=pool, journal=journal))
            seen += sum(isinstance(event, rlm.Turn) for event in events)
            yield at, journal, events
            at += 1


def _pool_of(kind: str, folder: Path) -> tuple[RlmConfig, Pool]:
    config = replace(default_config(), bypass_enabled=False, max_iterations=4, max_sub_calls=2)
    if kind == "pico":
        return config, Pool([Provider("pico", Drawing(EngineChat(load("pico", n_ctx=2048))))])
    model = Drawing(EngineChat(_random_engine(folder)))
    return replace(config, protocol="full", output_limit=600, sub_tokens=24), Pool([Provider("random", model)])


# ---- the grammar -------------------------------------------------------------------------------------------------


def walks(quick: bool) -> list[Line]:
    """Random walks through the grammar of both protocols, in states of every kind: all of them parse."""
    n, rng = (200 if quick else 10_000), Random(0)
    refused = 0
    for _ in range(n):
        parse, schema = _state(rng)
        refused += not _parses(parse, _walk(schema, rng))
    return [Line("walks", f"random walks of the grammar that do not parse, of {n:,}", refused, "", 0)]


@lru_cache(maxsize=1)
def byte_tokenizer() -> llguidance.LLTokenizer:
    """A vocabulary of all bytes and one token that ends a text."""

    class Bytes:
        eos_token_id = 256
        bos_token_id = None
        tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")
        special_token_ids = (256,)

        def __call__(self, text: str | bytes) -> list[int]:
            return list(text if isinstance(text, bytes) else text.encode())

    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()))


@lru_cache(maxsize=1000)
def _matcher(schema: str) -> llguidance.LLMatcher:
    compact = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
    compiled = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=compact)
    return llguidance.LLMatcher(byte_tokenizer(), compiled, log_level=0)


def _walk(schema: dict[str, Any], rng: Random) -> str:
    """Any bytes that the grammar allows; the end of a text is taken more often than chance has it."""
    matcher = _matcher(json.dumps(schema)).deep_copy()
    said = bytearray()
    while not matcher.is_stopped():
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little")[:257])
        token = ord('"') if ord('"') in allowed and rng.random() < 0.08 else int(rng.choice(allowed.tolist()))
        assert matcher.consume_token(token)
        if token < 256:
            said.append(token)
    return said.decode()


def _parses(parse: Callable[[str], object], text: str) -> bool:
    try:
        parse(text)
    except InputError:
        return False
    return True


def grammar_cost(quick: bool) -> list[Line]:
    """The language of the full protocol against free text, on a 1B's shape: tokens per second, by turns."""
    path = synthetic.quantised_model(synthetic.LLAMA_1B)
    tokens, rounds = (12, 1) if quick else (64, 5)
    schema = grammar.turn_schema(variables=("hits", "total", "note"))
    with_engine = LlamaCppEngine(path, n_ctx=512)
    compiler = with_engine._weights.compiler
    began = time.perf_counter()
    compiler.compile(schema)
    compiled = time.perf_counter() - began
    params = SamplingParams(temperature=1.0, max_tokens=tokens, seed=1, ignore_eos=True)
    prompt = with_engine.tokenize("The quick brown fox jumps over the lazy dog. " * 2)
    ratios, masks = [], []
    for _ in range(rounds):
        rate = {}
        for name, form in (("free", None), ("schema", schema)):
            (done,) = [
                event
                for event in with_engine.generate([GenerateRequest(prompt, params, schema=form)])
                if isinstance(event, Generation)
            ]
            rate[name] = (len(done.ids) - 1) / done.timings.generation
            if form is not None:
                masks += _mask_times(compiler, schema, done.ids)
        ratios.append(rate["schema"] / rate["free"])
    with_engine.close()
    return [
        Line("grammar", "cost on a 1B, share of the speed", max(1 - statistics.median(ratios), 0), "", 0.10),
        Line("grammar", "compiled, 18 commands, 128,256 tokens", 1e3 * compiled, "ms"),
        Line("grammar", "a mask, median", 1e6 * statistics.median(masks), "µs"),
    ]


def _mask_times(compiler: Any, schema: dict[str, Any], ids: tuple[int, ...]) -> list[float]:
    constraint, times = compiler.compile(schema), []
    for token in ids:
        if constraint.complete:
            break
        began = time.perf_counter()
        constraint.forbidden()
        times.append(time.perf_counter() - began)
        constraint.advance(token)
    return times


# ---- pico --------------------------------------------------------------------------------------------------------


def pico(quick: bool) -> list[Line]:
    """Its own kinds of question, over texts of 200,000 to 1,000,000 characters."""
    config = replace(default_config(), bypass_enabled=False)
    with open_pool(config) as pool:
        asked = [_ask(pool, config, task, seed) for task, seed in _plan(ASKED, 3 if quick else 100)]
        others = [_ask(pool, config, task, seed) for task, seed in _plan(OTHERS, 3 if quick else 60)]
        unsaid = [_ask(pool, config, "unsaid", seed) for seed in range(1 if quick else 20)]
    tokens, reading = sum(o.tokens for o in asked), sum(o.reading for o in asked)
    seconds = sorted(o.seconds for o in asked)
    return [
        Line("pico", f"right, canonical wording, of {len(asked)}", _right(asked), "", 0.90, least=True),
        *(Line("pico", f"  {task}", _right([o for o in asked if o.task == task])) for task in ASKED),
        Line("pico", f"right, other wordings, of {len(others)}", _right(others)),
        *(Line("pico", f"  {task}", _right([o for o in others if o.task == task])) for task in OTHERS),
        Line("pico", f"right where the thing is named and the answer is not there, of {len(unsaid)}", _right(unsaid)),
        Line("pico", "tokens, share of reading it", tokens / reading, "", 0.05),
        Line("pico", "tokens of a question", tokens / len(asked)),
        Line("pico", "slowest question", seconds[-1], "s", 3.0),
        Line("pico", "median question", statistics.median(seconds), "s"),
    ]


def _plan(tasks: tuple[str, ...], n: int) -> list[tuple[str, int]]:
    return [(tasks[at % len(tasks)], at) for at in range(n)]


def _ask(pool: Pool, config: RlmConfig, task: str, seed: int) -> Outcome:
    """One question over a text of its own, from a file: opening it counts."""
    size = Random(f"size/{task}/{seed}").randint(200_000, 1_000_000)
    case = make_case(task, size, seed)
    return answer(case, "rlm", pool, config, reading_tokens(pool.of("root")[0].model, case.text))


def _right(outcomes: list[Outcome]) -> float:
    return sum(outcome.right for outcome in outcomes) / max(len(outcomes), 1)
