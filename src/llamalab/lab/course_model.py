"""The model that the course's functions work with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from llamalab.engine import Engine, Event, GenerateRequest, Generation
from llamalab.errors import EngineError
from llamalab.lab.course_options import generation_options

if TYPE_CHECKING:
    from llamalab.chat import EngineChat


class LoadedModel:
    """What `load_model` gives; a context manager: leaving it frees the memory, as `close` does.

    Attributes:
        engine: the model as llamalab runs it.
        template: chat template that was asked for; None: the model's own.
        seed: of every generation that is given none; None: each draws afresh.
    """

    def __init__(self, engine: Engine, template: str | None, seed: int | None) -> None:
        self.engine = engine
        self.template = template
        self.seed = seed
        self._chat: EngineChat | None = None

    @property
    def chat(self) -> EngineChat:
        """The same as a chat model; a model without a template gets plain lines 'User:' and 'Assistant:'."""
        if self._chat is None:
            from llamalab.chat import EngineChat

            self._chat = EngineChat(self.engine, self.template)
        return self._chat

    def close(self) -> None:
        """Free the memory."""
        self.engine.close()

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def events(model: LoadedModel, prompt: str, given: Mapping[str, Any]) -> Iterator[Event]:
    """What happens while the model goes on from `prompt`, BOS in front where the model wants one."""
    params, schema, grammar = generation_options(given, model.seed)
    engine = model.engine
    bos = [engine.info.bos_id] if engine.info.add_bos and engine.info.bos_id is not None else []
    ids = [*bos, *engine.tokenize(prompt)]
    return iter(engine.generate([GenerateRequest(ids, params, schema=schema, grammar=grammar)]))


def last(events: Iterable[Event]) -> Generation:
    """The whole response at the end of `events`."""
    for event in events:
        if isinstance(event, Generation):
            return event
    raise EngineError("The engine ended a request without saying how.")
