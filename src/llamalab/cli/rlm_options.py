"""Options of `llamalab rlm` that its commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llamalab.rlm.config import RlmConfig


@dataclass(frozen=True, slots=True)
class RootAndSub:
    """Who steers, and who answers sub-questions."""

    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="Settings and providers, TOML.")
    ] = None
    root: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The model that steers, instead of the configured ones.")
    ] = None
    sub: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The model that answers sub-questions, instead of the configured ones."),
    ] = None

    def config_of(self) -> RlmConfig:
        """The configuration with these models.

        Raises:
            ConfigError: a mistake in the file.
            ModelNotFound, ModelFileError, ProviderError: there is no such model, or no such provider.
        """
        from llamalab.rlm.config import default_config, load_config, with_models

        config = default_config() if self.config is None else load_config(self.config)
        return with_models(config, root=self.root, sub=self.sub)
