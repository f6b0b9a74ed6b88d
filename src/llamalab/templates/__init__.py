"""Chat templates: from messages to the text of a prompt, and which special strings in it are meant.

A template is Jinja text, as models carry it. What it writes is cut at the special strings that the template
wrote itself; a special string inside a message stays text. To tell them apart, the first character of
every special string in a message is replaced by a stand-in from Unicode's private use area while the
template runs, and put back afterwards. What the template looks for in a message (`'</think>' in content`) is
changed in the same way, so it is found.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, NamedTuple

from llamalab import sandbox
from llamalab.engine import Message
from llamalab.errors import InputError
from llamalab.templates.messages import conversation, map_strings, strings
from llamalab.templates.special import Hiding, SpecialStrings


class Piece(NamedTuple):
    """A stretch of a prompt: ordinary text, or one special string that the template wrote."""

    text: str
    special: bool


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """How a model wants a conversation written.

    Attributes:
        source: Jinja text.
        name: what messages call it: a built-in's name, "own" for the model's own, or a path.
        bos: text of the BOS token, what the template knows as `bos_token`.
        eos: text of the EOS token, `eos_token`.
        stop: strings that end a reply, for a model that has no end-of-turn token.
        variables: further variables that the template sees (`enable_thinking`, `tools`, ...).
    """

    source: str
    name: str = "custom"
    bos: str = ""
    eos: str = ""
    stop: tuple[str, ...] = ()
    variables: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Text of the prompt for `messages`, as `conversation` checks them.

        Args:
            messages: the conversation, oldest first.
            add_generation_prompt: end with the header of the assistant's next turn.

        Raises:
            InputError: messages that cannot be used, or that the template refuses.
            TemplateMissing: the template does not render.
        """
        return self._render(conversation(messages), add_generation_prompt)

    def pieces(
        self, messages: Sequence[Message], special: SpecialStrings, *, add_generation_prompt: bool = True
    ) -> list[Piece]:
        """The text of `render`, cut at the special strings that the template wrote.

        No text piece is empty, and no two stand side by side. Raises as `render` does.
        """
        turns = conversation(messages)
        spares = _private_characters(special.characters.union(self.source, *strings(turns)))
        hiding = Hiding(special, "".join(islice(spares, len(special.first_characters))))
        for turn in turns:
            turn |= {key: map_strings(value, hiding) for key, value in turn.items() if key != "role"}
        text = self._render(turns, add_generation_prompt, hiding)
        pieces, end = [], 0
        for start, string in special.find(text):
            if start > end:
                pieces.append(Piece(hiding.undo(text[end:start]), special=False))
            pieces.append(Piece(string, special=True))
            end = start + len(string)
        if end < len(text):
            pieces.append(Piece(hiding.undo(text[end:]), special=False))
        return pieces

    def _render(self, turns: list[dict[str, Any]], add_generation_prompt: bool, hiding: Hiding | None = None) -> str:
        variables = {
            "tools": None,
            "documents": None,
            "bos_token": self.bos,
            "eos_token": self.eos,
            **self.variables,
            "messages": turns,
            "add_generation_prompt": add_generation_prompt,
        }
        return sandbox.render(self.source, variables, name=f"chat template '{self.name}'", looked_for=hiding)


def _private_characters(taken: Collection[str]) -> Iterator[str]:
    """Characters of the private use areas that are not taken."""
    for code in chain(range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE)):
        if chr(code) not in taken:
            yield chr(code)
    raise InputError("The conversation uses every private character of Unicode; none is left to protect it with.")
