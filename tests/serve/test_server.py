"""The server over a real socket, with a stand-in model: who talks when, what is answered, what ends how."""

import asyncio
import functools
import json
import logging

import aiohttp
import numpy as np
import pytest
import standin

from mvjax import types
from mvjax.serve import access, asking, logs, metrics

sphn = pytest.importorskip("sphn")


def in_loop(test):
    """Runs an async test in an event loop of its own."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        asyncio.run(test(*args, **kwargs))

    return run


async def metric(url, name, **labels):
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
        text = await response.text()
    label = "{" + ",".join(f'{k}="{v}"' for k, v in labels.items()) + "}" if labels else ""
    found = [line for line in text.splitlines() if line.startswith(f"mvjax_{name}{label} ")]
    return float(found[0].split()[1]) if found else 0.0


async def settle(condition):
    """Waits until something is true."""
    for _ in range(200):
        if await condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it never came")


@in_loop
async def test_pcm_is_answered_frame_by_frame_with_text_and_color():
    async with (
        standin.serving() as (url, _),
        standin.talking(url, image=standin.picture()) as client,
    ):
        hello = client.told("hello")[0]
        assert hello["image_size"] == 8 and hello["slots"] == 1 and len(hello["resume"]) > 20
        await client.say(20, frames=3)
        await client.frames(3)
        assert await client.echo(40) <= 3
        assert client.words[-1] == (6, " w14")  # 4 + 40 % 30, and (0.015 - 0.005) / 0.016
        for _ in range(8):
            await client.say(40)
            await client.frames(len(client.heard) + 1)
        status = client.told("status")[0]
        assert status["frame"] == 12 and status["skipped"] == 0 and status["p50_ms"] < 80


@in_loop
async def test_upstreams_protocol_image_first_and_ogg_opus_both_ways():
    async with (
        standin.serving() as (url, _),
        standin.talking(url, wait=False, audio="opus", text_topk=25) as client,
    ):
        await client.send(8, standin.picture())
        assert await client.until(0)
        writer, reader = sphn.OpusStreamWriter(24000), sphn.OpusStreamReader(24000)
        tone = 0.5 * np.sin(2 * np.pi * 300 * np.arange(960) / 24000).astype(np.float32)
        for _ in range(12):  # 20 ms packets, two to a message, as its encoder makes them
            await client.send(1, writer.append_pcm(tone[:480]) + writer.append_pcm(tone[480:]))
        await client.frames(5)
        pcm = np.concatenate([reader.append_bytes(page) for page in client.heard])
        assert len(pcm) == 5 * types.FRAME_SAMPLES
        # it decodes to a level between 0.4 and 0.6 of full scale, as the tone has
        assert 0.35 < np.abs(pcm[-types.FRAME_SAMPLES :]).max() < 0.75
        assert {color for color, _ in client.words} == {6}
        assert not client.news  # its schema knows none of ours


@in_loop
async def test_an_image_is_swapped_and_taken_away_while_talking_and_seen_from_xa_start_on():
    async with (
        standin.serving(xa_start=2) as (url, who),
        standin.talking(url, image=standin.picture(0)) as client,
    ):
        await client.say(10, frames=4)
        await client.frames(4)
        assert [color for color, _ in client.words] == [0, 0, 6, 6]
        await client.send(8, standin.picture(255))
        await settle(lambda: asyncio.sleep(0, len(who.model.seen) == 3))  # one of the warm-up
        await asyncio.sleep(0.05)
        assert who.model.seen[-1].mean() == 1.0 and who.model.seen[-2].mean() == -1.0
        await client.ask(request="no_image")
        await client.say(10)
        await client.frames(5)
        assert client.words[-1][0] == 0
        await client.send(8, b"no image")
        assert await client.until(5)
        assert "do not decode" in client.errors[0]
        await client.say(10)
        await client.frames(6)  # and the talk goes on


@in_loop
async def test_a_typed_question_is_heard_in_place_of_the_microphone(monkeypatch):
    spoken = np.array([[20 / 63], [30 / 63]], np.float32).repeat(1920, axis=1)
    monkeypatch.setattr(asking.espeak, "synthesize", None)  # would fail if it were called

    def ask(text, voice):
        if voice != "en-us" or text != "what is it":
            raise ValueError("expected a known voice")
        return spoken

    monkeypatch.setattr(asking, "spoken", ask)
    async with standin.serving() as (url, _), standin.talking(url) as client:
        await client.ask(request="text", text="what is it")
        await asyncio.sleep(0.1)
        await client.say(10, frames=4)
        await client.frames(4)
        assert [word for _, word in client.words[1:4]] == [" w24", " w4", " w14"]
        await client.ask(request="text", text="another")
        assert await client.until(5)
        assert "expected a known voice" in client.errors[0]


@in_loop
async def test_settings_change_from_the_next_frame_on_and_are_bounded():
    async with standin.serving() as (url, who):
        async with standin.talking(url, text_temperature=0.5, audio_topk=7, text_seed=3) as client:
            await client.say(9)
            await client.frames(1)
            await client.ask(request="settings", text_temperature=0.25, repetition_penalty=1.2)
            await client.say(9)
            await client.frames(2)
            first, second = (step.sampling for step in who.model.steps[-2:])
            assert np.allclose(first.temperature[0], (0.5, 0.8)) and first.top_k[0, 1] == 7
            assert np.allclose(second.temperature[0], (0.25, 0.8))
            assert second.penalty[0] == np.float32(1.2)
            await client.ask(request="settings", text_temperature=-1)
            assert not await client.until(0)
            assert "text_temperature=-1" in client.errors[0]
        async with standin.talking(url, wait=False, text_topk="many", xa_start=-3) as client:
            assert not await client.until(0)
            assert "text_topk=many" in client.errors[0] and "xa_start=-3" in client.errors[0]


@in_loop
async def test_others_wait_in_order_hear_their_position_and_get_the_slot():
    async with (
        standin.serving(waiting=2) as (url, _),
        standin.talking(url) as first,
        standin.talking(url, wait=False) as second,
        standin.talking(url, wait=False) as third,
    ):
        await second.until(4)
        await third.until(4)
        assert second.told("queue")[0] == {"type": "queue", "position": 1, "slots": 1}
        assert third.told("queue")[0]["position"] == 2
        async with standin.talking(url, wait=False) as fourth:
            assert not await fourth.until(0)
            assert "queue is full" in fourth.errors[0] and fourth.code == 1013
        await second.socket.close()  # gives up
        await third.until(4)
        assert third.told("queue")[-1]["position"] == 1
        await first.socket.close()
        assert await third.until(0)
        await third.echo(30)


@in_loop
async def test_a_lost_socket_resumes_with_its_cache_and_a_closed_one_does_not():
    async with standin.serving(resumable_frames=3) as (url, who):
        async with standin.talking(url) as client:
            await client.say(20, frames=4)
            await client.frames(4)
            token = client.told("hello")[0]["resume"]
            client.socket._response.connection.transport.abort()
        await settle(lambda: is_equal(metric(url, "conversations_kept"), 1))
        async with standin.talking(url, resume=token) as client:
            await client.say(21)
            await client.frames(1)
            assert who.model.steps[-1].position[0] == 4  # frames before it
            async with standin.talking(url, resume=token) as again:  # before the loss is noticed
                assert not await client.until(0)
                assert client.code == 1000 and "another connection" in client.errors[0]
                await again.say(22)
                await again.frames(1)
                assert who.model.steps[-1].position[0] == 5
        await settle(lambda: is_equal(metric(url, "slots_free"), 1))
        async with standin.talking(url, wait=False, resume=token) as client:
            assert not await client.until(0)
            assert "no conversation to resume" in client.errors[0]


async def is_equal(value, expected):
    return await value == expected


@in_loop
async def test_a_kept_conversation_is_given_up_in_time():
    async with standin.serving(resumable_frames=1, resume_seconds=0.2) as (url, _):
        async with standin.talking(url) as client:
            await client.say(20)
            await client.frames(1)
            client.socket._response.connection.transport.abort()
        async with standin.talking(url) as client:  # waits for the slot
            assert client.told("queue")[0]["position"] == 1
            await client.echo(33)


@in_loop
async def test_lag_never_accumulates():
    """A model that takes 50 ms more than a frame: the oldest frames are dropped, and the wait is bounded."""
    async with standin.serving(queued_frames=4) as (url, who), standin.talking(url) as client:
        who.model.seconds = 0.05
        for level in range(1, 41):
            await client.say(level)
            await asyncio.sleep(0.01)
        while (await_levels := client.levels())[-1:] != [40]:
            await client.say(40)
            await client.frames(len(await_levels) + 1)
        who.model.seconds = 0.0
        for _ in range(24):
            await client.say(40)
            await client.frames(len(client.heard) + 1)
        status = client.told("status")[-1]
        assert status["skipped"] >= 20 and status["behind_ms"] <= 4 * 80
        levels = client.levels()[2:]  # after the first step's initial ids
        assert levels == sorted(levels)  # in order, with gaps
        await client.ask(request="stop")
        await client.say(41)
        await client.frames(len(client.heard) + 1)


@in_loop
async def test_restart_begins_a_new_conversation_in_the_same_slot():
    async with (
        standin.serving(xa_start=1) as (url, who),
        standin.talking(url, image=standin.picture()) as client,
    ):
        await client.say(20, frames=3)
        await client.frames(3)
        await client.send(3, bytes([3]))  # upstream's control message
        await client.say(20, frames=2)
        await client.frames(5)
        assert [int(step.position[0]) for step in who.model.steps[-2:]] == [0, 1]
        assert [color for color, _ in client.words[-2:]] == [0, 6]


@in_loop
async def test_an_error_in_one_conversation_ends_that_one_without_a_traceback():
    async with standin.serving(slots=2) as (url, who):
        who.codec.deaf_at = 50
        async with standin.talking(url) as good, standin.talking(url) as bad:
            await bad.say(50)
            assert not await bad.until(0)
            assert bad.errors == ["the server made an error"] and bad.code == 1011
            await good.echo(30)
            who.model.broken = True
            await good.say(30)
            assert not await good.until(0)
            assert good.errors == ["the server made an error"]
        who.model.broken = False
        async with standin.talking(url) as client:
            await client.echo(12)
        assert await metric(url, "connections_total", end="failed") == 2


@in_loop
async def test_conversations_step_together_and_do_not_mix():
    async with standin.serving(slots=3) as (url, who):
        async with standin.talking(url) as a, standin.talking(url) as b, standin.talking(url) as c:
            who.model.seconds = 0.02  # so that they meet in a step
            for _ in range(6):
                await asyncio.gather(a.say(10), b.say(20), c.say(30))
                await asyncio.gather(*(x.frames(len(x.heard) + 1) for x in (a, b, c)))
            assert [x.levels()[-1] for x in (a, b, c)] == [10, 20, 30]
        text = await metric(url, "batch_size_sum"), await metric(url, "batch_size_count")
        assert text[0] > text[1]  # more than one a step


@in_loop
async def test_a_token_an_origin_and_a_host_are_asked_for():
    async with standin.serving(token="s3cret", origins=("https://a.example",)) as (url, _):
        refused = [
            ({}, {}, 401),
            ({"token": "wrong"}, {}, 401),
            ({"token": "s3cret"}, {"Origin": "https://evil.example"}, 403),
            ({"token": "s3cret"}, {"Host": "evil.example"}, 403),
        ]
        async with aiohttp.ClientSession() as session:
            for query, headers, status in refused:
                with pytest.raises(aiohttp.WSServerHandshakeError) as error:
                    await session.ws_connect(f"{url}/api/chat", params=query, headers=headers)
                assert error.value.status == status
            async with session.get(f"{url}/metrics") as response:
                assert response.status == 401
            async with session.get(f"{url}/health") as response:
                assert (await response.json())["status"] == "ok"
        for headers in ({"Origin": "https://a.example"}, {"Origin": url}, {}):
            async with standin.talking(url, token="s3cret", headers=headers):
                pass
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
            async with session.get(f"{url}/?token=s3cret") as response:
                assert response.status == 200
            async with session.ws_connect(f"{url}/api/chat?audio=pcm"):  # by the cookie
                pass


@in_loop
async def test_pages_are_listed_files_and_nothing_else(tmp_path):
    (tmp_path / "dist" / "assets").mkdir(parents=True)
    (tmp_path / "dist" / "index.html").write_text("upstream")
    (tmp_path / "dist" / "assets" / "a.js").write_text("code")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "dist" / "link").symlink_to(tmp_path / "secret")
    async with (
        standin.serving(static=tmp_path / "dist") as (url, _),
        aiohttp.ClientSession() as session,
    ):

        async def get(path):
            raw = aiohttp.client.URL(f"{url}{path}", encoded=True)
            async with session.get(raw, allow_redirects=False) as response:
                return response.status, await response.text(), response.headers

        status, _, headers = await get("/")
        assert status == 302 and headers["Location"] == "/?worker_addr=same"
        assert (await get("/?worker_addr=same"))[:2] == (200, "upstream")
        assert (await get("/assets/a.js"))[:2] == (200, "code")
        for path in (
            "/../secret",
            "/%2e%2e/secret",
            "/link",
            "/assets",
            "/assets/..%2f..%2fsecret",
        ):
            assert (await get(path))[0] == 404


@in_loop
async def test_a_server_that_stops_tells_its_clients():
    async with aiohttp.ClientSession() as session:
        async with standin.serving() as (url, _):
            socket = await session.ws_connect(f"{url}/api/chat?audio=pcm")
            client = standin.Client(socket)
            await client.until(0)
            ending = asyncio.create_task(client.until(0))
        assert not await ending
        assert client.code == 1001 and client.errors == ["the server stops"]
        await socket.close()


@in_loop
async def test_no_thread_that_used_the_model_ends_with_what_the_runtime_keeps_for_it():
    """MLX's own threads, left to the exit of Python, abort the process now and then."""
    async with (
        standin.serving() as (url, who),
        standin.talking(url, image=standin.picture()) as client,
    ):
        assert who.model.threads == {"engine"}
        await client.say(3)
        await client.frames(1)
    assert who.model.seen and not who.model.threads


@in_loop
async def test_a_silent_client_is_pinged_and_then_let_go():
    async with standin.serving(silent_seconds=0.6) as (url, _), standin.talking(url) as client:
        assert not await client.until(0)
        assert "nothing was sent" in client.errors[0]


@in_loop
async def test_minutes_and_steps_are_limited():
    async with standin.serving(minutes=0.01) as (url, _), standin.talking(url) as client:
        assert not await client.until(0)
        assert "over after 0.0 minutes" in client.errors[0]
    async with standin.serving() as (url, _), standin.talking(url, max_steps=2) as client:
        await client.say(3, frames=2)
        assert not await client.until(0)
        assert len(client.heard) == 2 and "is over" in client.errors[0]


def test_logs_are_json_by_option():
    record = logging.makeLogRecord({"msg": "connection ends", "session": "ab", "frames": 3})
    line = json.loads(logs._Json().format(record))
    assert line["message"] == "connection ends" and line["session"] == "ab" and line["frames"] == 3
    assert logs._Text().format(record).endswith("connection ends session=ab frames=3")


def test_playback_stays_a_number_and_tokens_are_such_as_can_be_sent():
    counted = metrics.Metrics()
    for seconds in (1e308, 1e308, -1e308, 0.5):
        counted.played(seconds)
    assert counted.value("mvjax_playback_latency_seconds_sum") == 120.5
    with pytest.raises(ValueError, match="token: expected printable UTF-8"):
        access.Access(b"caf\xe9".decode(errors="surrogateescape"), (), "127.0.0.1")


@in_loop
async def test_connections_are_bounded_also_before_they_choose_an_image():
    async with (
        standin.serving(waiting=0) as (url, _),
        standin.talking(url, wait=False, audio="opus"),
        standin.talking(url, wait=False) as second,
    ):
        assert await second.until(5) and "too many clients" in second.errors[0]
        assert not await second.until(0) and second.code == 1013
