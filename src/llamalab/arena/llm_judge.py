"""A chat model as a judge: a rubric, an answer that cannot be anything but a reason and a score."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence

from llamalab.arena.judges import Judged, JudgeError, Judgement, Prompt, ToJudge, checked
from llamalab.arena.settings import JudgeSettings
from llamalab.engine import ChatModel, SamplingParams
from llamalab.errors import (
    ConfigError,
    InputError,
    LlamalabError,
    ModelFileError,
    OutOfMemory,
    ProviderError,
    ProviderUnavailable,
    TemplateMissing,
)
from llamalab.scoring.rows import error_type

RUBRIC = (
    "You judge how well a response answers a prompt: whether it is right, helpful, complete and clear. A response that "
    "is wrong or does not answer is worth little however well it is written."
)
"""What a judge goes by where the configuration gives no rubric."""

FATAL = (ModelFileError, ConfigError, OutOfMemory, TemplateMissing)
"""Errors that every other response would meet as well."""

_REFUSED = (401, 403, 404)
"""HTTP statuses of a key or a model that an endpoint does not take: it takes it for no other response either."""

_REASON = 300  # characters; a reason that never ends would leave no room for the score
_TOKENS = 512  # for the whole answer: a character of a reason takes one at most, and the score a few


def open_llm_judge(settings: JudgeSettings) -> LlmJudge:
    """Load the judge's model, or connect to where it runs.

    Raises:
        ConfigError: no model.
        ModelFileError: it cannot be loaded.
        ProviderError: it runs elsewhere, and there is no key for it.
    """
    from llamalab.chat import chat_model

    policy = settings.model
    if policy is None:
        raise ConfigError("A judge of kind 'llm' needs a model. Name one under judge.model.")
    if policy.remote:
        there = chat_model(policy.spec, template=policy.template, **policy.options)
        return LlmJudge(there, settings, system_prompt=policy.system_prompt)
    # One sequence: an answer must not depend on which other responses are judged beside it.
    options = {"n_seq": 1, **policy.options}
    chat = chat_model(policy.spec, template=policy.template, template_variables=policy.template_variables, **options)
    return LlmJudge(chat, settings, system_prompt=policy.system_prompt)


class LlmJudge:
    """A judge on any chat model; closes it.

    Each response is judged once at temperature 0, or, with `repeats` above 1, so often at temperature 1 with the seeds
    0, 1, ...; its score is the mean then. At temperature 0 all repeats would be the same.

    Args:
        chat: asked once for each response and repeat.
        settings: its rubric, range and repeats.
        system_prompt: put in front of the rubric.
    """

    def __init__(self, chat: ChatModel, settings: JudgeSettings, *, system_prompt: str | None = None) -> None:
        self.range = settings.range
        low, high = settings.range
        self._chat = chat
        self._repeats = settings.repeats
        self._schema = json.dumps(
            {
                "type": "object",
                "properties": {
                    "reason": {"type": "string", "maxLength": _REASON},
                    "score": {"enum": _scores(low, high)},
                },
                "required": ["reason", "score"],
                "additionalProperties": False,
            }
        )
        rubric = settings.rubric or RUBRIC
        scale = f"Give a short reason first, then a score from {low:g} (worst) to {high:g} (best), as JSON."
        self._system = "\n\n".join(part for part in (system_prompt, rubric, scale) if part)

    def judge(self, items: Sequence[ToJudge]) -> Iterator[tuple[str, Judgement]]:
        """See `Judge.judge`.

        Raises:
            ModelFileError, ConfigError, OutOfMemory, TemplateMissing, ProviderError: the model cannot be used at all.
            ProviderUnavailable: where it runs, nobody answers; that is no property of the response.
        """
        for item in items:
            answers = []
            for repeat in range(self._repeats):
                answer = self._asked(item, repeat)
                answers.append(answer)
                if isinstance(answer, JudgeError):
                    break
            yield item.id, _mean(answers)

    def close(self) -> None:
        """Free the model."""
        self._chat.close()

    def _asked(self, item: ToJudge, repeat: int) -> Judgement:
        # What is judged stands between marks, and the last word is ours: a response that says "give me full marks" is
        # a text to judge, though no mark makes a weak model immune to it.
        question = (
            f"<prompt>\n{_text(item.prompt)}\n</prompt>\n\n<response>\n{item.response}\n</response>\n\n"
            "Judge the response."
        )
        if item.reference is not None:
            question = f"<reference>\n{item.reference}\n</reference>\n\n{question}"
        temperature = 0.0 if self._repeats == 1 else 1.0
        params = SamplingParams(max_tokens=_TOKENS, temperature=temperature, seed=repeat)
        messages = [{"role": "system", "content": self._system}, {"role": "user", "content": question}]
        try:
            reply = self._chat.chat(messages, params, schema=self._schema)
        except FATAL:
            raise
        except LlamalabError as error:
            if isinstance(error, ProviderError) and error.status in _REFUSED:
                raise
            if isinstance(error, ProviderUnavailable) and error.usage is None:  # what it charges for, it has answered
                raise
            return JudgeError(error_type(error), str(error))
        if reply.finish_reason == "length":
            return JudgeError("no_answer", f"The judge did not come to a score within {_TOKENS} tokens.")
        try:
            return self._parsed(reply.text)
        except InputError as error:
            return JudgeError("no_answer", str(error))

    def _parsed(self, text: str) -> Judgement:
        """The answer of a model; one that no schema holds may be anything."""
        try:
            answer = json.loads(text)
            score, reason = float(answer["score"]), str(answer["reason"])
        except (ValueError, TypeError, KeyError):
            raise InputError(f"The judge's answer has no score: {text[:200]!r}.") from None
        return checked(score, reason, self.range)


def _scores(low: float, high: float) -> list[float]:
    """The scores that can be given: 20 to 200 steps of 1, 0.1, 0.01, ... A free number may have digits without end."""
    digits = -math.floor(math.log10((high - low) / 20))
    steps = math.floor((high - low) * 10.0**digits + 1e-9)
    scores = [round(low + step * 10.0**-digits, max(digits, 0) + 6) for step in range(steps + 1)]
    return [*scores[:-1], high] if math.isclose(scores[-1], high) else [*scores, high]


def _mean(answers: Sequence[Judgement]) -> Judgement:
    """One judgement of several; one that failed has no score, so the mean of the others would be another judge's."""
    judged = [answer for answer in answers if isinstance(answer, Judged)]
    if len(judged) < len(answers):
        return next(answer for answer in answers if isinstance(answer, JudgeError))
    return Judged(sum(answer.score for answer in judged) / len(judged), judged[0].reason)


def _text(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message.get('role')}: {message.get('content')}" for message in prompt)
