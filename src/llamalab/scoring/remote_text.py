"""What is sent to a remote endpoint: prompt, response and end as one text, which the endpoint cuts into tokens itself.

Only text can be sent, so control tokens are sent by their names. A name in a message or a response would become that
token too; such texts are refused here, and can be scored with a local engine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from llamalab.engine import Message
from llamalab.errors import ConfigError, EmptyResponse, InputError, TemplateMissing
from llamalab.scoring.policy import Policy
from llamalab.templates.choose import choose_template
from llamalab.templates.messages import conversation, strings

CONTROL = re.compile(
    r"<\|[^\s<>|]{1,64}\|>|<｜[^\s<>｜]{1,64}｜>|</?s>|\[/?INST\]"
    r"|<(?:bos|eos|pad|unk|mask|start_of_turn|end_of_turn|start_of_image|think|/think|tool_call|/tool_call)>"
)
"""What the names of control tokens look like, in the vocabularies of Llama, Mistral, Gemma, Qwen, DeepSeek and Phi."""

_BOS = ("<|begin_of_text|>", "<｜begin▁of▁sentence｜>", "<bos>", "<s>")
_MARK = "\ue000"  # a private character: stands for the assistant's words


@dataclass(frozen=True, slots=True)
class RemoteText:
    """Prompt, response and end, to be sent one behind the other.

    Attributes:
        prompt: all before the response; no BOS, which endpoints add by themselves.
        response: to score.
        end: name of the token that ends it; "" where it is not scored.
        template: name of the chat template; None: the prompt is continued as plain text.
    """

    prompt: str
    response: str
    end: str
    template: str | None

    @property
    def whole(self) -> str:
        """All three."""
        return self.prompt + self.response + self.end


def remote_text(
    policy: Policy, prompt: str | Sequence[Message], response: str, *, finished: bool, end: str | None = None
) -> RemoteText:
    """The text to send for `response` to `prompt` under `policy`.

    Args:
        policy: its system prompt and template.
        prompt: a user's message, or a conversation; without a template, text to continue.
        response: to score.
        finished: the response ended by itself, so its end token is scored.
        end: name of the end token; None: the first control token that the template writes behind an assistant's words.

    Raises:
        EmptyResponse: nothing to score.
        InputError: an empty prompt, text that is not Unicode, or that looks like a control token.
        TemplateMissing: a conversation or a system prompt without a template, or no such template.
        ConfigError: the end is to be scored and nobody says what it is.
    """
    if not isinstance(response, str) or not response:
        raise EmptyResponse("The response is empty: it has no token to score.")
    if not prompt:
        raise InputError("The prompt is empty: an endpoint gives no probability for the first token of a text.")
    name = policy.template
    if name is None and (not isinstance(prompt, str) or policy.system_prompt is not None):
        what = "a system prompt" if isinstance(prompt, str) else "a prompt of several messages"
        raise TemplateMissing(
            f"Policy '{policy.name}' has no chat template, so {what} cannot be written for {policy.spec}. Endpoints do "
            "not tell theirs: name one with template (llama3, chatml, ... or a file), or give the prompt as one text."
        )
    if name is None:
        text = str(prompt)
        _check_plain(text, "The prompt", policy)
    else:
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else conversation(prompt)
        if policy.system_prompt is not None:
            if any(turn["role"] == "system" for turn in turns):
                raise InputError(
                    f"The prompt has a system message and policy '{policy.name}' a system prompt of its own. Take one "
                    "away."
                )
            turns = [{"role": "system", "content": policy.system_prompt}, *turns]
        for said in strings(turns):
            _check_plain(said, "The prompt", policy)
        template = choose_template(name, eos=end or "", variables=policy.template_variables)
        text = template.render(turns)
        text = next((text.removeprefix(bos) for bos in _BOS if text.startswith(bos)), text)
        if end is None:
            written = template.render([{"role": "user", "content": "x"}, {"role": "assistant", "content": _MARK}])
            found = CONTROL.search(written.rpartition(_MARK)[2])
            end = found[0] if found else None
    _check_plain(response, "The response", policy)
    if finished and not end:
        raise ConfigError(
            f"The response is said to be finished, and nothing says which token ends one of {policy.spec}. Name it "
            "with the option end (e.g. end='<|eot_id|>'), or score with finished=False, without the end."
        )
    return RemoteText(text, response, (end or "") if finished else "", name)


def _check_plain(text: str, what: str, policy: Policy) -> None:
    """Refuse a text that the endpoint would read as something else.

    Raises:
        InputError: it looks like a control token, or is not valid Unicode.
    """
    found = CONTROL.search(text)
    if found:
        raise InputError(
            f"{what} contains {found[0]!r} at character {found.start()}, which {policy.spec} may read as a control "
            "token. Endpoints take text only, so what it would mean there is not known; score it with a local engine."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} is not valid Unicode: character {error.start} is the lone surrogate "
            f"U+{ord(text[error.start]):04X}."
        ) from error
