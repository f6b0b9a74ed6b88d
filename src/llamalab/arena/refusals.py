"""Which policies cannot be compared with the base's responses, seen from their settings alone.

An importance weight is p_target(response) / p_base(response). It means something only if the base is exactly what wrote
the responses, if it could have written whatever the target writes, and if both stop writing by the same rules.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from llamalab.arena.settings import ArenaConfig
from llamalab.errors import ConfigError
from llamalab.scored import Decoding
from llamalab.scoring.policy import Policy

_IRRELEVANT = frozenset({"n_threads", "n_seq", "load_mode"})
_CLONE = re.compile(r"clone|pi_clone")

_DECIDES: dict[str, Callable[[Policy], Any]] = {
    "provider": lambda policy: policy.provider,
    "model": lambda policy: os.path.expanduser(policy.model),  # noqa: PTH111
    "system_prompt": lambda policy: policy.system_prompt,
    "template": lambda policy: policy.template,
    "date": lambda policy: policy.date,
    "temperature": lambda policy: policy.decoding.temperature,
    "top_k": lambda policy: policy.decoding.top_k,
    "top_p": lambda policy: policy.decoding.top_p,
    "min_p": lambda policy: policy.decoding.min_p,
    "order": lambda policy: policy.decoding.order if policy.decoding.truncates else None,
    "options": lambda policy: {name: str(value) for name, value in policy.options.items() if name not in _IRRELEVANT},
}
"""What of a policy decides its distribution. The seed does not: it chooses which responses are drawn from it."""

_WRITING = {"max_tokens": "Responses are cut at another length", "stop": "Responses end at other strings"}


def check_policies(config: ArenaConfig) -> ArenaConfig:
    """The configuration with its clone found.

    Raises:
        ConfigError: a policy that cannot be compared with the base's responses; names the setting and the remedy.
    """
    base = config.policies[config.base]
    _check_writer(config, base)
    for name in (config.base, *config.targets):
        _check_sampler(config, name)
    clone = None
    for name in config.targets:
        differ = differences(base, config.policies[name]) + _writing_differences(config, name)
        if not differ:
            clone = clone or name
        elif _CLONE.fullmatch(name.lower()):
            raise ConfigError(
                f"{config.at(f'policies.{name}.{differ[0]}')}: a clone agrees with the base '{config.base}' in "
                f"everything, and '{name}' has another {_listed(differ)}. Make them equal, or give the policy another "
                "name."
            )
    for name in config.targets:
        _check_writing(config, name)
        _check_support(config, name)
    if config.writing[config.base].schema is not None and config.candidates is None:
        raise ConfigError(
            f"{config.at('responses.schema')}: a schema takes tokens away while a response is written, and what is "
            "left is another distribution than the one that scores it. Take it out, and say in the system prompt what "
            "an answer should look like."
        )
    return replace(config, clone=clone)


def differences(one: Policy, other: Policy) -> list[str]:
    """Names of the settings in which two policies are different distributions."""
    return [name for name, of in _DECIDES.items() if of(one) != of(other)]


def contains(base: Decoding, target: Decoding) -> bool:
    """Whether, of the same logits, a sampler keeps at least the tokens that another one keeps.

    A truncation before temperature looks at the model's own distribution, one after it at a sharper or flatter one, so
    the nucleus of a target is inside the base's only if its temperature there is not higher.
    """
    if not base.truncates:
        return True
    fewer = base.top_k == 0 or 0 < target.top_k <= base.top_k
    by_mass = base.top_p < 1 or base.min_p > 0
    sharper = not by_mass or _seen_at(target) <= _seen_at(base)
    return fewer and sharper and target.top_p <= base.top_p and target.min_p >= base.min_p


def _seen_at(decoding: Decoding) -> float:
    """The temperature of the distribution that truncations look at."""
    return decoding.temperature if decoding.order == "temperature_first" else 1.0


def _check_writer(config: ArenaConfig, base: Policy) -> None:
    """The base has to be what wrote the responses."""
    writer = config.responses.generated_by
    if writer is None:
        if base.remote and config.candidates is None:
            raise ConfigError(
                f"{config.at(f'policies.{config.base}.provider')}: the base runs elsewhere ({base.provider}), and its "
                "responses cannot be generated here. Give them in responses.file, with responses.generated_by."
            )
    elif differ := differences(writer, base):
        raise ConfigError(
            f"{config.at('responses.generated_by')}: the responses were written with another {_listed(differ)} than "
            f"the base '{config.base}' has, so its scores are not the probabilities that they were drawn with. Make "
            "the base what wrote them."
        )
    for name in config.targets:
        if config.responses.draws and config.policies[name].remote:
            raise ConfigError(
                f"{config.at('responses.draws')}: policy '{name}' runs elsewhere ({config.policies[name].provider}), "
                "and fresh responses of it cannot be drawn here. Set draws to 0, or take the policy out."
            )


def _check_sampler(config: ArenaConfig, name: str) -> None:
    """What is generated here has to be drawn as it is scored."""
    policy = config.policies[name]
    generated = config.responses.file is None if name == config.base else config.responses.draws > 0
    late = policy.decoding.truncates and policy.decoding.order == "temperature_first"
    if generated and not policy.remote and late and policy.decoding.temperature != 1 and config.candidates is None:
        raise ConfigError(
            f"{config.at(f'policies.{name}.order')}: the engines here truncate before temperature when they write, so "
            f"'{name}' would be scored by another sampler than the one that wrote its responses. Leave order out."
        )


def _writing_differences(config: ArenaConfig, name: str) -> list[str]:
    one, other = config.writing[config.base], config.writing[name]
    names = [each.name for each in dataclasses.fields(one)]
    return [each for each in names if getattr(one, each) != getattr(other, each)]


def _check_writing(config: ArenaConfig, name: str) -> None:
    for differ in _writing_differences(config, name):
        said = _WRITING.get(differ, "Responses are held to another schema")
        raise ConfigError(
            f"{config.at(f'policies.{name}.{differ}')}: policy '{name}' has another {differ} than the base "
            f"'{config.base}'. {said}, and no weight makes up for that. Give all policies one {differ}, best under "
            "'responses'."
        )


def _check_support(config: ArenaConfig, name: str) -> None:
    """Whatever the target can write, the base must have been able to write."""
    base, target = config.policies[config.base], config.policies[name]
    if not base.decoding.truncates:
        return
    cuts = [each for each in ("top_p", "top_k", "min_p") if getattr(base.decoding, each) != getattr(Decoding(), each)]
    same = {"provider", "model", "system_prompt", "template", "date", "options"}.isdisjoint(differences(base, target))
    if same and contains(base.decoding, target.decoding):
        return
    why = "can write what the base never does" if same else "is not the base's distribution cut further"
    raise ConfigError(
        f"{config.at(f'policies.{config.base}.{cuts[0]}')}: the base '{config.base}' never writes what its "
        f"{_listed(cuts)} cuts off, and target '{name}' {why}. No weight brings such responses back. "
        f"Take {_listed(cuts)} out of the base (the targets may keep theirs) and let it write anew."
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
