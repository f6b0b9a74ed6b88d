"""Which tokens a response is, and what they stand after: the exact ids that are scored.

The prefix is what the chat template writes before an assistant's words. The response is tokenised on its own, as text:
`<|eot_id|>` in it is ten characters, no BOS and no space is put in front of it. So no token ever reaches over the
border between the two, and nothing has to be subtracted. Tokenised in one go, the same text may have other ids;
`Span.agrees_jointly` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self, cast

from llamalab.chat import EngineChat
from llamalab.engine import Engine, Message, ModelInfo
from llamalab.engines.request import checked_ids
from llamalab.errors import ConfigError, EmptyResponse, InputError, TemplateMissing
from llamalab.scoring.policy import Policy
from llamalab.templates import Piece
from llamalab.templates.choose import own_template
from llamalab.templates.encode import Encoder
from llamalab.templates.messages import conversation

if TYPE_CHECKING:
    from llamalab.engines.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Span:
    """The tokens of one prompt and one response.

    Attributes:
        prefix_ids: what the response is conditioned on, BOS and generation prompt included.
        response_ids: to score, the end token included where it is.
        n_end: how many of them are the end, 0 or 1.
        template: name of the chat template; None: the prompt is continued as plain text.
        agrees_jointly: prompt and response, tokenised in one go, have the same ids.
        matches_text: the ids spell the text that was given; False only where ids and another text were given.
    """

    prefix_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    n_end: int
    template: str | None
    agrees_jointly: bool
    matches_text: bool = True

    @property
    def text_ids(self) -> tuple[int, ...]:
        """The response without its end."""
        return self.response_ids[: len(self.response_ids) - self.n_end]


@dataclass(frozen=True, slots=True)
class Layout:
    """How prompts are written for a model.

    Attributes:
        chat: from messages to ids.
        template: name of its template; None: the model has none, and prompts are continued as they are.
        end_id: what ends a response: the first control token that the template writes after an assistant's words, or
            else EOS; None: the model has neither.
    """

    chat: EngineChat
    template: str | None
    end_id: int | None


class Tokens:
    """What a model's tokens are, without its weights: tokeniser, template, special tokens. A context manager.

    Args:
        info: of the model; its `n_ctx` is that of the engine that scores.
        tokenizer: its tokeniser, or an engine; `close` closes it.
    """

    def __init__(self, info: ModelInfo, tokenizer: Tokenizer) -> None:
        self.info = info
        self._tokenizer = tokenizer
        self._layouts: dict[tuple[str | None, str], Layout] = {}
        self.tokenize = tokenizer.tokenize
        self.detokenize = tokenizer.detokenize
        self.token_bytes = tokenizer.token_bytes

    def layout(self, policy: Policy) -> Layout:
        """How prompts are written under a policy of this model.

        Raises:
            TemplateMissing: no such template.
        """
        key = policy.template, policy.date
        if key not in self._layouts:
            has_one = (
                policy.template is not None or own_template(self.info.chat_template, self.info.path)[1] is not None
            )
            # Until something is generated, a chat asks its engine for nothing but its words.
            chat = EngineChat(
                cast("Engine", self),
                policy.template if has_one else "plain",
                template_variables=policy.template_variables,
            )
            end = chat.end_of_turn_id if has_one else None
            self._layouts[key] = Layout(
                chat, chat.template.name if has_one else None, self.info.eos_id if end is None else end
            )
        return self._layouts[key]

    def close(self) -> None:
        """Let go of the tokeniser."""
        self._tokenizer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_tokens(policy: Policy) -> Tokens:
    """The tokens of a local policy's model; no weights are loaded.

    Raises:
        ModelNotFound: no such model.
        ModelFileError: one that cannot be read.
        ConfigError: an option that cannot be.
    """
    from llamalab.checkpoints.locate import locate

    path, n_ctx = locate(policy.model), policy.options.get("n_ctx")
    if policy.provider == "llama_cpp":
        from llamalab.engines.llama_cpp import LlamaCppEngine

        engine = LlamaCppEngine(path, vocab_only=True)
        return Tokens(replace(engine.info, n_ctx=n_ctx or engine.info.n_ctx), engine)
    from llamalab.checkpoints.checkpoint import open_checkpoint
    from llamalab.engines.checkpoint_engine import describe
    from llamalab.engines.reference import default_context
    from llamalab.engines.tokenizer import open_tokenizer

    checkpoint = open_checkpoint(path)
    length = default_context(checkpoint, n_ctx)
    info = describe(checkpoint, provider=policy.provider, n_ctx=length, size_bytes=0)
    return Tokens(info, open_tokenizer(checkpoint))


def span(
    tokens: Tokens,
    policy: Policy,
    prompt: str | Sequence[Message],
    response: str | None,
    *,
    finished: bool = True,
    response_ids: Sequence[int] | None = None,
) -> Span:
    """The ids to score for `response` to `prompt` under `policy`.

    Args:
        tokens: of the policy's model.
        policy: its system prompt and template.
        prompt: a user's message, or a conversation; for a model without a template, text to continue.
        response: its text; may be None where `response_ids` are given.
        finished: the response ended by itself, so its end token belongs to it.
        response_ids: the response's tokens as they were generated, with or without their end; they win over `response`.

    Raises:
        InputError: an empty prompt, text that the vocabulary cannot spell, ids that are no tokens.
        EmptyResponse: nothing to score, but perhaps an end.
        TemplateMissing: a conversation or a system prompt for a model without a template.
        ConfigError: a system prompt that the template leaves out.
    """
    layout = tokens.layout(policy)
    encoder = layout.chat.encoder
    pieces = _pieces(layout, policy, prompt)
    prefix = layout.chat.piece_ids(pieces)
    if not prefix:
        raise InputError("The prompt has no token.")
    if response_ids is None:
        ids = _text_ids(encoder, response)
        agrees = _joint(encoder, pieces, response or "") == _joint(encoder, pieces) + ids
        end = [layout.end_id] if finished and layout.end_id is not None else []
        return Span(tuple(prefix), (*ids, *end), len(end), layout.template, agrees)
    ids, end = _given_ids(tokens, layout, response_ids, finished=finished)
    text = _text(encoder, ids)
    agrees = text is not None and _joint(encoder, pieces, text) == _joint(encoder, pieces) + ids
    matches = response is None or response in (text, tokens.detokenize(ids))
    return Span(tuple(prefix), (*ids, *end), len(end), layout.template, agrees, matches)


def prefix_ids(tokens: Tokens, policy: Policy, prompt: str | Sequence[Message]) -> list[int]:
    """What a response to `prompt` under `policy` is conditioned on: the `prefix_ids` of every span of the two.

    Raises:
        InputError, TemplateMissing, ConfigError: as `span`.
    """
    layout = tokens.layout(policy)
    return layout.chat.piece_ids(_pieces(layout, policy, prompt))


def _pieces(layout: Layout, policy: Policy, prompt: str | Sequence[Message]) -> list[Piece]:
    """The text of the prefix, cut at its control tokens."""
    if isinstance(prompt, str) and not prompt:
        raise InputError("The prompt is empty.")
    if layout.template is None:
        if not isinstance(prompt, str) or policy.system_prompt is not None:
            what = "a system prompt" if isinstance(prompt, str) else "a prompt of several messages"
            raise TemplateMissing(
                f"The model of policy '{policy.name}' has no chat template, so {what} cannot be written for it. "
                "Name one with template (llama3, chatml, plain, ... or a file), or give the prompt as one text."
            )
        return [Piece(prompt, special=False)]
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else conversation(prompt)
    if policy.system_prompt is None:
        return layout.chat.pieces(turns)
    if any(turn["role"] == "system" for turn in turns):
        raise InputError(
            f"The prompt has a system message and policy '{policy.name}' a system prompt of its own. Take one away."
        )
    pieces = layout.chat.pieces([{"role": "system", "content": policy.system_prompt}, *turns])
    if policy.system_prompt.strip() not in "".join(piece.text for piece in pieces):
        raise ConfigError(
            f"The chat template '{layout.template}' leaves the system prompt of policy '{policy.name}' out. "
            "Choose another template, or put the instructions into the prompt."
        )
    return pieces


def _text_ids(encoder: Encoder, response: object) -> list[int]:
    if not isinstance(response, str):
        raise InputError(f"The response is text, not {type(response).__name__}; or give response_ids.")
    if not response:
        raise EmptyResponse("The response is empty: there is nothing to score.")
    ids = encoder.continued_ids(response)
    if encoder.spelled(ids) != response.encode():
        raise InputError(
            "The model's tokeniser changes the response: its tokens spell another text (a Unicode normalisation, or "
            "characters that the vocabulary does not have). Give response_ids to say which tokens are meant."
        )
    return ids


def _given_ids(tokens: Tokens, layout: Layout, given: Sequence[int], *, finished: bool) -> tuple[list[int], list[int]]:
    """Ids that were given, as (response, end): an end they carry is scored if the response is finished."""
    info = tokens.info
    ids: list[int] = checked_ids(given, info.n_vocab, "response_ids").tolist()
    end = [] if layout.end_id is None else [layout.end_id]
    if ids and (ids[-1] in info.stop_ids or ids[-1:] == end):
        end = [ids.pop()]
    if not ids:
        raise EmptyResponse("The response is empty: response_ids hold nothing to score but an end.")
    return ids, end if finished else []


def _text(encoder: Encoder, ids: Sequence[int]) -> str | None:
    """What ids spell; None for what is not UTF-8."""
    try:
        return encoder.spelled(ids).decode()
    except UnicodeDecodeError:
        return None


def _joint(encoder: Encoder, pieces: Sequence[Piece], response: str = "") -> list[int]:
    """Ids of prefix and response in one go, from the last control token of the prefix on (before it, nothing can
    differ)."""
    start = max((i for i, piece in enumerate(pieces) if piece.special), default=0)
    tail = list(pieces[start:])
    if response:
        last = "" if tail[-1].special else tail.pop().text
        tail.append(Piece(last + response, special=False))
    return encoder.encode(tail)
