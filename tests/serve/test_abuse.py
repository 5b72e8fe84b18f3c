"""What a client, or a codec that panics, may not do to the server and the others; with the stand-in model."""

import asyncio
import functools
import threading
import time

import aiohttp
import numpy as np
import pytest
import standin

from mvjax.serve import app as app_lib
from mvjax.serve import asking

pytest.importorskip("sphn")


def in_loop(test):
    """Runs an async test in an event loop of its own."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        asyncio.run(test(*args, **kwargs))

    return run


class Panic(BaseException):
    """As pyo3's PanicException, which is no Exception."""


def panicking(who):
    """A speaker whose codec panics at the loudness 63, and whose stream is broken after it."""

    class Stream(standin.Stream):
        broken = False

        def encode(self, audio):
            if self.broken or np.abs(audio).max() > 0.99:
                self.broken = True
                raise Panic("rust panicked")
            return super().encode(audio)

        def reset(self):
            if self.broken:
                raise Panic("poisoned")

    who.codec.stream = lambda batch=1: Stream(who.codec)
    return who


@in_loop
async def test_one_typed_question_is_spoken_at_a_time_and_stop_drops_it(monkeypatch):
    go, began, asked = threading.Event(), threading.Event(), []

    def spoken(text, voice):
        asked.append(text)
        began.set()
        assert go.wait(10)
        return np.full((3, 1920), 40 / 63, np.float32)

    monkeypatch.setattr(asking, "spoken", spoken)
    async with standin.serving() as (url, _), standin.talking(url) as client:
        for number in range(20):
            await client.ask(request="text", text=f"number {number}")
        for _ in range(19):
            assert await client.until(5)  # told, not closed
        assert all("still being asked" in error for error in client.errors)
        assert began.wait(5) and asked == ["number 0"]
        await client.ask(request="stop")
        await client.echo(10)
        go.set()
        await asyncio.sleep(0.1)
        await client.say(10, frames=4)
        await client.frames(len(client.heard) + 4)
        assert 40 not in client.levels() and asked == ["number 0"]
        await client.ask(request="text", text="at last")
        await client.echo(40)


@in_loop
async def test_a_question_of_a_client_that_left_is_dropped(monkeypatch):
    go, began = threading.Event(), threading.Event()
    whos = []

    def spoken(text, voice):
        began.set()
        assert go.wait(10)
        return np.full((3, 1920), 40 / 63, np.float32)

    monkeypatch.setattr(asking, "spoken", spoken)
    take = app_lib.engine_lib.Engine.join
    monkeypatch.setattr(
        app_lib.engine_lib.Engine,
        "join",
        lambda self, who: (whos.append(who), take(self, who))[1],
    )
    async with standin.serving() as (url, _):
        async with standin.talking(url) as client:
            await client.ask(request="text", text="left alone")
            assert await asyncio.to_thread(began.wait, 5)
        async with standin.talking(url) as client:  # it has the slot of the one before
            go.set()
            await client.echo(10)
        assert len(whos) == 2 and not whos[0].typed and not whos[1].typed


@in_loop
async def test_a_panic_of_the_codec_ends_that_conversation_only_and_the_slot_works_again():
    async with (
        standin.serving(panicking(standin.speaker()), slots=2) as (url, _),
        standin.talking(url) as good,
        standin.talking(url) as bad,
    ):
        await good.echo(10)
        await bad.say(63)
        assert not await bad.until(0)
        assert bad.errors == ["the server made an error"] and bad.code == 1011
        await good.echo(20)
        async with standin.talking(url) as other:  # its stream was made anew
            await other.echo(30)


@in_loop
async def test_an_engine_that_ends_tells_everybody_and_holds_up_no_shutdown(monkeypatch):
    engines = []
    engine_class = app_lib.engine_lib.Engine
    start = engine_class.start
    monkeypatch.setattr(engine_class, "start", lambda self: (engines.append(self), start(self))[1])
    async with aiohttp.ClientSession() as session:
        async with standin.serving(slots=2) as (url, _), standin.talking(url) as client:
            async with standin.talking(url) as other:
                await other.echo(10)

                def end():
                    raise Panic("the engine")

                monkeypatch.setattr(engines[0], "_tick", end)
                monkeypatch.setattr(engines[0], "_fail", lambda who: end())
                await other.say(10)
                for one in (client, other):
                    assert not await one.until(0)
                    assert one.errors == ["the server made an error"]
            assert engines[0].died
            async with session.get(f"{url}/health") as response:
                assert response.status == 503
            async with standin.talking(url, wait=False) as late:
                assert not await late.until(0)
                assert late.errors == ["the server made an error"]
            began = time.monotonic()
        assert time.monotonic() - began < 4


@in_loop
async def test_a_flood_of_restarts_costs_the_others_nothing_and_is_told():
    who = standin.speaker()
    resets = []

    class Stream(standin.Stream):
        def reset(self):
            resets.append(1)
            time.sleep(0.05)

    who.codec.stream = lambda batch=1: Stream(who.codec)
    async with (
        standin.serving(who, slots=2) as (url, _),
        standin.talking(url) as good,
        standin.talking(url) as bad,
    ):
        await bad.echo(20)
        resets.clear()
        for _ in range(300):
            await bad.send(3, bytes([3]))
        for _ in range(5):
            await good.say(10)
            await good.frames(len(good.heard) + 1)
        assert await bad.until(5)
        assert bad.errors[0] == "restart: at most 1 a second (5 at once)"
        await bad.echo(30)  # not closed
        assert len(resets) <= 5  # at its first frame a conversation has nothing to restart


@in_loop
async def test_two_settings_during_one_step_both_count():
    async with standin.serving() as (url, who), standin.talking(url) as client:
        who.model.seconds = 0.2
        await client.say(10)
        await asyncio.sleep(0.05)
        await client.ask(request="settings", text_temperature=5)
        await client.ask(request="settings", audio_temperature=6)
        await client.frames(1)
        await client.say(10)
        await client.frames(2)
        assert np.allclose(who.model.steps[-1].sampling.temperature[0], (5, 6))


@in_loop
async def test_a_resumed_conversation_is_not_given_its_minutes_again():
    async with standin.serving(minutes=0.02, resumable_frames=1) as (url, _):
        began = time.monotonic()
        async with standin.talking(url) as client:
            await client.echo(10)
            token = client.told("hello")[0]["resume"]
            await asyncio.sleep(0.8)
            async with standin.talking(url, resume=token) as other:
                assert not await other.until(2)
                assert "over after" in other.errors[0]
        assert time.monotonic() - began < 1.9  # 1.2 and a look, and not 2.0


@in_loop
async def test_text_that_is_no_text_is_refused_without_an_error(caplog):
    async with standin.serving() as (url, _):
        for name in (r"x\ud800", "é" * 39, "x" + "é" * 39):
            async with standin.talking(url) as client:
                await client.send(9, f'{{"request": "settings", "{name}": 1}}'.encode())
                assert not await client.until(0)
                assert client.code == 1008 and "out of range" in client.errors[0]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
