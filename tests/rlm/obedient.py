"""Chat models that say what a script tells them, and a watch over what a program reaches for."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from llamalab.engine import ChatInfo, Message, Reply, SamplingParams, SchemaSupport, Timings, TokenCount, Usage

CHARACTERS_PER_TOKEN = 4
FENCE = re.compile(r"^Fence: ([0-9a-f]{32})$", re.MULTILINE)


@dataclass
class Obedient:
    """A chat model that says the texts of a script in order, the last one for ever. `<<FENCE>>` is the one it sees.

    Its replies are cut at `max_tokens`, as a server would do it. It keeps its own books.
    """

    script: Sequence[str]
    schema_support: SchemaSupport = "none"
    n_ctx: int = 1_000_000
    calls: list[list[Message]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    tokens: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def info(self) -> ChatInfo:
        return ChatInfo("scripted", "test", self.n_ctx, self.schema_support)

    def count_tokens(self, messages: Sequence[Message]) -> TokenCount:
        return TokenCount(-(-sum(len(message["content"]) for message in messages) // CHARACTERS_PER_TOKEN), True)

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        **_: object,
    ) -> Reply:
        with self.lock:
            turn = len(self.calls)
            self.calls.append([dict(message) for message in messages])
            text = self.script[min(turn, len(self.script) - 1)]
            shown = [found for message in messages for found in FENCE.findall(message["content"])]
            text = text.replace("<<FENCE>>", shown[0] if shown else "no fence")
            most = None if params is None else params.max_tokens
            whole = most is None or len(text) <= most * CHARACTERS_PER_TOKEN
            text = text if whole or most is None else text[: most * CHARACTERS_PER_TOKEN]
            self.said.append(text)
            usage = Usage(fresh=self.count_tokens(messages).n, output=-(-len(text) // CHARACTERS_PER_TOKEN))
            self.tokens += usage.fresh + usage.output
        return Reply(text, (), "stop" if whole else "length", usage, Timings(), "scripted")

    def stream(self, *_: object, **__: object) -> Iterator[Reply]:
        raise NotImplementedError

    def close(self) -> None:
        pass


_BEYOND = re.compile(
    r"socket\.(?:__new__|connect|getaddrinfo|bind|sendto)|subprocess\.Popen|os\.(?:system|exec|posix_spawn|fork|forkpty"
    r"|remove|rename|rmdir|mkdir|chmod|symlink|link|putenv)|exec|compile|pickle\.find_class|ctypes\.dlopen|urllib\.Request"
    r"|shutil\.\w+|webbrowser\.open|builtins\.input"
)
_watching: list[Callable[[str, tuple[object, ...]], None]] = []


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    for watch in _watching:
        watch(event, arguments)


@contextmanager
def watched(*allowed: Path) -> Iterator[list[str]]:
    """Gives what this process opens, starts or connects to inside the block, but for files below `allowed`.

    Modules that Python loads on first use are left out: they lie in its own folders.
    """
    if not _installed:
        sys.addaudithook(_hook)
        _installed.append(True)
    homes = [str(path) for path in allowed]
    reached: list[str] = []

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path = arguments[0]
            path = path.decode("utf-8", "replace") if isinstance(path, bytes) else path
            if isinstance(path, str) and not path.startswith((*homes, *_OWN)):
                reached.append(f"open {path}")
        elif _BEYOND.fullmatch(event) and not _is_import(event, arguments):
            reached.append(f"{event} {str(arguments)[:100]}")

    _watching.append(watch)
    try:
        yield reached
    finally:
        _watching.remove(watch)


def _is_import(event: str, arguments: tuple[object, ...]) -> bool:
    """Code of one of Python's own files."""
    if event == "exec":
        return getattr(arguments[0], "co_filename", "").startswith(_OWN)
    return event == "compile" and str(arguments[1]).startswith(_OWN)


_installed: list[bool] = []
_OWN = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[2] / "src"), "/dev/null", "/proc/self")
