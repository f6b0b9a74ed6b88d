"""Replies kept by content: the same call of the same model is not made twice."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llamalab.engine import (
    ChatEvent,
    ChatInfo,
    ChatModel,
    Message,
    Reply,
    SamplingParams,
    Schema,
    Timings,
    TokenCount,
    Usage,
)
from llamalab.errors import InputError
from llamalab.rlm.providers import Provider


def with_cache(provider: Provider, folder: Path) -> Provider:
    """A provider whose replies are kept in a folder.

    Raises:
        InputError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror or error}.") from error
    return replace(provider, model=CachedChat(provider.model, folder))


@dataclass(frozen=True, slots=True)
class CachedChat:
    """A chat model that answers from a folder where it can; such a reply uses no tokens.

    Attributes:
        model: asked for what the folder does not have.
        folder: one JSON file for each reply, named by the SHA-256 of the call.
    """

    model: ChatModel
    folder: Path

    @property
    def info(self) -> ChatInfo:
        """Of the model."""
        return self.model.info

    def count_tokens(self, messages: Sequence[Message]) -> TokenCount:
        """Of the model."""
        return self.model.count_tokens(messages)

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        schema: Schema | None = None,
        deadline: float | None = None,
        cancel: threading.Event | None = None,
    ) -> Reply:
        """See `ChatModel.chat`. Only replies that ended by themselves are kept."""
        asked = [self.info.provider, self.info.name, list(messages), params and asdict(params), schema]
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()
        kept = self._kept(self.folder / f"{digest}.json")
        if kept is not None:
            return kept
        reply = self.model.chat(messages, params, schema=schema, deadline=deadline, cancel=cancel)
        if reply.finish_reason == "stop":
            self._keep(self.folder / f"{digest}.json", reply)
        return reply

    def stream(
        self, messages: Sequence[Message], params: SamplingParams | None = None, **how: Any
    ) -> Iterator[ChatEvent]:
        """Of the model; nothing is kept."""
        return self.model.stream(messages, params, **how)

    def close(self) -> None:
        """Close the model."""
        self.model.close()

    def _kept(self, path: Path) -> Reply | None:
        try:
            found = json.loads(path.read_bytes())
            mode = found["schema_mode"]
            return Reply(found["text"], (), "stop", Usage(), Timings(), found["model"], schema_mode=mode)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _keep(self, path: Path, reply: Reply) -> None:
        kept = {"text": reply.text, "model": reply.model, "schema_mode": reply.schema_mode}
        beside = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            beside.write_text(json.dumps(kept), encoding="utf-8")
            beside.replace(path)  # never half a reply
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error
