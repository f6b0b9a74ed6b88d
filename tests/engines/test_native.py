"""The binding is checked, and llama.cpp's own lines never reach the terminal."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llamalab.engines import native
from llamalab.errors import EngineError


def test_the_defaults_are_those_of_the_tested_version():
    native.check_defaults()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("n_batch", 4096, "n_batch=2048 where 4096"), ("kv_unified", True, "kv_unified=False"), ("type_k", 8, "type_k=1")],
)
def test_another_default_is_one_clear_error(field: str, value: object, message: str):
    expected = {**native.CONTEXT_DEFAULTS, field: value}
    with pytest.raises(EngineError, match=message):
        native.check_struct("context parameters", native.api.llama_context_default_params(), expected)


def test_a_new_field_is_one_clear_error():
    expected = {k: v for k, v in native.MODEL_DEFAULTS.items() if k != "lazy_mode"}
    with pytest.raises(EngineError, match=r"other fields than expected \(lazy_mode\)"):
        native.check_struct("model parameters", native.api.llama_model_default_params(), expected)


def test_a_pointer_that_should_be_empty_is_noticed():
    params = native.api.llama_context_default_params()
    params.cb_eval_user_data = 8
    with pytest.raises(EngineError, match="cb_eval_user_data"):
        native.check_struct("context parameters", params, native.CONTEXT_DEFAULTS)


def test_native_lines_are_joined_and_get_pythons_levels(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG, logger="llamalab.llama_cpp")
    for level, text in [(2, b"one "), (5, b"line\nnext\n"), (3, b"careful\n"), (4, b"wrong: \xff\n")]:
        native._on_native_line(level, text, None)
    assert [(r.levelno, r.message) for r in caplog.records] == [
        (logging.DEBUG, "one line"),
        (logging.DEBUG, "next"),
        (logging.WARNING, "careful"),
        (logging.ERROR, "wrong: \ufffd"),
    ]


def test_the_reason_is_the_first_error_without_function_names():
    native.forget_errors()
    assert native.native_reason("none") == "none"
    native._on_native_line(4, b"load_it: error loading model: tensor 'x' is missing.\n", None)
    native._on_native_line(4, b"caller: failed\n", None)
    assert native.native_reason() == "tensor 'x' is missing"


def test_what_c_code_prints_is_caught_and_the_terminal_comes_back(capfd: pytest.CaptureFixture[str]):
    with native.captured_stderr() as lines:
        os.write(2, b"from below\n")
    os.write(2, b"after\n")
    assert lines == ["from below"]
    assert capfd.readouterr().err == "after\n"


def test_a_whole_run_prints_nothing_by_itself(tiny_gguf: Path, tmp_path: Path):
    """Load, generate, refuse a grammar, fail to load, close, exit: both streams stay empty."""
    code = f"""
from llamalab.engine import GenerateRequest, SamplingParams
from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.errors import LlamalabError
engine = LlamaCppEngine({str(tiny_gguf)!r}, n_threads=1)
list(engine.generate([GenerateRequest([1], SamplingParams(max_tokens=2))]))
for grammar in ("root ::= (", "x"):
    try:
        engine.generate([GenerateRequest([1], grammar=grammar)])
    except LlamalabError:
        pass
engine.close()
open({str(tmp_path / "bad.gguf")!r}, "wb").write(b"GGUF" + bytes(100))
try:
    LlamaCppEngine({str(tmp_path / "bad.gguf")!r})
except LlamalabError:
    pass
leaked = LlamaCppEngine({str(tiny_gguf)!r}, n_threads=1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


INTERRUPTED = """
import logging, signal, sys, time
from llamalab.engines import native
from llamalab.engines.llama_cpp import LlamaCppEngine

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored

class CtrlC(logging.Handler):
    left = int(sys.argv[2])
    def emit(self, record):
        CtrlC.left -= 1
        if CtrlC.left == 0:
            signal.raise_signal(signal.SIGINT)

def interrupted(level, text, data):
    raise KeyboardInterrupt  # as where it comes before the first line of a callback

native.log.addHandler(CtrlC())
native.log.setLevel(logging.DEBUG)
try:
    LlamaCppEngine(sys.argv[1], n_threads=1).close()
    if CtrlC.left > 0:
        native.api.llama_log_callback(interrupted)(2, b"", None)
    for _ in range(2000):
        time.sleep(0.01)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("line", [1, 2, 40, 10**9])
def test_an_interrupt_while_llama_cpp_logs_is_not_lost(line: int, tiny_gguf: Path):
    """Nothing can be raised through the C code that called us; it is raised as soon as that has returned."""
    command = [sys.executable, "-c", INTERRUPTED, str(tiny_gguf), str(line)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")
