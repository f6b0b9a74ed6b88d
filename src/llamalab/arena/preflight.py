"""What is looked at before anything runs: a run that takes hours must not end at what could be seen at once."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

from llamalab.arena.prompt_files import is_missing
from llamalab.arena.settings import ArenaConfig, JudgeSettings
from llamalab.errors import ConfigError, LlamalabError, ProviderUnavailable

EXTRA = ("scipy", "sklearn", "pyarrow", "matplotlib", "cje")
"""Modules that the extra `arena` brings."""


def require_extra() -> None:
    """See that what the arena needs is installed.

    Raises:
        ConfigError: it is not; names the extra.
    """
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"The arena needs {', '.join(missing)}, which its extra brings. Install it: pip install 'llamalab[arena]'."
        )


def check(config: ArenaConfig) -> None:
    """See that the models, functions and files that a configuration names are there.

    Raises:
        ConfigError: one is not; names file, line and setting.
    """
    _check_models(config)
    _check_judges(config)
    oracle = None if config.oracle is None else config.oracle.file
    if is_missing(config.prompts.source):
        place = config.at("prompts.file")
        raise ConfigError(f"{place}: there is no file {config.prompts.source}. Name one that is there.")
    for place, path in (("responses.file", config.responses.file), ("oracle.file", oracle)):
        if path is not None and not path.is_file():
            raise ConfigError(f"{config.at(place)}: there is no file {path}. Name one that is there.")


def check_endpoints(config: ArenaConfig) -> None:
    """See that policies that run elsewhere can be scored there: each endpoint repeats what it generates, with the same
    log probabilities.

    Raises:
        ConfigError: one cannot, or a setting is none that endpoints have; names file, line and policy.
        ProviderUnavailable: one does not answer now.
    """
    from llamalab.scoring.remote import RemoteScorer

    for name, policy in config.compared.items():
        if policy.remote:
            where = config.at(f"policies.{name}")
            try:
                with RemoteScorer(policy) as scorer:
                    scorer.self_check()
            except ProviderUnavailable as error:
                raise ProviderUnavailable(f"{where}: {error}", status=error.status) from None
            except LlamalabError as error:
                raise ConfigError(f"{where}: {error}") from None


def check_references(config: ArenaConfig, prompts: Mapping[str, Mapping[str, Any]]) -> None:
    """See that prompts have the right answers that a judge compares with.

    Raises:
        ConfigError: none has.
    """
    for place, judge in _judges(config):
        if judge.kind == "exact_match" and not any(judge.reference in prompt for prompt in prompts.values()):
            raise ConfigError(
                f"{config.at(f'{place}.reference')}: no prompt has a field '{judge.reference}' to compare responses "
                "with. Name the field that holds the right answer."
            )


def _judges(config: ArenaConfig) -> Iterator[tuple[str, JudgeSettings]]:
    """The judge and the oracle's, each with its place in the file."""
    yield "judge", config.judge
    if config.oracle is not None and config.oracle.judge is not None:
        yield "oracle.judge", config.oracle.judge


def _check_models(config: ArenaConfig) -> None:
    from llamalab.checkpoints.locate import locate

    models = {f"policies.{name}.model": policy for name, policy in config.compared.items()}
    models |= {f"{place}.model": judge.model for place, judge in _judges(config) if judge.model is not None}
    for place, policy in models.items():
        if policy.remote:
            continue
        try:
            locate(policy.model)
        except LlamalabError as error:
            raise ConfigError(f"{config.at(place)}: {error}") from None


def _check_judges(config: ArenaConfig) -> None:
    """Functions are found, and chat models elsewhere have an address and a key; nothing is asked there."""
    from llamalab.arena.judges import open_judge

    for place, judge in _judges(config):
        elsewhere = judge.kind == "llm" and judge.model is not None and judge.model.remote
        if judge.kind == "python" or elsewhere:
            try:
                open_judge(judge).close()
            except LlamalabError as error:
                raise ConfigError(f"{config.at(f'{place}.model' if elsewhere else f'{place}.kind')}: {error}") from None
