"""The pool: shares by weight, failures asked elsewhere, budgets held; behind real servers that are stopped under it."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from llamalab.engine import SamplingParams, Usage
from llamalab.engines.remote import RemoteChat
from llamalab.errors import (
    BudgetExceeded,
    ConfigError,
    ContextOverflow,
    InputError,
    ProviderError,
    ProviderUnavailable,
)
from llamalab.rlm.budget import Budget, Limits
from llamalab.rlm.config import default_config, load_config
from llamalab.rlm.health import Health
from llamalab.rlm.providers import Pool, Provider, open_pool
from tests.chat_servers import SENTENCE, Answer, Answering, ChatServer, ollama, openai
from tests.rlm.test_config import EXAMPLES

QUESTION = [{"role": "user", "content": "How many words are here?"}]
GREEDY = SamplingParams(max_tokens=20, temperature=0.0)
SCHEMA = {"type": "object", "properties": {"op": {"const": "final"}}, "required": ["op"]}

Serve = Callable[..., ChatServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[ChatServer] = []

    def start(answer: Answering | None = None) -> ChatServer:
        servers.append(ChatServer(answer or ollama()))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def model(server: ChatServer, provider: str = "ollama", **options: Any) -> RemoteChat:
    return RemoteChat(provider, "m", base_url=server.url, **{"retries": 0, "n_ctx": 4096, **options})


def pool_of(*providers: Provider, retries: int = 0) -> Pool:
    return Pool(providers, retries=retries, backoff=0.02)


def shares(pool: Pool, calls: int, **more: Any) -> Counter[str]:
    return Counter(pool.chat("sub", QUESTION, GREEDY, **more).provider for _ in range(calls))


def test_three_to_one_is_exact_over_http(serve: Serve) -> None:
    servers = {"a": serve(), "b": serve()}
    with pool_of(Provider("a", model(servers["a"]), weight=3), Provider("b", model(servers["b"]))) as pool:
        assert shares(pool, 40) == {"a": 30, "b": 10}
    assert [len(server.asked) for server in servers.values()] == [30, 10]


def test_shares_are_exact_from_many_threads(serve: Serve) -> None:
    server = serve()
    names = {"a": 5, "b": 3, "c": 1}
    with pool_of(*(Provider(name, model(server), weight=weight) for name, weight in names.items())) as pool:
        found: list[Counter[str]] = []
        threads = [threading.Thread(target=lambda: found.append(shares(pool, 6))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(found, Counter()) == {"a": 20, "b": 12, "c": 4}


def test_a_provider_that_is_down_loses_no_call_and_gathers_no_credit(serve: Serve) -> None:
    up, down = serve(), serve()
    with pool_of(Provider("up", model(up)), Provider("down", model(down), weight=3)) as pool:
        down.stop()
        assert shares(pool, 100) == {"up": 100}
        down.start()
        pool._health[1].closed_until = 0.0  # the pause of the breaker is over
        assert shares(pool, 40) == {"up": 10, "down": 30}


def test_who_was_down_is_left_alone_for_a_while_and_then_tried_by_one_call(serve: Serve) -> None:
    up, down = serve(), serve(lambda _: Answer({"error": "busy"}, 503))
    with pool_of(Provider("up", model(up)), Provider("down", model(down))) as pool:
        shares(pool, 20)
        assert len(down.asked) == 3
        pool._health[1].closed_until = 0.0
        shares(pool, 20)
    assert len(down.asked) == 4


def test_after_a_pause_one_call_at_a_time_finds_out() -> None:
    health = Health(places=8)
    for _ in range(3):
        health.failed(now=100.0)
    assert [health.up(now) for now in (100.0, 104.9, 105.0)] == [False, False, True]
    health.running = 1
    assert not health.up(105.0)
    health.failed(now=106.0)
    assert [health.up(now) for now in (115.9, 200.0)] == [False, False]
    health.running = 0
    assert health.up(116.0)
    health.answered()
    assert health.up(0.0)


def test_who_asks_to_be_left_alone_is(serve: Serve) -> None:
    up, busy = serve(), serve(lambda _: Answer({"error": "slow down"}, 429, headers={"Retry-After": "30"}))
    with pool_of(Provider("busy", model(busy), weight=9), Provider("up", model(up))) as pool:
        assert shares(pool, 10) == {"up": 10}
    assert len(busy.asked) == 1


def test_a_failure_is_charged_to_the_one_that_answered(serve: Serve) -> None:
    calls = iter(range(100))

    def now_and_then(asked: Any) -> Answer:
        return Answer({"error": "busy"}, 503) if next(calls) == 0 else ollama()(asked)

    with pool_of(Provider("a", model(serve(now_and_then))), Provider("b", model(serve()))) as pool:
        first = pool.chat("sub", QUESTION, GREEDY)
        assert (first.provider, [attempt.provider for attempt in first.attempts]) == ("b", ["a"])
        # The turn that came to nothing is given again.
        assert [pool.chat("sub", QUESTION, GREEDY).provider for _ in range(4)] == ["a", "b", "a", "b"]


def test_a_saturated_provider_is_passed_over_and_calls_wait_for_a_place(serve: Serve) -> None:
    slow, quick = serve(ollama(pause=0.3)), serve()
    providers = (Provider("slow", model(slow), weight=9, concurrency=1), Provider("quick", model(quick), concurrency=1))
    with pool_of(*providers) as pool:
        threads = [threading.Thread(target=shares, args=(pool, 1)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(slow.asked) + len(quick.asked) == 6
    assert len(quick.asked) >= 4


def test_a_lonely_provider_is_asked_again_after_a_pause(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    server.stop()
    with pool_of(Provider("only", model(server)), retries=1) as pool:
        pause = pool._pause
        monkeypatch.setattr(pool, "_pause", lambda *given: (server.start(), pause(*given))[1])
        found = pool.chat("root", QUESTION, GREEDY)
    assert (found.reply.text, found.attempts[0].usage) == (SENTENCE, Usage())


def test_all_failures_are_named(serve: Serve) -> None:
    down, busy = serve(), serve(lambda _: Answer({"error": "over capacity"}, 503))
    down.stop()
    with pool_of(Provider("down", model(down)), Provider("busy", model(busy)), retries=1) as pool:
        says = r"tried 4 times\. down: .*cannot be reached.* busy: .*over capacity"
        with pytest.raises(ProviderUnavailable, match=says):
            pool.chat("sub", QUESTION, GREEDY)


def test_a_refused_key_is_not_tried_again(serve: Serve) -> None:
    wrong, right = serve(lambda _: Answer({"error": "no such key"}, 401)), serve()
    with pool_of(Provider("wrong", model(wrong), weight=5), Provider("right", model(right)), retries=2) as pool:
        assert shares(pool, 10) == {"right": 10}
    assert len(wrong.asked) == 1
    with pool_of(Provider("wrong", model(wrong)), retries=2) as pool:
        for _ in range(2):
            with pytest.raises(ProviderError, match="refuses the key"):
                pool.chat("sub", QUESTION, GREEDY)
    assert len(wrong.asked) == 2


def test_a_larger_context_takes_what_does_not_fit_a_smaller(serve: Serve) -> None:
    text = [{"role": "user", "content": "word " * 1000}]
    small, large = Provider("small", model(serve(), n_ctx=500)), Provider("large", model(serve()))
    with pool_of(small, large) as pool:
        assert pool.chat("sub", text, GREEDY).provider == "large"
    with pool_of(small) as pool, pytest.raises(ContextOverflow):
        pool.chat("sub", text, GREEDY)


def test_roles_are_kept_apart(serve: Serve) -> None:
    root, sub = serve(), serve()
    with pool_of(Provider("root", model(root), "root"), Provider("sub", model(sub), "sub")) as pool:
        assert pool.chat("root", QUESTION, GREEDY).provider == "root"
        assert [each.name for each in pool.of("sub")] == ["sub"]
    with pool_of(Provider("root", model(root), "root")) as pool, pytest.raises(ProviderError, match="has the role sub"):
        pool.chat("sub", QUESTION, GREEDY)


def test_two_providers_of_one_name_are_refused(serve: Serve) -> None:
    there = model(serve())
    with pytest.raises(ConfigError, match="one name"):
        Pool([Provider("a", there), Provider("a", there)])


def test_a_state_goes_on_in_another_pool(serve: Serve) -> None:
    server = serve()
    providers = [Provider(name, model(server), weight=weight) for name, weight in (("a", 5), ("b", 3), ("c", 1))]
    with Pool(providers) as first, Pool(providers) as second, Pool(providers[:2]) as other:
        for _ in range(4):
            first.chat("sub", QUESTION, GREEDY)
        second.restore(json.loads(json.dumps(first.state)))
        turns = [[pool.chat("sub", QUESTION, GREEDY).provider for _ in range(9)] for pool in (first, second)]
        assert turns[0] == turns[1]
        with pytest.raises(InputError, match="other providers"):
            other.restore(first.state)


# --- budgets


def test_a_call_costs_what_its_provider_says(serve: Serve) -> None:
    there = RemoteChat("openai", "m", base_url=serve(openai()).url, retries=0)
    provider = Provider("paid", there, price_in=2.0, price_cached=0.5, price_out=8.0)
    budget = Budget(Limits(max_cost=1.0))
    with pool_of(provider) as pool:
        found = pool.chat("sub", QUESTION, GREEDY, budget=budget)
    assert found.reply.usage == Usage(fresh=12, cached=3, output=5, reasoning=1)
    assert found.cost == budget.spent.cost == pytest.approx((12 * 2.0 + 3 * 0.5 + 5 * 8.0) / 1e6)
    assert (budget.spent.tokens, budget.spent.sub_calls) == (20, 1)


def test_a_call_that_may_not_fit_is_not_made(serve: Serve) -> None:
    server = serve()
    with pool_of(Provider("a", model(server))) as pool, pytest.raises(BudgetExceeded, match="max_tokens"):
        pool.chat("sub", QUESTION, GREEDY, budget=Budget(Limits(max_tokens=40)))
    assert server.asked == []


def test_a_lost_answer_is_charged_and_one_that_was_never_asked_for_is_not(serve: Serve) -> None:
    cut, down = serve(lambda _: Answer({"message": "x" * 100}, cut=20)), serve()
    down.stop()
    for server, least in ((cut, 24), (down, 0)):
        budget = Budget(Limits(max_tokens=10_000))
        with pool_of(Provider("a", model(server))) as pool, pytest.raises(ProviderUnavailable):
            pool.chat("sub", QUESTION, GREEDY, budget=budget)
        assert (budget.spent.tokens > least) == bool(least)
        assert (budget.spent.sub_calls, budget.tokens_left) == (1, 10_000 - budget.spent.tokens)


def test_an_answer_that_is_withheld_was_written_and_is_charged(serve: Serve) -> None:
    there = RemoteChat("openai", "m", base_url=serve(openai(reason="content_filter")).url, retries=0)
    budget = Budget(Limits(max_tokens=10_000))
    with pool_of(Provider("a", there)) as pool, pytest.raises(ProviderError, match="content filter"):
        pool.chat("sub", QUESTION, GREEDY, budget=budget)
    assert budget.spent.tokens > 0


def test_eight_calls_at_once_stay_within_the_budget(serve: Serve) -> None:
    """Each may need 128 tokens and uses 20: two fit at a time, and all of them one after the other."""
    server = serve(ollama(pause=0.02))
    budget = Budget(Limits(max_tokens=330))
    done: list[object] = []

    def call() -> None:
        try:
            done.append(pool.chat("sub", QUESTION, GREEDY, budget=budget))
        except BudgetExceeded as error:
            done.append(error)

    with pool_of(Provider("a", model(server))) as pool:
        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [type(each).__name__ for each in done] == ["PoolReply"] * 8
    assert budget.spent.tokens == 160


def test_calls_at_once_are_made_at_once(serve: Serve) -> None:
    """None is answered before all eight are there."""
    gate = threading.Barrier(8, timeout=20)

    def together(asked: Any) -> Answer:
        gate.wait()
        return ollama()(asked)

    with pool_of(Provider("a", model(serve(together)))) as pool:
        threads = [threading.Thread(target=shares, args=(pool, 1)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not gate.broken


@pytest.mark.parametrize("why", ["cancelled", "deadline"])
def test_a_call_ends_where_the_run_ends(why: str, serve: Serve) -> None:
    server, cancel = serve(ollama(pause=5.0)), threading.Event()
    threading.Timer(0.5, cancel.set).start()
    deadline = time.monotonic() + (0.5 if why == "deadline" else 60)
    budget = Budget(Limits(max_tokens=10_000))
    with pool_of(Provider("a", model(server))) as pool:
        if why == "deadline":
            found = pool.chat("sub", QUESTION, GREEDY, deadline=deadline, budget=budget)
        else:
            found = pool.chat("sub", QUESTION, GREEDY, cancel=cancel, budget=budget)
        assert (found.reply.finish_reason, found.provider) == (why, "a")
        assert budget.spent.tokens == found.reply.usage.fresh > 0
        later = pool.chat("sub", QUESTION, GREEDY, deadline=time.monotonic() - 1, cancel=cancel)
    assert (later.provider, later.reply.text) == ("", "")
    assert len(server.asked) == 1


# --- schemas


def test_a_probe_says_in_which_mode_each_provider_runs(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-secret")
    down = serve()
    down.stop()
    deepseek = RemoteChat("deepseek", "m", base_url=serve(openai('{"op":"final"}', deepseek=True)).url)
    providers = [
        Provider("held", model(serve())),
        Provider("ignored", model(serve(ollama(held=False)))),
        Provider("deepseek", deepseek),
        Provider("down", model(down)),
    ]
    with pool_of(*providers) as pool:
        found = pool.probe(deadline=time.monotonic() + 30)
    assert [(each.provider, each.mode) for each in found] == [
        ("held", "exact"),
        ("ignored", "none"),
        ("deepseek", "json"),
        ("down", None),
    ]
    assert all("sk-secret" not in each.said for each in found)


@pytest.mark.parametrize(("described", "shown"), [(True, False), (False, True)])
def test_a_schema_that_the_messages_describe_is_not_shown_again(serve: Serve, described: bool, shown: bool) -> None:
    server = serve(ollama('{"op":"final"}', held=False))
    with pool_of(Provider("a", model(server))) as pool:
        found = pool.chat("root", QUESTION, GREEDY, schema=SCHEMA, described=described)
    assert found.reply.text == '{"op":"final"}'
    assert ('"const":"final"' in server.asked[-1].body["messages"][-1]["content"]) == shown


# --- from a configuration


def replies(pool: Pool) -> dict[str, str]:
    return {role: pool.chat(role, QUESTION, GREEDY).reply.text for role in ("root", "sub")}  # type: ignore[arg-type]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_guides_examples_run(name: str, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand, but for the addresses: local servers that speak ollama's and DeepSeek's shapes."""
    monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-secret")
    one, other, api = (
        serve(ollama("one says this")),
        serve(ollama("other says this")),
        serve(openai("api says this", deepseek=True)),
    )
    text = EXAMPLES[name].replace("http://p40-server:11434", one.url).replace("http://localhost:11434", other.url)
    if "api.deepseek.com" in text:
        text = text.replace("https://api.deepseek.com", api.url)
    else:
        text = text.replace('provider_type = "deepseek"', f'provider_type = "deepseek"\nbase_url = "{api.url}"')
    path = tmp_path / "config.toml"
    path.write_text(text)
    with closing(open_pool(load_config(path))) as pool:
        found = replies(pool)
    root = {"local 70B": "one", "air-gapped": "other"}.get(name, "api")
    assert found == {"root": f"{root} says this", "sub": "other says this"}
    assert all(asked.headers["Authorization"] == "Bearer sk-secret" for asked in api.asked)
    assert all("Authorization" not in asked.headers for asked in [*one.asked, *other.asked])
    assert other.asked[0].path == "/api/chat"
    assert "num_ctx" in other.asked[0].body["options"]


def test_a_model_that_two_blocks_name_is_loaded_once(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    block = '[[providers]]\nprovider_type = "llama_cpp"\nmodel = "pico"\nn_ctx = 512\nn_seq = 1\nn_threads = 1\n'
    path.write_text(f'{block}role = "root"\n{block}role = "sub"\nprice_out = 1\n')
    told: list[str] = []
    with open_pool(load_config(path), progress=told.append) as pool:
        assert pool.providers[0].model is pool.providers[1].model
        assert pool.of("root")[0].model.info.context_length == 512
        modes = pool.probe()
    assert told == ["llama_cpp:pico"]
    assert {mode.mode for mode in modes} == {"exact"}


def test_without_a_configuration_pico_answers_in_both_roles() -> None:
    with open_pool(default_config()) as pool:
        assert [pool.chat(role, QUESTION, GREEDY).provider for role in ("root", "sub")] == ["pico", "pico"]  # type: ignore[arg-type]


def test_the_pool_alone_asks_again(serve: Serve, tmp_path: Path) -> None:
    """Else a call would wait for one that is down while another is up."""
    server = serve(lambda _: Answer({"error": "busy"}, 503))
    path = tmp_path / "config.toml"
    path.write_text(f'[[providers]]\nprovider_type = "ollama"\nmodel = "m"\nn_ctx = 512\nbase_url = "{server.url}"\n')
    with open_pool(load_config(path)) as pool:
        pool._retries = 0
        with pytest.raises(ProviderUnavailable):
            pool.chat("root", QUESTION, GREEDY)
    assert len(server.asked) == 1


def test_a_model_that_is_not_there_leaves_nothing_open(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[[providers]]\nprovider_type = "llama_cpp"\nmodel = "/no/such.gguf"\n')
    with pytest.raises(Exception, match=r"/no/such\.gguf"):
        open_pool(load_config(path))
