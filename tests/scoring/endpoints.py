"""Endpoints for the tests of remote scoring: llama-cpp-python's own server, and small ones that misbehave."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY = "sk-of-the-tests"
_F32 = 0  # GGML's number of the type


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def llama_cpp_server(folder: Path, models: Mapping[str, Path]) -> Iterator[str]:
    """llama-cpp-python's server as a child process, with a key and `models` by alias; yields its base_url."""
    port = free_port()
    common = {"n_ctx": 256, "logits_all": True, "n_threads": 1, "type_k": _F32, "type_v": _F32, "verbose": False}
    settings = [{"model": str(path), "model_alias": alias, **common} for alias, path in models.items()]
    config = folder / "server.json"
    config.write_text(json.dumps({"host": "127.0.0.1", "port": port, "api_key": KEY, "models": settings}))
    log = (folder / "server.log").open("wb")
    command = [sys.executable, "-m", "llama_cpp.server", "--config_file", str(config)]
    with log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            _wait_for(f"http://127.0.0.1:{port}/v1/models", process, folder / "server.log")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {KEY}"})
    for _ in range(1200):
        if process.poll() is not None:
            raise RuntimeError(f"The server ended: {log.read_text(errors='replace')[-2000:]}")
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise RuntimeError("The server does not answer.")


class Answer:
    """What a small endpoint answers: a status, a body, headers; `pause` seconds before each half of the body."""

    def __init__(self, body: Any, status: int = 200, *, pause: float = 0.0, **headers: str) -> None:
        self.content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.status, self.pause, self.headers = status, pause, headers


@contextmanager
def small_endpoint(answer: Callable[[dict[str, Any]], Answer]) -> Iterator[str]:
    """An endpoint that gives `answer(body of the request)`; yields its base_url."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            said = answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            half = len(said.content) // 2
            try:
                self.send_response(said.status)
                self.send_header("Content-Length", str(len(said.content)))
                for name, value in said.headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                for part in (said.content[:half], said.content[half:]):
                    time.sleep(said.pause)
                    self.wfile.write(part)
                    self.wfile.flush()
            except OSError:  # the client has given up
                pass

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class LetterModel:
    """A made-up model whose tokens are letters, behind an endpoint with one fault.

    Attributes:
        fault: "": none; "shifted": each echo has its neighbour's value; "deaf": `echo` is ignored; "unrelated": echoes
            have other values; "zero": all values are 0; "silent": no log probabilities.
    """

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.asked: list[dict[str, Any]] = []

    def __call__(self, body: dict[str, Any]) -> Answer:
        """The answer to one request, in the shape of vLLM: BOS shown, and counted in the offsets."""
        self.asked.append(body)
        prompt, text = body["prompt"], body["prompt"]
        for _ in range(body["max_tokens"]):
            text += self.next_letter(text)
        echo = body["echo"] and self.fault != "deaf"
        shown = ["<bos>", *text] if echo else list(text[len(prompt) :])
        first = 0 if echo else len(prompt)
        values = [None, *self.values(text)] if echo else self.values(text)[first:]
        if self.fault == "shifted" and echo:
            values = [None, *values[2:], -1.0]
        if self.fault == "unrelated" and echo:
            values = [None, *(value - 3.0 for value in values[1:])]
        if self.fault == "zero":
            values = [None if value is None else 0.0 for value in values]
        offsets = [0, *(len("<bos>") + n for n in range(len(text)))] if echo else list(range(first, len(text)))
        logprobs = {"tokens": shown, "token_logprobs": values, "text_offset": offsets, "top_logprobs": None}
        choice = {"text": text if echo else text[len(prompt) :], "index": 0, "finish_reason": "length"}
        choice["logprobs"] = None if self.fault == "silent" else logprobs
        usage = {"prompt_tokens": len(prompt) + 1, "completion_tokens": body["max_tokens"]}
        return Answer({"id": "x", "object": "text_completion", "model": "letters", "choices": [choice], "usage": usage})

    @staticmethod
    def next_letter(text: str) -> str:
        """The most probable one."""
        return "abcdefghijklmnop"[(3 * len(text) + ord(text[-1])) % 16]

    @staticmethod
    def values(text: str) -> list[float]:
        """log p of each letter given those before it."""
        return [-0.25 - (7 * at * at + sum(map(ord, text[:at])) + ord(text[at])) % 97 / 10 for at in range(len(text))]
