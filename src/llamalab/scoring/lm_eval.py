"""A model for lm-evaluation-harness: its three kinds of requests over one engine, on exact token ids.

The harness knows it as `llamalab`: versions that look for entry points find it by themselves, and for all of them

    python -m llamalab.scoring.lm_eval --model llamalab --model_args model=pico --tasks ...

is the harness's own command with the model registered. Where the harness's rules say how a text becomes tokens, they
are kept: white space at the end of a context belongs to the continuation; a rolling window predicts each token once.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from llamalab.chat import EngineChat
from llamalab.engine import GenerateRequest, Generation, Message, SamplingParams
from llamalab.engines import load
from llamalab.errors import ConfigError, ContextOverflow, NonFinite
from llamalab.scored import Scored, ScoreMode, ScoreRequest
from llamalab.scoring.lm_eval_ids import HarnessIds, followed_by

logger = logging.getLogger(__name__)

_AT_ONCE = 64  # requests between two updates of the progress bar and of the harness's cache
_SAMPLING = {"top_k": int, "top_p": float, "min_p": float, "seed": int}
_GENERATED = 256  # tokens, where a task does not say; the harness's own number


@register_model("llamalab")
class LlamalabLM(LM):  # type: ignore[misc]  # the harness has no types
    """An engine as the harness wants it.

    Args:
        model: a model spec, as `llamalab.load` takes it; `pretrained` is another name for it.
        mode: of scoring.
        template: of chats: a built-in's name or a file; None: the model's own.
        max_length: most tokens that a prediction looks back on; None: as many as the context holds.
        truncate: cut texts that are too long at their beginning, as the harness's other models do, with a warning; or
            else such a text is an error.
        batch_size, max_batch_size, device: what the harness hands to every model; without effect here.
        options: of the engine (n_ctx, n_gpu_layers, adapters, ...).

    Raises:
        ConfigError: no model, two of them, or an option that cannot be.
        ModelFileError, ProviderError: as `llamalab.load`.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        pretrained: str | None = None,
        mode: ScoreMode = "strict",
        template: str | None = None,
        max_length: int | None = None,
        truncate: bool = False,
        batch_size: int | str | None = None,  # noqa: ARG002
        max_batch_size: int | None = None,  # noqa: ARG002
        device: str | None = None,  # noqa: ARG002
        **options: Any,
    ) -> None:
        super().__init__()
        if (model is None) == (pretrained is None):
            raise ConfigError("Name one model: --model_args model=pico (or a path, or hub:org/repo).")
        self.engine = load(str(model or pretrained), **options)
        info = self.engine.info
        if max_length is not None and not 0 < max_length < info.n_ctx:
            raise ConfigError(f"max_length must be from 1 to {info.n_ctx - 1} (n_ctx less 1), not {max_length!r}.")
        self.mode: ScoreMode = mode
        self.max_length = max_length or info.n_ctx - 1
        self._truncate = truncate
        self._template = template
        self._chat = EngineChat(self.engine, template or ("plain" if info.chat_template is None else None))
        self._ids = HarnessIds(self._chat)

    @property
    def tokenizer_name(self) -> str:
        """What the harness tells its cache of requests apart by."""
        return f"llamalab:{self.engine.info.name}:{self._template or 'own'}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source, for the harness's records; None where none is to be applied.

        Raises:
            ConfigError: the name of one of several templates: models have one here (see `template`).
        """
        if isinstance(chat_template, str):
            raise ConfigError(
                "A template is chosen with --model_args template=NAME, not by --apply_chat_template NAME."
            )
        return self._chat.template.source if chat_template else None

    def apply_chat_template(self, chat_history: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The text of a conversation; without `add_generation_prompt`, its last message is left open.

        Its control tokens are remembered: of a text that comes back as a context, they alone become control tokens.
        """
        open_text = ""
        if not add_generation_prompt and chat_history and chat_history[-1]["role"] == "assistant":
            *chat_history, last = chat_history
            open_text = str(last["content"])
        pieces = self._chat.pieces(chat_history)
        if open_text:
            pieces = followed_by(pieces, open_text)
        return self._ids.remember(pieces)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """log p(continuation | context), nats, and whether each of its tokens is the most probable one.

        Raises:
            InputError: an empty continuation.
            ContextOverflow: a text that the context does not hold, without `truncate`.
        """
        pairs = [self._ids.pair(*request.args) for request in requests]
        scored = self._score(pairs, "loglikelihood", [request.args for request in requests], disable_tqdm)
        return [(one.total, all(rank == 1 for rank in one.ranks)) for one in scored]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log p(text), nats: in windows of `max_length` tokens, each token predicted once.

        The first token is conditioned on BOS (or EOS, for a model without BOS), which is itself not scored.
        """
        totals = []
        for request in tqdm(requests, disable=disable_tqdm, desc="loglikelihood_rolling"):
            (text,) = request.args
            ids = self._ids.text(text)
            windows = get_rolling_token_windows(
                token_list=ids, prefix_token=self._ids.prefix_id, max_seq_len=self.max_length, context_len=1
            )
            pairs = [make_disjoint_window(window) for window in windows]
            total = math.fsum(scored.total for scored in self._score(pairs, "", [], True))
            totals.append(total)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to a stop string, the end of its turn, or a number of tokens.

        Raises:
            ConfigError: a generation setting that means nothing here.
            ContextOverflow: a context that leaves no room for the reply, without `truncate`.
        """
        asked = []
        for request in requests:
            context, given = request.args
            params = _sampling(given)
            room = self.engine.info.n_ctx - (params.max_tokens or 1)
            asked.append(GenerateRequest(self._cut(self._ids.context(context), room, "A context"), params))
        texts = [""] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="generate_until") as bar:
            for event in self.engine.generate(asked):
                if isinstance(event, Generation):
                    texts[event.request] = event.text
                    self.cache_hook.add_partial("generate_until", requests[event.request].args, event.text)
                    bar.update(1)
        return texts

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results."""
        info = self.engine.info
        return {
            "model_num_parameters": info.n_params,
            "llamalab_version": version("llamalab"),
            "llamalab_provider": info.provider,
            "llamalab_mode": self.mode,
            "max_length": self.max_length,
        }

    def _score(
        self, pairs: Sequence[tuple[list[int], list[int]]], kind: str, args: Sequence[Any], quiet: bool
    ) -> list[Scored]:
        """Scores in the order of `pairs`; computed in that of their ids, in which neighbours share most."""
        found: dict[int, Scored] = {}
        order = sorted(range(len(pairs)), key=lambda number: [*pairs[number][0], *pairs[number][1]])
        with tqdm(total=len(pairs), disable=quiet, desc=kind) as bar:
            for numbers in _chunks(order, _AT_ONCE):
                requests = [self._request(*pairs[number]) for number in numbers]
                for number, scored in zip(numbers, self.engine.score(requests, mode=self.mode), strict=True):
                    if not math.isfinite(scored.total):
                        raise NonFinite(f"The engine gave {scored.total} for a text of {len(pairs[number][1])} tokens.")
                    found[number] = scored
                    if kind:
                        greedy = all(rank == 1 for rank in scored.ranks)
                        self.cache_hook.add_partial(kind, args[number], (scored.total, greedy))
                bar.update(len(numbers))
        return [found[number] for number in range(len(pairs))]

    def _request(self, prefix: list[int], response: list[int]) -> ScoreRequest:
        room = self.max_length + 1 - len(response)
        return ScoreRequest(self._cut(prefix, room, f"A context in front of {len(response)} tokens"), response)

    def _cut(self, ids: list[int], most: int, what: str) -> list[int]:
        """`ids`, or their end where that is asked for.

        Raises:
            ContextOverflow: there are more than `most`.
        """
        if len(ids) <= most:
            return ids
        if not self._truncate or most < 1:
            raise ContextOverflow(
                f"{what} has {len(ids)} tokens, and {max(most, 0)} fit. Load the model with a larger n_ctx, or let "
                "texts be cut at their beginning: truncate=True in --model_args.",
                needed=len(ids),
                available=max(most, 0),
            )
        logger.warning("%s of %d tokens was cut to its last %d.", what, len(ids), most)
        return ids[-most:]


def _sampling(given: Mapping[str, Any]) -> SamplingParams:
    """The harness's generation settings as ours; greedy unless they ask for samples.

    Raises:
        ConfigError: a setting that means nothing here.
    """
    settings = dict(normalize_gen_kwargs(dict(given), _GENERATED))
    until = settings.pop("until", None) or []
    stop = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
    most = int(settings.pop("max_gen_toks"))
    sample, temperature = settings.pop("do_sample", False), float(settings.pop("temperature", 0.0))
    known = {name: kind(settings.pop(name)) for name, kind in _SAMPLING.items() if name in settings}
    if settings.get("num_beams") == 1:
        del settings["num_beams"]
    if settings:
        raise ConfigError(
            f"The generation setting {min(settings)!r} means nothing here; known are until, max_gen_toks, do_sample, "
            f"temperature, {', '.join(_SAMPLING)}."
        )
    return SamplingParams(max_tokens=most, temperature=temperature if sample else 0.0, stop=stop, **known)


def _chunks(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for begin in range(0, len(numbers), size):
        yield numbers[begin : begin + size]


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
