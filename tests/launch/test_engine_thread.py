"""The thread that owns a server's engine: what was asked comes between two steps, and a broken engine keeps nobody."""

import asyncio

import numpy as np
import pytest

from cispo.errors import InvalidRequest
from cispo.types import StopReason
from launch.engine_thread import EngineThread
from rollout.engine import Completion, Request


class Engine:
    """Gives every member one token per step, and ends it after `length`; breaks in step `breaks_at`."""

    def __init__(self, length=5, breaks_at=None):
        self.length, self.breaks_at, self.num_steps, self.tokens, self.is_stepping = length, breaks_at, 0, {}, False

    @property
    def has_work(self):
        return bool(self.tokens)

    def submit(self, requests):
        assert not self.is_stepping
        for request in requests:
            if request.id == "refused":
                raise InvalidRequest("It is refused.")
            self.tokens |= {(request.id, member): [] for member in range(request.num_samples)}

    def step(self):
        self.is_stepping = True
        self.num_steps += 1
        if self.num_steps == self.breaks_at:
            raise ArithmeticError("the engine is broken")
        for tokens in self.tokens.values():
            tokens.append(self.num_steps)
        ended = [key for key, tokens in self.tokens.items() if len(tokens) == self.length]
        completions = [
            Completion(*key, *streams(self.tokens.pop(key)), np.ones(self.length, bool), StopReason.LENGTH)
            for key in ended
        ]
        self.is_stepping = False
        return completions

    def since(self, seen):
        return {key: streams(tokens[seen[key] :]) for key, tokens in self.tokens.items() if key in seen}

    def cancel(self, ids):
        self.tokens = {key: tokens for key, tokens in self.tokens.items() if key[0] not in ids}


def streams(tokens):
    return np.array(tokens, dtype=np.int64), np.zeros(len(tokens), dtype=np.float32), np.zeros(len(tokens), np.int64)


def run(engine, scenario):
    async def main():
        thread = EngineThread(engine)
        try:
            return await asyncio.wait_for(scenario(thread), 30)
        finally:
            if not thread.broken.done():
                thread.stop()

    return asyncio.run(main())


def test_news_come_every_interval_and_the_end_has_the_rest():
    async def scenario(thread):
        ticket = await thread.submit(Request("a", (1,), 2), interval=2)
        return [await ticket.news.get() for _ in range(2 * 3)]

    news = run(Engine(), scenario)
    for member in (0, 1):
        mine = [each for each in news if each.member == member]
        assert [each.first for each in mine] == sorted(each.first for each in mine)
        assert np.concatenate([each.token_ids for each in mine]).tolist() == mine[-1].ended.token_ids.tolist()
        assert [each.ended is None for each in mine] == [True, True, False]


def test_a_refusal_reaches_its_asker_and_a_cancelled_request_is_gone():
    async def scenario(thread):
        with pytest.raises(InvalidRequest, match="It is refused"):
            await thread.submit(Request("refused", (1,)), interval=0)
        ticket = await thread.submit(Request("long", (1,)), interval=1)
        await ticket.news.get()
        thread.cancel("long")
        return await thread.call(lambda engine: (engine.has_work, thread._tickets))

    assert run(Engine(length=10**9), scenario) == (False, {})


def test_a_broken_engine_tells_everybody_who_waits_and_who_comes_later():
    async def scenario(thread):
        ticket = await thread.submit(Request("a", (1,)), interval=0)
        assert await ticket.news.get() is None
        with pytest.raises(RuntimeError, match="the engine broke down"):
            await thread.call(lambda engine: None)
        with pytest.raises(ArithmeticError, match="the engine is broken"):
            await thread.broken

    run(Engine(breaks_at=3), scenario)
