"""The page in headless Chromium: a fake microphone asks about two images, and the answers are heard and read.

The bar needs a trained model: `make quickstart` writes one to runs/quickstart, or MVJAX_QUICKSTART names its
folder. With MVJAX_SCREENSHOTS=DIR the page is photographed at 1280 and 390 pixels, light and dark.
"""

import asyncio
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
from PIL import Image

aiohttp_web = pytest.importorskip("aiohttp.web")

RATE = 24000
STATE = "document.documentElement.dataset.state"
WORDS = "[...document.querySelectorAll('#turns .assistant p')].map((p) => p.innerText).join(' ')"
NOTES = "document.querySelectorAll('#turns .note').length"
LOUDEST = """
  globalThis.loudest = 0;
  setInterval(() => {
    const shown = Number(document.documentElement.style.getPropertyValue("--assistant-level"));
    globalThis.loudest = Math.max(globalThis.loudest, (shown / 1.6) ** 2);
  }, 40);
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
async def serving(folder):
    """The server with an export folder; yields its address."""
    from mvjax.runtimes import loading
    from mvjax.serve import access, app

    rules = access.Access(token=None, origins=(), host="127.0.0.1")
    runner = aiohttp_web.AppRunner(
        app.make(loading.open_speaker(folder), app.Options(access=rules))
    )
    await runner.setup()
    site = aiohttp_web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


def press(button):
    return f"document.getElementById({button!r}).click()"


async def set_up(tab, folder, **settings):
    """Chosen settings as the page remembers them, and a folder for what it saves."""
    await tab.run(f"localStorage.setItem('mvjax.settings', {json.dumps(json.dumps(settings))})")
    await tab.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    await tab.call("Page.reload")
    await asyncio.sleep(0.5)
    await tab.wait(
        "document.readyState === 'complete' && document.getElementById('status').innerText === 'Ready'"
    )
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
    await tab.run(press("save"), click=True)
    for _ in range(100):
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


def rms(samples):
    return float(np.sqrt(np.mean(np.square(samples))))


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

    four, three = world.scenes("test", 2, 3)
    for scene in (four, three):
        Image.fromarray(scene.image).save(tmp_path / f"{scene.facts.digit}.png")
    asked = speech.speak("what digit is this", voices.TEST_USERS[0]).samples
    pause = np.zeros(7 * RATE, np.float32)
    lead = np.zeros(2 * RATE, np.float32)
    microphone = write_wav(
        tmp_path / "microphone.wav",
        np.concatenate([lead, asked, pause, asked, pause, pause, pause]),
    )
    names = [world.DIGITS[scene.facts.digit] for scene in (four, three)]

    async def talk():
        async with (
            serving(folder) as url,
            chromium.browser(url, profile=tmp_path, microphone=microphone) as tab,
        ):
            await set_up(
                tab, tmp_path, text_temperature=0, audio_temperature=0, noise_suppression=False
            )
            await photograph(tab, "ready")
            await give(tab, tmp_path / f"{four.facts.digit}.png")
            await start(tab)
            await tab.wait(f"({WORDS}).includes({names[0]!r})", 12)
            first = await tab.run("globalThis.loudest")
            await give(tab, tmp_path / f"{three.facts.digit}.png")
            await tab.run("globalThis.loudest = 0")
            await tab.wait(f"({WORDS}).includes({names[1]!r})", 12)
            await asyncio.sleep(1.5)
            second = await tab.run("globalThis.loudest")
            await photograph(tab, "talk")
            events, sound, files = await save(tab, tmp_path)
            await tab.run(press("start"))
            assert not tab.problems()
        return first, second, events, sound, files

    first, second, events, sound, files = asyncio.run(talk())
    assert min(first, second) > 0.01  # RMS at the loudspeaker, of full scale 1
    assert files[-2:] == ["image-1.png", "image-2.png"]
    swapped = next(event["seconds"] for event in events if event.get("image") == "image-2.png")
    said = [e for e in events if e["who"] == "assistant"]
    before = "".join(e["text"] for e in said if e["seconds"] < swapped).split()
    after = "".join(e["text"] for e in said if e["seconds"] > swapped).split()
    assert names[0] in before and names[1] not in before
    assert names[1] in after and names[0] not in after
    for name in names:
        at = next(e["seconds"] for e in said if name in e["text"])
        spoken = sound[int(at * RATE) : int((at + 1) * RATE)]
        assert rms(spoken[:, 0]) > 0.02, name
    assert all(0 <= e["level"] <= 10 for e in said)
