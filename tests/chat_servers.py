"""Real HTTP servers that answer chats in the shapes of ollama, DeepSeek and OpenAI, as their documents show them."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

from tests.openai_rules import refusal

SENTENCE = "There are five words here."
CANARY = '{"canary":"k7q"}'


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    body: dict[str, Any]
    headers: Mapping[str, str]

    @property
    def words(self) -> int:
        return sum(len(str(message["content"]).split()) for message in self.body["messages"])


@dataclass(frozen=True)
class Answer:
    """A status and JSON (or bytes, or lines that come one by one, each after `pause` seconds).

    Attributes:
        cut: of the bytes that were promised, send this many, and hang up.
    """

    body: Any
    status: int = 200
    pause: float = 0.0
    cut: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


Answering: TypeAlias = Callable[[Asked], Answer]


class ChatServer:
    """A server on this machine; `stop` and `start` make it go away and come back at the same address.

    Attributes:
        asked: every request for a chat, in order; others are answered and not kept.
        left: set when a client has gone before its answer was written.
    """

    def __init__(self, answer: Answering) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.left = threading.Event()
        self._held = socket.socket()  # keeps the port from others while the server is away
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._held.bind(("127.0.0.1", 0))
        self._port = self._held.getsockname()[1]
        self._server: _Server | None = None
        self._stopping = threading.Lock()  # a test and the answer it gave may both stop the server
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._server = _Server(("127.0.0.1", self._port), self._handler())
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Close the port and every connection, as a killed process does."""
        with self._stopping:
            if self._server is not None:
                self._server.shutdown()
                self._server.hang_up()
                self._server.server_close()
                self._server = None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1

            def do_GET(self) -> None:
                self._do({})

            def do_POST(self) -> None:
                self._do(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _do(self, body: dict[str, Any]) -> None:
                asked = Asked(self.command, self.path, body, dict(self.headers))
                if "messages" in body:
                    outer.asked.append(asked)
                try:
                    self._write(outer.answer(asked))
                except OSError:
                    outer.left.set()
                    self.close_connection = True

            def _write(self, said: Answer) -> None:
                lines = said.body if isinstance(said.body, list) and said.body else None
                self.send_response(said.status)
                for name, value in said.headers.items():
                    self.send_header(name, value)
                if lines is not None:
                    self.close_connection = True
                    self.end_headers()
                    self.wfile.flush()
                    for line in lines:
                        time.sleep(said.pause)
                        self.wfile.write(line)
                        self.wfile.flush()
                    return
                content = said.body if isinstance(said.body, bytes) else json.dumps(said.body).encode()
                time.sleep(said.pause)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: said.cut])
                self.wfile.flush()
                self.close_connection = self.close_connection or said.cut is not None

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


class _Server(ThreadingHTTPServer):
    allow_reuse_port = True
    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        self.open: list[Any] = []
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.append(request)
        super().process_request(request, client_address)

    def hang_up(self) -> None:
        for request in self.open:
            self.shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@contextmanager
def chat_server(answer: Answering) -> Iterator[tuple[str, list[Asked]]]:
    """A server for the time of a block; yields its address and what it was asked."""
    server = ChatServer(answer)
    try:
        yield server.url, server.asked
    finally:
        server.stop()


def ollama(
    text: str | Callable[[Asked], str] = SENTENCE,
    *,
    held: bool = True,
    context: int | None = 8192,
    reads: int | None = None,
    thinking: str = "",
    reason: str = "stop",
    pause: float = 0.0,
) -> Answering:
    """Ollama's own API.

    Args:
        text: that it answers.
        held: a schema is held; if not, `format` is ignored without a word.
        context: that its models were trained for.
        reads: of a conversation it reads so many words at most, and says nothing of the rest.
        thinking: what stands beside the answer.
        reason: why the answer ended.
        pause: seconds before it.
    """

    def answer(asked: Asked) -> Answer:
        if asked.path == "/api/show":
            return Answer({"model_info": {"general.architecture": "llama", "llama.context_length": context}})
        if asked.path != "/api/chat":
            return Answer({"error": "not found"}, 404)
        said = text if isinstance(text, str) else text(asked)
        if held and "canary" in json.dumps(asked.body.get("format", "")):
            said = CANARY
        words = asked.words if reads is None else min(asked.words, reads)
        message = {"role": "assistant", "content": said} | ({"thinking": thinking} if thinking else {})
        last = {
            "model": asked.body["model"],
            "created_at": "2026-01-01T00:00:00Z",
            "done": True,
            "done_reason": reason,
            "total_duration": 3_000_000_000,
            "load_duration": 1_000_000,
            "prompt_eval_count": words + 10,
            "prompt_eval_duration": 1_000_000_000,
            "eval_count": len(said.split()) + len(thinking.split()),
            "eval_duration": 2_000_000_000,
        }
        if not asked.body["stream"]:
            return Answer(last | {"message": message}, pause=pause)
        pieces = [
            {"model": "m", "message": {"role": "assistant", "content": f"{word} "}, "done": False}
            for word in said.split()
        ]
        lines = [*pieces, last | {"message": {"role": "assistant", "content": ""}}]
        return Answer([json.dumps(line).encode() + b"\n" for line in lines], pause=pause)

    return answer


def openai(
    text: str | Callable[[Asked], str] = SENTENCE,
    *,
    held: bool = True,
    deepseek: bool = False,
    strict: bool = False,
    refuses: Mapping[str, str] | None = None,
    reason: str = "stop",
    pause: float = 0.0,
    context: int | None = 8192,
) -> Answering:
    """OpenAI's API, or DeepSeek's with its own names for cached tokens.

    Args:
        text: that it answers.
        held: a schema is held.
        deepseek: JSON is all that can be asked for, and only where a message says "json".
        strict: a schema is taken in the strict form alone, as OpenAI does.
        refuses: fields that get a refusal, with its words.
        reason: why the answer ended.
        pause: seconds before it.
        context: that it tells of its models, as vLLM does.
    """

    def answer(asked: Asked) -> Answer:
        if asked.path.endswith("/models"):
            return Answer({"object": "list", "data": [{"id": "m", "object": "model", "max_model_len": context}]})
        if not asked.path.endswith("/chat/completions"):
            return Answer({"error": {"message": "not found"}}, 404)
        body = asked.body
        for name, words in (refuses or {}).items():
            if name in body:
                return Answer({"error": {"message": words, "type": "invalid_request_error"}}, 400)
        form = body.get("response_format", {"type": "text"})
        if deepseek and form["type"] == "json_schema":
            return Answer({"error": {"message": "This response_format type is unavailable now"}}, 400)
        if deepseek and form["type"] == "json_object" and "json" not in json.dumps(body["messages"]).lower():
            return Answer({"error": {"message": "Prompt must contain the word 'json'"}}, 400)
        if strict and form["type"] == "json_schema" and (said := refusal(form["json_schema"]["schema"])):
            error = {"message": said, "type": "invalid_request_error", "param": "response_format", "code": None}
            return Answer({"error": error}, 400)
        said = text if isinstance(text, str) else text(asked)
        if held and "canary" in json.dumps(form):
            said = CANARY
        prompt, output = asked.words + 10, len(said.split())
        usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
        if deepseek:
            usage |= {"prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": prompt - 4}
        else:
            usage |= {"prompt_tokens_details": {"cached_tokens": 3}}
        usage |= {"completion_tokens_details": {"reasoning_tokens": 1}}
        if not body["stream"]:
            choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": reason}
            return Answer({"id": "1", "model": "m-2026", "choices": [choice], "usage": usage}, pause=pause)
        deltas = [{"index": 0, "delta": {"content": f"{word} "}, "finish_reason": None} for word in said.split()]
        rows: list[dict[str, Any]] = [{"model": "m-2026", "choices": [delta]} for delta in deltas]
        rows.append({"model": "m-2026", "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        rows.append({"model": "m-2026", "choices": [], "usage": usage})
        lines = [b"data: " + json.dumps(row).encode() + b"\n\n" for row in rows]
        return Answer([b": keep-alive\n", *lines, b"data: [DONE]\n\n"], pause=pause)

    return answer
