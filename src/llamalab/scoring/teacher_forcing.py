"""The log probability of a response, under one policy: what a script or a notebook uses.

with TeacherForcing(model="pico", temperature=0.5) as forcing:
    print(forcing.compute_log_prob("What is the capital of France?", "Paris.").value)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from llamalab.engine import Message
from llamalab.errors import LlamalabError
from llamalab.scored import ScoreMode
from llamalab.scoring.policy import DATE, Policy, make_policy
from llamalab.scoring.result import LogProbResult
from llamalab.scoring.session import Item, Session
from llamalab.scoring.store import Store

Prompt = str | Sequence[Message]
"""A user's message, or a conversation; for a model without a template, text to continue."""


class TeacherForcing:
    """Scores responses under one policy. A context manager; safe from several threads.

    The tokeniser is read at once, the weights at the first response. Two of equal settings share the weights of a GGUF
    file and give equal bits (mode "strict").

    Args:
        provider: "llama_cpp", "jax", "fireworks", ...; None: the model's file says it.
        model: a path (`~` is the home folder), "pico", "hub:...", or the provider's name for it.
        temperature: above 0; the model's logits are divided by it.
        seed: for the record: no log probability depends on it.
        n_ctx: context in tokens; None: what the model was trained for, at most 4096.
        n_gpu_layers: layers kept on the GPU, -1 all; None: the engine decides.
        system_prompt: put in front of each conversation.
        top_p: see `Decoding`, like `top_k` and `min_p`.
        top_k: see there.
        min_p: see there.
        template: name of a built-in chat template, or a file; None: the model's own.
        adapters: LoRA adapters, each a path or (path, scale).
        mode: "strict" or "fast", see `ScoreMode`.
        store: a `Store` or the path of one, in which scores are looked up and kept; None: none.
        order: "truncate_first" (llama.cpp, and the default of local engines) or "temperature_first" (the default of
            remote ones).
        date: the day that a template is told which asks for today's, YYYY-MM-DD.
        options: further ones of the engine, see `llamalab.load`, or of the endpoint.

    Attributes:
        policy: the settings as one record.

    Raises:
        ModelNotFound, ModelFileError: no such model, or one that cannot be read.
        ProviderError: no such provider.
        ConfigError: a setting with a wrong name or value. Temperature 0 is one: there all mass is on one token, and
            almost every response has probability 0.
        TemplateMissing: no such template.
        StoreError: the store cannot be used.
    """

    def __init__(
        self,
        provider: str | None = None,
        model: str | os.PathLike[str] = "pico",
        temperature: float = 1.0,
        seed: int | None = None,
        n_ctx: int | None = None,
        n_gpu_layers: int | None = None,
        system_prompt: str | None = None,
        *,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        template: str | os.PathLike[str] | None = None,
        adapters: Any = None,
        mode: ScoreMode = "strict",
        store: Store | str | os.PathLike[str] | None = None,
        order: str | None = None,
        date: str = DATE,
        **options: Any,
    ) -> None:
        given = {"provider": provider, "model": model, "temperature": temperature, "seed": seed, "n_ctx": n_ctx}
        given |= {"n_gpu_layers": n_gpu_layers, "system_prompt": system_prompt, "top_p": top_p, "top_k": top_k}
        given |= {"min_p": min_p, "template": template, "adapters": adapters, "order": order, "date": date}
        self.policy: Policy = make_policy("policy", given | options)
        self._own_store = None if store is None or isinstance(store, Store) else Store(Path(store))
        kept = store if isinstance(store, Store) else self._own_store
        try:
            self._session = Session([self.policy], mode=mode, store=kept)
        except BaseException:
            if self._own_store is not None:
                self._own_store.close()
            raise
        try:
            if not self.policy.remote:
                self._session.tokens(self.policy).layout(self.policy)
        except BaseException:
            self.close()
            raise

    def compute_log_prob(
        self,
        prompt: Prompt,
        response: str | None = None,
        finished: bool = True,
        response_ids: Sequence[int] | None = None,
    ) -> LogProbResult:
        """log p(response | prompt).

        Args:
            prompt: a user's message, or a conversation; for a model without a template, text to continue.
            response: its text, as the model would have written it.
            finished: the response ended by itself, so the token that ends it belongs to it; False: it was cut off.
            response_ids: the tokens, where they are known (a `Reply` has them); they win over `response`.

        Raises:
            InputError: an empty prompt or response, or text that the vocabulary cannot spell.
            ContextOverflow: prompt and response together are longer than the context; nothing is cut.
            TemplateMissing: a conversation or a system prompt for a model without a template.
            ProviderError, TokenBoundaryError: a remote endpoint that cannot say it.
            NonFinite: the model's numbers are out of order.
            LlamalabError: the model cannot be loaded; the class says why.
        """
        item = Item(self.policy, prompt, response, finished, response_ids)
        ((_, outcome),) = self._session.score([item])
        if isinstance(outcome, LlamalabError):
            raise outcome
        return outcome

    def compute_log_probs(self, pairs: Iterable[tuple[Prompt, str]], finished: bool = True) -> list[LogProbResult]:
        """log p(response | prompt) for each (prompt, response); what they begin with in common is computed once.

        Raises:
            As `compute_log_prob`, for the first pair that has no score; a note says which (from 0).
        """
        items = (Item(self.policy, prompt, response, finished) for prompt, response in pairs)
        results: list[LogProbResult] = []
        for _, outcome in self._session.score(items):
            if isinstance(outcome, LlamalabError):
                outcome.add_note(f"It was pair {len(results)}.")
                raise outcome
            results.append(outcome)
        return results

    def close(self) -> None:
        """Free the model."""
        self._session.close()
        if self._own_store is not None:
            self._own_store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


RobustTeacherForcing = TeacherForcing
"""The name under which older scripts know it."""
