"""The page in headless Chromium, with a fake microphone.

The bar, two spoken questions about two images, needs a trained model: `make quickstart` writes one to
runs/quickstart, or MVJAX_QUICKSTART names its folder. With MVJAX_SCREENSHOTS=DIR the page is photographed at
1280 and 390 pixels, light and dark.
"""

import asyncio
import base64
import contextlib
import io
import json
import os
import wave
import zipfile
from pathlib import Path

import chromium
import numpy as np
import pytest
import standin
from PIL import ExifTags, Image

RATE = 24000
STATE = "document.documentElement.dataset.state"
WORDS = "[...document.querySelectorAll('#turns .assistant p')].map((p) => p.innerText).join(' ')"
PREVIEW = "document.getElementById('preview')"
DROP = """
  (() => {
    const bytes = Uint8Array.from(atob("%s"), (letter) => letter.charCodeAt(0));
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
    document.dispatchEvent(new DragEvent("drop", { dataTransfer, cancelable: true }));
  })()
"""
LOUDEST = """
  globalThis.loudest = 0;
  setInterval(() => {
    const shown = Number(document.documentElement.style.getPropertyValue("--assistant-level"));
    globalThis.loudest = Math.max(globalThis.loudest, (shown / 1.6) ** 2);
  }, 40);
"""
# Texts that are seen, whose contrast with what is behind them is below 4.5; nameless controls.
UNREADABLE = """
  [...document.querySelectorAll("body *")].filter((element) => {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility() || element.closest(":disabled, .hidden, noscript")) return false;
    let behind = element;
    while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
    const luminance = (color) => color.match(/[\\d.]+/g).slice(0, 3)
      .map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4))
      .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0.05);
    const two = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor].map(luminance);
    return Math.max(...two) / Math.min(...two) < 4.5;
  }).map((element) => element.outerHTML)
"""
NAMELESS = """
  [...document.querySelectorAll("button, input:not([hidden])")]
    .filter((e) => !(e.innerText || e.ariaLabel || e.labels?.length)).map((e) => e.outerHTML)
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        chromium.executable() is None, reason=f"none of {chromium.NAMES} is installed"
    ),
]


def write_wav(path, samples):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return path


@contextlib.asynccontextmanager
async def line_to(url):
    """A line to the server that can be cut; yields (its address, what cuts it)."""
    host, port = url.removeprefix("http://").split(":")
    ends = []

    async def carry(reader, writer):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connect(reader, writer):
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        ends.extend((writer, far_writer))
        await asyncio.gather(carry(reader, far_writer), carry(far_reader, writer))

    def cut():
        for end in ends:
            end.transport.abort()

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", cut
    finally:
        server.close()


def press(button):
    return f"document.getElementById({button!r}).click()"


async def set_up(tab, folder, **settings):
    """Chosen settings as the page remembers them, and a folder for what it saves."""
    await tab.run(f"localStorage.setItem('mvjax.settings', {json.dumps(json.dumps(settings))})")
    await tab.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    await tab.call("Page.reload")
    await asyncio.sleep(0.5)
    await tab.wait("document.getElementById('status')?.innerText === 'Ready'")
    await tab.wait(f"{STATE} === 'idle' && document.getElementById('mute').disabled")
    await tab.run(LOUDEST)


async def give(tab, path):
    before = await tab.run("document.getElementById('preview').src")
    await tab.choose_file("#file", path)
    await tab.wait(f"document.getElementById('preview').src !== {before!r}")


async def start(tab):
    await tab.run(press("start"), click=True)
    await tab.wait(f"{STATE} === 'live'")


async def save(tab, folder):
    """(events of the transcript, samples [n, 2] in [-1, 1], names of the files)."""
    await tab.wait("!document.getElementById('save').disabled")
    await tab.run(press("save"), click=True)
    for _ in range(200):
        if found := list(folder.glob("conversation-*.zip")):
            break
        await asyncio.sleep(0.1)
    with zipfile.ZipFile(found[0]) as archive:
        events = json.loads(archive.read("transcript.json"))["events"]
        with wave.open(io.BytesIO(archive.read("conversation.wav"))) as sound:
            pcm = np.frombuffer(sound.readframes(sound.getnframes()), "<i2").reshape(-1, 2)
        return events, pcm / 32768, archive.namelist()


async def photograph(tab, name):
    if folder := os.environ.get("MVJAX_SCREENSHOTS"):
        for width, height, phone in ((1280, 800, False), (390, 844, True)):
            for scheme in ("light", "dark"):
                path = Path(folder) / f"{name}-{width}-{scheme}.png"
                await tab.screenshot(path, width=width, height=height, scheme=scheme, phone=phone)


async def check_legible(tab):
    """Contrast in both color schemes, names of controls, and the order of the keyboard."""
    for scheme in ("light", "dark"):
        await tab.prefer(scheme)
        assert not await tab.run(UNREADABLE), scheme
    assert not await tab.run(NAMELESS)
    order = []
    for _ in range(26):  # twice around
        await tab.press_key("Tab", 9)
        order.append(await tab.run("document.activeElement.id || document.activeElement.tagName"))
    order = order[order.index("save") :]
    assert order[:2] == ["save", "open-settings"] and order[order.index("turns") :][:6] == [
        *("turns", "question", "ask", "mute", "start", "stop")
    ]


def rms(samples):
    return float(np.sqrt(np.mean(np.square(samples))))


def test_token_queue_talk_lost_line_stop_typed_question_and_file(tmp_path):
    time = np.arange(60 * RATE) / RATE
    tone = 0.4 * np.sin(2 * np.pi * 300 * time) * (time % 1 < 0.5)
    microphone = write_wav(tmp_path / "microphone.wav", tone)
    lying = Image.new("RGB", (3000, 1500), "black")
    lying.paste("white", (0, 0, 1500, 1500))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # upright, the white half is above
    lying.save(tmp_path / "photo.jpg", exif=exif)

    async def talk():
        async with (
            standin.serving(token="geheim") as (url, who),
            line_to(url) as (front, cut),
            chromium.browser(f"{front}/", profile=tmp_path, microphone=microphone) as tab,
        ):
            await set_up(tab, tmp_path, noise_suppression=False, text_topk=7)
            await give(tab, tmp_path / "photo.jpg")
            assert await tab.run("document.getElementById('preview').decode()") is None
            assert await tab.run(f"[{PREVIEW}.naturalWidth, {PREVIEW}.naturalHeight]") == [
                512,
                1024,
            ]
            async with standin.talking(url, image=standin.picture(), token="geheim"):
                await tab.run(press("start"), click=True)
                await tab.wait("document.getElementById('token').open")
                await tab.run("document.getElementById('token-value').value = 'geheim'")
                await tab.run("document.querySelector('#token .primary').click()", click=True)
                await tab.wait(f"{STATE} === 'queued'")
                assert (
                    await tab.run("document.getElementById('status').innerText")
                    == "Place 1 in the queue"
                )
            await tab.wait(f"{STATE} === 'live'")
            await asyncio.sleep(3)
            assert await tab.run("globalThis.loudest") > 0.1
            rows = who.model.seen[-1][0].mean((1, 2))
            assert rows[:3].min() > 0.95 and rows[-3:].max() < -0.95
            assert who.model.steps[-1].sampling.top_k[0, 0] == 7
            cut()
            await tab.wait(f"{STATE} === 'lost'")
            await tab.wait(f"{STATE} === 'live'")
            await tab.run("document.getElementById('question').value = 'w36 w38'")
            await tab.run("document.getElementById('ask-form').requestSubmit()")
            await tab.run(press("stop"))
            await tab.wait("document.querySelectorAll('.unheard').length > 3")
            await tab.run(DROP % base64.b64encode(standin.picture(255)).decode())
            await tab.wait(f"{PREVIEW}.naturalWidth === 8")
            await asyncio.sleep(1)
            assert who.model.seen[-1].mean() == 1.0
            await tab.run(press("remove"))
            await asyncio.sleep(2.5)  # the page keeps to an image in two seconds
            assert not who.model.steps[-1].sees[0]
            await check_legible(tab)
            assert (
                float(await tab.run("document.querySelector('[data-meter=p50]').textContent")) > 80
            )
            saved = await save(tab, tmp_path)
            await tab.run(press("start"))
            assert await tab.run(STATE) == "ended"
            await tab.run(press("start"), click=True)
            await tab.wait(f"{STATE} === 'live'")
            notes = "[...document.querySelectorAll('.note p')].map((note) => note.innerText)"
            told = await tab.run(notes)
            assert told.index("A new conversation") > told.index("You remove the image")
            return saved

    events, sound, files = asyncio.run(talk())
    images = ["image-1.jpg", "image-2.png"]
    assert files == ["conversation.wav", "transcript.json", "transcript.txt", *images]
    shown = [event["image"] for event in events if "image" in event]
    assert shown == [*images, None]
    assert [event["text"] for event in events if event["who"] == "user" and "text" in event] == [
        "w36 w38"
    ]
    words = [event for event in events if event["who"] == "assistant"]
    assert not {" w36", " w38"} & {event["text"] for event in words}
    assert {(event["gate"], event["level"]) for event in words} >= {(standin.SEEN, 6), (0.0, 0)}
    loud = [rms(sound[at : at + 1920, 0]) > 0.1 for at in range(0, 2 * RATE, 1920)]
    assert 0.3 < np.mean(loud) < 0.8  # half of each second, as the microphone


def quickstart():
    """The trained quickstart's PyTorch export, or None."""
    place = Path(os.environ.get("MVJAX_QUICKSTART", Path(__file__).parents[2] / "runs/quickstart"))
    folder = place / "export" / "torch"
    return folder if (folder / "certificate.json").is_file() else None


def test_a_spoken_question_about_each_of_two_images_is_answered_aloud(tmp_path):
    if (folder := quickstart()) is None:
        pytest.skip(
            "no trained quickstart: run `make quickstart`, or name its folder: MVJAX_QUICKSTART"
        )
    from mvjax.dialogues import speech
    from mvjax.digits import voices, world
    from mvjax.runtimes import loading

    scenes = world.scenes("test", 2, 3)
    names = [world.DIGITS[scene.facts.digit] for scene in scenes]
    assert names == ["four", "three"]
    for name, scene in zip(names, scenes):
        Image.fromarray(scene.image).save(tmp_path / f"{name}.png")
    asked = speech.speak("what digit is this", voices.TEST_USERS[0]).samples
    pause = np.zeros(5 * RATE, np.float32)
    lead = np.zeros(2 * RATE, np.float32)  # a machine that is busy may miss one: it is asked again
    microphone = write_wav(tmp_path / "microphone.wav", np.concatenate([lead, *[asked, pause] * 8]))

    async def talk():
        async with (
            standin.serving(loading.open_speaker(folder)) as (url, _),
            chromium.browser(f"{url}/", profile=tmp_path, microphone=microphone) as tab,
        ):
            # as with headphones: the tiny model mistakes much that Chromium's echo canceller lets through
            greedy = {"text_temperature": 0, "audio_temperature": 0}
            await set_up(tab, tmp_path, echo_cancellation=False, **greedy)
            await photograph(tab, "ready")
            await give(tab, tmp_path / "four.png")
            await start(tab)
            await tab.wait(f"({WORDS}).includes('four')", 20)
            await asyncio.sleep(1)
            loudest = [await tab.run("globalThis.loudest")]
            await give(tab, tmp_path / "three.png")
            await tab.run("globalThis.loudest = 0")
            await tab.wait(f"({WORDS}).includes('three')", 25)
            await asyncio.sleep(1.5)
            loudest.append(await tab.run("globalThis.loudest"))
            await photograph(tab, "talk")
            saved = await save(tab, tmp_path)
            await tab.run(press("start"))
            assert not tab.problems()
        return loudest, *saved

    loudest, events, sound, files = asyncio.run(talk())
    assert min(loudest) > 0.01  # RMS at the loudspeaker, of full scale 1
    assert files[-2:] == ["image-1.png", "image-2.png"]
    swapped = next(event["seconds"] for event in events if event.get("image") == "image-2.png")
    said = [event for event in events if event["who"] == "assistant"]
    before = "".join(e["text"] for e in said if e["seconds"] < swapped).split()
    after = "".join(e["text"] for e in said if e["seconds"] > swapped).split()
    assert "four" in before and "three" not in before
    assert "three" in after and "four" not in after
    for name in names:
        at = next(e["seconds"] for e in said if name in e["text"])
        spoken = sound[int(at * RATE) : int((at + 1) * RATE), 0]
        print(f"{name} at {at:.2f} s: RMS {rms(spoken):.3f}, at the loudspeaker {loudest}")
        assert rms(spoken) > 0.02, name
    assert all(0 < event["gate"] < 1 for event in said)
