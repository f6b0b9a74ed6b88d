"""Jinja for chat templates that came with a downloaded file: same language as transformers, nothing trusted.

A template runs in Jinja's immutable sandbox: it reaches no file, no module and no private attribute, and
cannot change what it is given. What the sandbox leaves open is work without end, so loop passes and macro
calls are counted, and repeated strings and the output are limited in size. A template can still ask for
much memory in a single expression; only the operating system can limit that.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llamalab.errors import InputError, TemplateMissing

MAX_STEPS = 1_000_000
"""Loop passes and macro calls of one rendering."""

MAX_CHARACTERS = 1 << 26
"""Characters of one rendering, and of any string that an operator in it makes."""

_FILE = "<chat template>"
_steps_left: ContextVar[int] = ContextVar("steps_left", default=MAX_STEPS)


def render(
    source: str,
    variables: Mapping[str, Any],
    *,
    name: str = "chat template",
    looked_for: Callable[[str], str] | None = None,
) -> str:
    """Text that the template `source` makes of `variables`.

    Args:
        source: Jinja text.
        variables: what the template sees.
        name: how messages call the template.
        looked_for: done to each text that the template compares with or searches for; for variables that
            were changed in the same way. Equal functions share a compiled template.

    Raises:
        InputError: the template itself refuses its input (`raise_exception`).
        TemplateMissing: it does not compile or does not render; the message has its line.
    """
    template = _compile(source, name, looked_for)
    _steps_left.set(MAX_STEPS)
    parts, length = [], 0
    try:
        for part in template.generate(**variables):
            length += len(part)
            if length > MAX_CHARACTERS:
                raise _TooMuch(f"it writes more than {MAX_CHARACTERS:,} characters")
            parts.append(part)
    except _Refused as error:
        raise InputError(f"The {name} refuses this conversation: {error}") from error
    except _FAILURES as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        reason = str(error) if isinstance(error, jinja2.TemplateError) else reason
        raise TemplateMissing(
            f"The {name} does not render{_at_line(error)}: {reason}. Give another one with --template."
        ) from error
    return "".join(parts)


class _Refused(jinja2.TemplateError):
    """The template called `raise_exception`."""


class _TooMuch(jinja2.TemplateError):
    """The template asked for more work or memory than one rendering may take."""


_FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's words for training; here it does nothing."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        """The body in a scope of its own, as transformers has it."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Sandbox(ImmutableSandboxedEnvironment):
    """The immutable sandbox with a limit on steps and on the size of what operators make."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def step(self) -> bool:
        """Count one loop pass or macro call; compiled templates call this, see `_count_steps`."""
        left = _steps_left.get()
        if left <= 0:
            raise _TooMuch(f"it takes more than {MAX_STEPS:,} steps")
        _steps_left.set(left - 1)
        return True

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and isinstance(right, int) and isinstance(left, int):
            size = abs(right) * left.bit_length()
        elif operator == "*" and (isinstance(left, _SIZED) or isinstance(right, _SIZED)):
            size = _size(left) * _size(right)
        elif operator == "+" and isinstance(left, _SIZED) and isinstance(right, _SIZED):
            size = len(left) + len(right)
        elif operator == "%" and isinstance(left, str) and _WIDE.search(left):
            raise _TooMuch("it formats text to a very large or a computed width")
        else:
            size = 0
        if size > MAX_CHARACTERS:
            raise _TooMuch(f"one '{operator}' makes something larger than {MAX_CHARACTERS:,}")
        return super().call_binop(context, operator, left, right)

    def joined(self, *parts: Any) -> str:
        """`a ~ b ~ c`, within the limit."""
        texts = [str(part) for part in parts]
        if sum(map(len, texts)) > MAX_CHARACTERS:
            raise _TooMuch(f"one '~' makes something larger than {MAX_CHARACTERS:,}")
        return "".join(texts)


_SIZED = (str, list, tuple)
_WIDE = re.compile(r"%[^a-zA-Z]*(\d{6}|\*)")


def _size(operand: Any) -> int:
    return abs(operand) if isinstance(operand, int) else len(operand) if isinstance(operand, _SIZED) else 1


def _raise_exception(message: object = "no reason given") -> NoReturn:
    raise _Refused(str(message))


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it: readable characters, and no escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> _Sandbox:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    del environment.globals["lipsum"]
    return environment


_SANDBOX = _environment()


@lru_cache(maxsize=64)
def _compile(source: str, name: str, looked_for: Callable[[str], str] | None) -> jinja2.Template:
    try:
        tree = _SANDBOX.parse(source, filename=_FILE)
        if looked_for is not None:
            _change_searches(tree, looked_for)
        _count_steps(tree)
        code = _SANDBOX.compile(tree, filename=_FILE)
    except (jinja2.TemplateSyntaxError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise TemplateMissing(
            f"The {name} is not valid Jinja{line}: {error or 'nested too deeply'}. Give another one with --template."
        ) from error
    return jinja2.Template.from_code(_SANDBOX, code, _SANDBOX.make_globals(None))


def _count_steps(tree: nodes.Template) -> None:
    """Put a call of `step` into every loop and macro, and make `~` a call of `joined`."""
    blocks: Iterator[nodes.For | nodes.Macro | nodes.CallBlock] = tree.find_all(
        (nodes.For, nodes.Macro, nodes.CallBlock)
    )
    for block in list(blocks):
        block.body.insert(0, nodes.ExprStmt(_call("step", [], block.lineno), lineno=block.lineno))
        if isinstance(block, nodes.For) and block.test is not None:
            block.test = nodes.And(_call("step", [], block.lineno), block.test, lineno=block.lineno)
    _replace_joins(tree)
    tree.set_environment(_SANDBOX)


_SEARCHES = {
    *("count", "endswith", "find", "index", "partition", "removeprefix", "removesuffix", "replace"),
    *("rfind", "rindex", "rpartition", "rsplit", "split", "startswith"),
}
"""Methods and filters whose first argument is looked for."""


def _change_searches(tree: nodes.Template, change: Callable[[str], str]) -> None:
    """Do `change` to the texts that the template looks for: operands of comparisons, arguments of searches."""
    searched: list[nodes.Node] = []
    for compare in tree.find_all(nodes.Compare):
        searched += [compare.expr, *(operand.expr for operand in compare.ops)]
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr in _SEARCHES:
            searched += call.args[:1]
    for filter in tree.find_all(nodes.Filter):
        if filter.name in _SEARCHES:
            searched += filter.args[:1]
    for node in searched:
        for text in [node] if isinstance(node, nodes.Const) else getattr(node, "items", []):
            if isinstance(text, nodes.Const) and isinstance(text.value, str):
                text.value = change(text.value)


def _replace_joins(node: nodes.Node) -> None:
    for field, value in node.iter_fields():
        if isinstance(value, list):
            value[:] = [_without_join(item) for item in value]
        else:
            setattr(node, field, _without_join(value))


def _without_join(value: Any) -> Any:
    if not isinstance(value, nodes.Node):
        return value
    _replace_joins(value)
    return _call("joined", value.nodes, value.lineno) if isinstance(value, nodes.Concat) else value


def _call(method: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None, lineno=line)


def _at_line(error: BaseException) -> str:
    """`, line 7` of the template where `error` came up."""
    lines = [frame_line for name, frame_line in _frames(error) if name == _FILE]
    return f", line {lines[-1]}" if lines else ""


def _frames(error: BaseException) -> Iterator[tuple[str, int]]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next
