"""Messages, query, audio transports, the microphone's lag rule and rate limits, each alone."""

import asyncio
import json

import numpy as np
import pytest
from aiohttp import web

from mvjax.serve import limits, microphone, outbox, protocol, query, transport

LIMITS = limits.Limits()
FRAME = np.ones(1920, np.float32)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x01abcd", protocol.Audio(b"abcd")),
        (b"\x08png", protocol.Image(b"png")),
        (b"\x03\x03", protocol.Simple.RESTART),
        (b"\x03\x01", protocol.Simple.NOTHING),
        (b"\x0a\x05", protocol.Rating(5)),
        (b'\x09{"request": "text", "text": "hi"}', protocol.Typed("hi")),
        (b'\x09{"request": "played", "mic_time": 2}', protocol.Played(2.0)),
        (
            b'\x09{"request": "settings", "text_topk": 3}',
            protocol.Settings({"text_topk": "3"}),
        ),
    ],
)
def test_messages_are_parsed(data, message):
    assert protocol.parse(data, LIMITS) == message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02text",
        b"\x0a\x06",
        b"\xc8",
        b"\x01" + bytes(2**16 + 1),
        b"\x09[]",
        b"\x09\xff\xfe",
        b"\x09" + b"[" * 4000,
        b'\x09{"request": "settings", "text_topk": true}',
        b'\x09{"request": "played", "mic_time": ' + b"9" * 999 + b"}",
        b'\x09{"request": "played", "mic_time": NaN}',
        b'\x09{"request": "text"}',
        b'\x09{"request": "delete"}',
    ],
)
def test_what_is_no_message_is_refused(data):
    with pytest.raises(limits.BrokenLimit):
        protocol.parse(data, LIMITS)


@pytest.mark.parametrize(("gate", "color"), [(0, 0), (0.005, 0), (0.013, 5), (0.018, 8), (1, 10)])
def test_a_gate_has_upstreams_color(gate, color):
    assert protocol.color(float(gate)) == color


def test_upstreams_parameters_are_read_and_unknown_ones_ignored():
    asked = query.parse(
        {
            "text_temperature": "0.45", "text_topk": "25", "audio_temperature": "0.7", "audio_topk": "250",
            "pad_mult": "0", "text_seed": "5", "audio_seed": "7", "repetition_penalty_context": "64",
            "repetition_penalty": "1.15", "image_resolution": "448", "center_crop": "true",
            "xa_start": "16", "text_temperature_gating_influence": "0", "email": "x@y", "worker_auth_id": "z",
        }
    )  # fmt: skip
    text = query.text_sampling(asked.sampling)
    assert (text.temperature, text.top_k, text.repetition_penalty) == (0.45, 25, 1.15)
    assert text.repetition_penalty_context == 64
    assert query.audio_sampling(asked.sampling).temperature == 0.7
    assert asked.xa_start == 16 and asked.center_crop and asked.image_resolution == 448
    assert asked.seed == 5 << 53 | 7
    empty = query.parse({})
    assert empty.audio == "opus" and empty.seed is None and empty.xa_start is None


@pytest.mark.parametrize(
    "values",
    [
        {"text_temperature": "nan"},
        {"text_temperature": "-0.1"},
        {"audio_topk": "513"},
        {"audio_topk": "2.5"},
        {"text_seed": "9" * 5000},
        {"repetition_penalty": "0"},
        {"xa_start": "-1"},
        {"image_resolution": "0"},
        {"audio": "mp3"},
        {"center_crop": "perhaps"},
    ],
)
def test_parameters_out_of_range_are_refused_by_name(values):
    with pytest.raises(limits.BrokenLimit, match=next(iter(values))) as error:
        query.parse(values)
    assert len(str(error.value)) < 200


def test_pcm_goes_there_and_back():
    pcm = np.linspace(-1, 1, 1920, dtype=np.float32)
    wire = transport.Pcm()
    assert np.abs(wire.receive(wire.send(pcm)) - pcm).max() < 1e-4
    assert np.frombuffer(wire.send(np.full(3, 9.0, np.float32)), "<i2").tolist() == [32767] * 3
    with pytest.raises(limits.BrokenLimit, match="odd"):
        wire.receive(b"abc")


def test_opus_goes_there_and_back_and_ends_at_its_first_error():
    pytest.importorskip("sphn")
    there, back = transport.Opus(LIMITS), transport.Opus(LIMITS)
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(1920 * 6) / 24000).astype(np.float32)
    pages = [there.send(frame) for frame in tone.reshape(6, 1920)]
    heard = np.concatenate([back.receive(bytes([b])) for b in b"".join(pages)])
    assert heard.shape == tone.shape  # byte by byte, too
    middle, steady = tone[4000:8000], heard[4000:9000]  # Opus answers some hundred samples late
    alike = [np.corrcoef(steady[late : late + 4000], middle)[0, 1] for late in range(600)]
    assert max(alike) > 0.99
    with pytest.raises(limits.BrokenLimit, match="damaged Ogg Opus"):
        back.receive(b"no page of Ogg at all, and too long to wait for more of it")


def test_an_opus_packet_that_never_ends_is_given_up():
    pytest.importorskip("sphn")
    wire = transport.Opus(LIMITS)
    header = b"OggS\x00\x00" + bytes(8) + b"\x2a\x00\x00\x00" + bytes(8) + b"\xff" + b"\xff" * 255
    with pytest.raises(limits.BrokenLimit):
        for _ in range(20):
            wire.receive(header + bytes(255 * 255)[:60_000])


def test_the_oldest_frames_are_dropped_and_the_rest_of_a_frame_waits():
    heard = microphone.Microphone(limit=3)
    assert not heard.put(FRAME[:1000], 0.0)
    for level in range(6):
        assert heard.put(level * FRAME, 1.0 + level)
    assert (len(heard), heard.skipped) == (3, 3)
    frame = heard.take()
    assert frame.at == 4.0 and frame.pcm[999] == 2 and frame.pcm[1000] == 3
    heard.keep_newest()
    assert (len(heard), heard.skipped) == (1, 4)
    assert heard.take().at == 6.0 and heard.take() is None


def test_a_bucket_allows_a_burst_and_then_its_rate():
    bucket = limits.Bucket(2.0, 3.0)
    assert [bucket.take(1.0, 10.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(1.0, 10.6) for _ in range(2)] == [True, False]
    assert not bucket.take(5.0, 1000.0)


def test_audio_that_waits_for_a_slow_socket_is_dropped_but_for_its_headers_and_text():
    async def fill():
        box = outbox.Outbox(web.WebSocketResponse(), limit=2, seconds=1.0)
        for n in range(5):
            box.put_here([protocol.audio(bytes([n])), protocol.colored_text(f"w{n}", 0.0)])
        left = [bytes(m) for m in box._messages]
        audio = [m[1] for m in left if m[0] == protocol.Kind.AUDIO]
        assert audio == [0, 3, 4] and box.dropped == 2 and len(left) == 8
        box.drop_audio()
        assert [m[1] for m in box._messages if m[0] == protocol.Kind.AUDIO] == [0]

    asyncio.run(fill())


def test_metadata_is_json():
    assert json.loads(protocol.metadata(type="queue", position=2)[1:]) == {
        "type": "queue",
        "position": 2,
    }
