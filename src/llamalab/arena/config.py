"""The configuration of an arena: read from YAML, checked, and what is left open filled and said.

Every mistake is a `ConfigError` with file, line and name of the setting, and what to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llamalab.arena import config_sections as sections
from llamalab.arena.config_file import File, PolicySection, ResponsesSection
from llamalab.arena.config_reading import Reading, check_penalties
from llamalab.arena.refusals import check_policies
from llamalab.arena.settings import ArenaConfig, Writing
from llamalab.engines.options import nearest
from llamalab.errors import ConfigError
from llamalab.scoring.policy import Policy
from llamalab.scoring.settings_file import lines_of, read_settings

_BASE = "p0"
_WRITING = ("max_tokens", "stop", "schema")


def load_config(path: Path, overrides: Mapping[str, Any] | None = None) -> ArenaConfig:
    """The configuration in a YAML file.

    Models, prompts and labels need not exist before they are used.

    Args:
        path: of the file.
        overrides: settings that the command line gives, by their dotted names ("prompts.num"); they win.

    Raises:
        ConfigError: the file cannot be read, or a setting has a wrong name, value or neighbour.
    """
    path = path.expanduser()
    reading = Reading(path, lines_of(path))
    content = read_settings(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no settings: it needs at least a section 'policies'.")
    content = _overridden(content, overrides or {}, reading.lines)
    file = reading.parsed(File, content, "")
    policies, writing = _policies(reading, file.policies, file.responses)
    base, targets = _roles(reading, file, list(policies))
    config = ArenaConfig(
        path=path,
        policies=policies,
        writing=writing,
        base=base,
        targets=targets,
        clone=None,
        prompts=sections.prompts(reading, file.prompts),
        responses=sections.responses(reading, file.responses, policies),
        judge=sections.judge(reading, file.judge, "judge", policies[base]),
        oracle=sections.oracle(reading, file.oracle, policies[base]),
        estimators=sections.estimators(reading, file.estimators),
        candidates=sections.candidates(reading, file.candidates),
        folder=sections.folder(reading, file),
        lines=reading.lines,
        said=tuple(reading.said),
    )
    return check_policies(config)


def _overridden(content: dict[Any, Any], overrides: Mapping[str, Any], lines: dict[str, int]) -> dict[str, Any]:
    """The content with what the command line gives; such a setting stands on line 0."""
    changed = {str(key): value for key, value in content.items()}
    for place, value in overrides.items():
        section, _, name = place.partition(".")
        if name:
            inner = changed.get(section)
            value = {**(inner if isinstance(inner, dict) else {}), name: value}
        changed[section] = value
        for each in [each for each in lines if each.startswith(f"{place}.")]:
            del lines[each]
        lines[place] = 0
    return changed


def _policies(
    reading: Reading, given: Mapping[str, Any], responses: ResponsesSection
) -> tuple[dict[str, Policy], dict[str, Writing]]:
    if not given:
        reading.refuse("policies", "there is no policy: each stands here under a name of its own, with its model.")
    policies, writing = {}, {}
    common = Writing(
        responses.max_tokens,
        sections.stop(responses.stop),
        sections.schema(reading, responses.schema_, "responses.schema"),
    )
    for key, settings in given.items():
        name, place = str(key), f"policies.{key}"
        if not re.fullmatch(r"[\w.+-]+", name) or name in (".", ".."):
            reading.refuse(place, "its name may have letters, digits and . _ + - only: files are named by it.")
        if not isinstance(settings, dict):
            reading.refuse(place, f"its settings are a mapping (model: ..., temperature: ...), not {settings!r}.")
        rest = {str(each): value for each, value in settings.items()}
        check_penalties(reading, rest, place)
        own = {each: rest.pop(each) for each in _WRITING if each in rest}
        section = reading.parsed(PolicySection, own, place)
        writing[name] = Writing(
            section.max_tokens or common.max_tokens,
            common.stop if section.stop is None else sections.stop(section.stop),
            common.schema if section.schema_ is None else sections.schema(reading, section.schema_, f"{place}.schema"),
        )
        policies[name] = reading.policy(name, rest, place)
    return policies, writing


def _roles(reading: Reading, file: File, names: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Base and targets."""
    base = file.base
    if base is None:
        base = _BASE if _BASE in names else names[0]
        reading.said.append(f"base: no policy is named, so it is '{base}'.")
    if base not in names:
        reading.refuse("base", f"there is no policy {base!r}.{nearest(base, names)}")
    targets = file.targets
    if targets is None:
        targets = [name for name in names if name != base]
    for number, name in enumerate(targets):
        if name not in names:
            reading.refuse(f"targets.{number}", f"there is no policy {name!r}.{nearest(name, names)}")
        if name == base:
            reading.refuse(f"targets.{number}", f"'{name}' is the base; its value is always there. Take it out.")
        if name in targets[:number]:
            reading.refuse(f"targets.{number}", f"'{name}' is there twice. Take one out.")
    if not targets:
        reading.refuse(
            "targets" if file.targets is not None else "policies",
            "there is no policy to compare the base with. Add one under 'policies'.",
        )
    return base, tuple(targets)
