"""A JSON schema in the form that OpenAI's strict mode takes, and the way back from an answer to the schema's own form.

That mode takes a part of JSON Schema: the whole is an object, every property of an object is required, none may be
added, and some keywords are refused. So what may be left out is null instead, what is no object stands in one, and
bounds that it does not know are left out. Groups of keywords that cannot be said in that form have none.

Source: OpenAI, "Structured model outputs", section "Supported schemas".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Part: TypeAlias = Mapping[str, Any]

_WRAPPER = "reply"  # the property that holds what is no object
_SILENT = frozenset(
    "$schema $id $anchor $comment $defs definitions title description default examples deprecated readOnly writeOnly"
    " required".split()
)
"""Keywords that allow and forbid nothing by themselves, or are looked at elsewhere."""
_KEPT = frozenset("pattern minimum maximum exclusiveMinimum exclusiveMaximum multipleOf minItems maxItems".split())
_FORMATS = frozenset("date-time time date duration email hostname ipv4 ipv6 uuid".split())
_LEFT_OUT = frozenset({"minLength", "maxLength", "uniqueItems", "format"})
_TYPES: Mapping[type, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    type(None): "null",
    dict: "object",
    list: "array",
}


@dataclass(frozen=True, slots=True)
class StrictForm:
    """A schema as the strict mode takes it.

    Attributes:
        schema: as it is sent.
        exact: whatever follows `schema` follows the schema that it stands for; if not, a bound had to be left out.
    """

    schema: Part
    exact: bool
    _of: Part
    _wrapped: bool

    def restored(self, text: str) -> str | None:
        """An answer in the form of the schema that this one stands for; None where it does not follow this one."""
        try:
            found = json.loads(text)
            if self._wrapped:
                found = found[_WRAPPER] if isinstance(found, dict) and list(found) == [_WRAPPER] else _NO
            value = _own_form(self._of, found, self._of)
            if value is _NO:
                return None
            if value == found and not self._wrapped:
                return text
            written = json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (ValueError, RecursionError):
            return None
        # Half a surrogate pair may be escaped in JSON; no text that is passed on may hold one.
        return written.encode("utf-8", "replace").decode("utf-8")


def strict_form(schema: Part) -> StrictForm | None:
    """A schema in the strict form; None for one that cannot be said in it."""
    writing = _Writing(schema)
    try:
        whole = writing.form(schema)
        wrapped = whole.get("type") != "object"
        if wrapped:
            whole = _object({_WRAPPER: whole})
    except (_NotStrict, RecursionError):
        return None
    if writing.definitions:
        whole = {**whole, "$defs": writing.definitions}
    return StrictForm(whole, writing.exact, schema, wrapped)


class _NotStrict(Exception):
    """A part of a schema cannot be said in the strict form."""


class _No:
    """Stands for no value at all, where null is one."""


_NO = _No()


class _Writing:
    """The strict form of one schema in the making.

    Attributes:
        definitions: the parts that are referred to, under names of their own.
        exact: see `StrictForm`.
    """

    def __init__(self, root: Part) -> None:
        self._root = root
        self._names: dict[str, str] = {}
        self.definitions: dict[str, Any] = {}
        self.exact = True

    def form(self, part: Any) -> dict[str, Any]:
        """The strict form of a part.

        Raises:
            _NotStrict: it has none.
        """
        if not isinstance(part, Mapping):
            raise _NotStrict
        said = {"description": part["description"]} if isinstance(part.get("description"), str) else {}
        words = set(part) - _SILENT
        if words == {"$ref"}:
            return {"$ref": f"#/$defs/{self._name(part['$ref'])}"}
        for union in ("anyOf", "oneOf"):
            if words == {union}:
                self.exact &= union == "anyOf"
                return {**said, "anyOf": [self.form(each) for each in _list(part[union])]}
        if "const" in part or "enum" in part:
            return {**said, **self._one_of(part, words)}
        types = [part["type"]] if isinstance(part.get("type"), str) else _list(part.get("type"))
        written: dict[str, Any] = {**said, "type": part["type"]}
        words -= {"type"}
        if "object" in types:
            written |= self._members(part)
            words -= {"properties", "additionalProperties"}
        if "array" in types:
            written["items"] = self.form(part.get("items"))
            words -= {"items"}
        for word in words:
            if word in _KEPT or (word == "format" and part[word] in _FORMATS):
                written[word] = part[word]
            elif word in _LEFT_OUT:
                self.exact = False
            else:
                raise _NotStrict
        return written

    def _members(self, part: Part) -> dict[str, Any]:
        properties, required = part.get("properties"), part.get("required", [])
        # An object of any names has no strict form; one that only may have others than its own does without them.
        if not isinstance(properties, Mapping) or not properties or set(required) - set(properties):
            raise _NotStrict
        if isinstance(part.get("additionalProperties"), Mapping) and part["additionalProperties"]:
            raise _NotStrict
        members = {}
        for name, each in properties.items():
            written = self.form(each)
            if name not in required and _own_form(each, None, self._root) is _NO:
                written = {"anyOf": [written, {"type": "null"}]}
            members[name] = written
        return _object(members)

    def _one_of(self, part: Part, words: set[str]) -> dict[str, Any]:
        if words - {"const", "enum", "type"} or {"const", "enum"} <= words:
            raise _NotStrict
        values = [part["const"]] if "const" in part else _list(part["enum"])
        if not values or any(isinstance(value, dict | list) for value in values):
            raise _NotStrict
        kinds = list(dict.fromkeys(_TYPES[type(value)] for value in values))
        return {"type": part.get("type", kinds[0] if len(kinds) == 1 else kinds), "enum": values}

    def _name(self, reference: Any) -> str:
        """The name under which a part that is referred to stands among the definitions."""
        if not isinstance(reference, str):
            raise _NotStrict
        if reference not in self._names:
            self._names[reference] = name = f"part{len(self._names) + 1}"
            self.definitions[name] = self.form(_target(self._root, reference))
        return self._names[reference]


def _object(members: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": members, "required": list(members), "additionalProperties": False}


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise _NotStrict
    return value


def _target(root: Part, reference: str) -> Any:
    """What a reference within a schema points at.

    Raises:
        _NotStrict: nothing there.
    """
    found: Any = root
    where, *steps = reference.split("/")
    for step in steps:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, Mapping) and name in found:
            found = found[name]
        else:
            raise _NotStrict
    if where != "#":
        raise _NotStrict
    return found


def _own_form(part: Any, value: Any, root: Part) -> Any:
    """A value without the nulls that stand for what is left out; `_NO` where it does not have the shape of `part`."""
    if not isinstance(part, Mapping):
        return _NO
    if "$ref" in part:
        return _own_form(_target(root, part["$ref"]), value, root)
    for union in ("anyOf", "oneOf"):
        if union in part:
            forms = (_own_form(each, value, root) for each in part[union])
            return next((form for form in forms if form is not _NO), _NO)
    kind = _TYPES.get(type(value))
    if "const" in part or "enum" in part:
        allowed = [part["const"]] if "const" in part else part["enum"]
        return value if any(value == each and kind == _TYPES[type(each)] for each in allowed) else _NO
    types = [part["type"]] if isinstance(part.get("type"), str) else part.get("type", [])
    if kind not in types and not (kind == "integer" and "number" in types):
        return _NO
    if isinstance(value, list):
        items = [_own_form(part["items"], each, root) for each in value]
        return _NO if any(item is _NO for item in items) else items
    if not isinstance(value, dict):
        return value
    properties, required = part["properties"], part.get("required", [])
    if set(value) - set(properties) or set(required) - set(value):
        return _NO
    members = {}
    for name, each in value.items():
        form = _own_form(properties[name], each, root)
        if form is _NO and (each is not None or name in required):
            return _NO
        if form is not _NO:
            members[name] = form
    return members
