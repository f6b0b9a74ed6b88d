"""Responses as policies write them, with the log probability of each under the distribution that it was drawn from.

Requests run one after the other, each with a seed made of the policy's seed and the response's id: a response does not
depend on what was generated before it, so a run that was stopped goes on as if it never had been.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from llamalab.arena.settings import Writing
from llamalab.engine import Engine, GenerateRequest, Generation, Message, SamplingParams
from llamalab.engines import load
from llamalab.errors import ConfigError, EngineError, LlamalabError, ModelFileError, OutOfMemory
from llamalab.scoring.policy import Policy
from llamalab.scoring.rows import error_type
from llamalab.scoring.spans import Tokens, prefix_ids

_FATAL = (ModelFileError, ConfigError, OutOfMemory)  # errors that every other response would meet as well
_SEEDS = 2**32 - 2
# As strict scoring computes, so that what is said at generation is what is said of it afterwards, but for rounding.
_LLAMA_CPP = {"type_k": "f32", "type_v": "f32", "flash_attn": False}


def response_id(policy: str, prompt_id: str, draw: int) -> str:
    """The name of a response; `draw` counts those of one policy to one prompt, from 0."""
    return f"{policy}/{prompt_id}/{draw}"


def generate(
    policy: Policy, writing: Writing, prompts: Sequence[Mapping[str, Any]], per_prompt: int, *, done: int = 0
) -> Iterator[dict[str, Any]]:
    """Rows of responses of one policy, prompt by prompt.

    A row has "response_id", "prompt_id", "policy", "draw" and "seed"; then "response", "response_ids",
    "finish_reason", "finished" (it ended by its own end token), "logprob" (nats, under the distribution it was drawn
    from) and "raw_logprob" (under the model's own), or "error" and "message".

    Args:
        policy: who writes.
        writing: how long, and up to what.
        prompts: rows of `prompts.jsonl`.
        per_prompt: responses to each.
        done: rows that are there already.

    Raises:
        ModelNotFound, ModelFileError, ConfigError, OutOfMemory: the model cannot be used at all.
    """
    wanted = [(prompt, draw) for prompt in prompts for draw in range(per_prompt)][done:]
    if not wanted:
        return
    with closing(_engine(policy)) as engine:
        tokens = Tokens(engine.info, engine)
        for prompt, draw in wanted:
            yield _row(engine, tokens, policy, writing, prompt, draw)


def _engine(policy: Policy) -> Engine:
    exact = _LLAMA_CPP if policy.provider == "llama_cpp" else {}
    # One at a time: beside others, sums are formed in another order, and a draw may fall on another token.
    return load(policy.spec, **{**exact, **policy.options, "n_seq": 1})


def _row(
    engine: Engine, tokens: Tokens, policy: Policy, writing: Writing, prompt: Mapping[str, Any], draw: int
) -> dict[str, Any]:
    id = response_id(policy.name, prompt["prompt_id"], draw)
    row = {"response_id": id, "prompt_id": prompt["prompt_id"], "policy": policy.name, "draw": draw}
    row["seed"] = seed = _seed(policy, id)
    try:
        said = _generated(engine, tokens, policy, _params(tokens, policy, writing, seed), asked(prompt))
    except _FATAL:
        raise
    except LlamalabError as error:
        return row | {"response": "", "error": error_type(error), "message": str(error)}
    logprobs = said.logprobs or ()
    return row | {
        "response": said.text,
        "response_ids": list(said.ids),
        "finish_reason": said.finish_reason,
        "finished": bool(said.ids) and said.ids[-1] in engine.info.stop_ids,
        "logprob": math.fsum(token.sampled for token in logprobs),
        "raw_logprob": math.fsum(token.raw for token in logprobs),
    }


def asked(prompt: Mapping[str, Any]) -> str | Sequence[Message]:
    """What a row of `prompts.jsonl` asks: a conversation, or a text."""
    found: str | Sequence[Message] = prompt.get("messages") or prompt["prompt"]
    return found


def _params(tokens: Tokens, policy: Policy, writing: Writing, seed: int) -> SamplingParams:
    decoding = policy.decoding
    return SamplingParams(
        max_tokens=writing.max_tokens,
        temperature=decoding.temperature,
        top_k=decoding.top_k,
        top_p=decoding.top_p,
        min_p=decoding.min_p,
        seed=seed,
        stop=(*writing.stop, *tokens.layout(policy).chat.template.stop),
    )


def _generated(
    engine: Engine, tokens: Tokens, policy: Policy, params: SamplingParams, prompt: str | Sequence[Message]
) -> Generation:
    request = GenerateRequest(prefix_ids(tokens, policy, prompt), params, logprobs=0)
    for event in engine.generate([request]):
        if isinstance(event, Generation):
            return event
    raise EngineError("The engine ended a request without saying how.")


def _seed(policy: Policy, id: str) -> int:
    digest = hashlib.blake2b(f"{policy.seed or 0}\0{id}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % (_SEEDS + 1)
