"""A headless Chromium with a fake microphone, driven by its DevTools protocol over aiohttp's WebSocket."""

import asyncio
import base64
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
from pathlib import Path

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def executable():
    """The path of an installed Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """One page: `run` evaluates JavaScript in it."""

    def __init__(self, socket, events):
        self._socket, self._ids, self._answers = socket, itertools.count(1), {}
        self.events = events  # of the protocol: (method, params)

    async def call(self, method, **params):
        number = next(self._ids)
        self._answers[number] = answer = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        result = await asyncio.wait_for(answer, 60)
        assert "error" not in result, (method, result["error"])
        return result["result"]

    async def run(self, script, *, click=False):
        """The value of an expression, a promise's awaited; `click`: as if a person had clicked."""
        done = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=click
        )  # fmt: skip
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    async def wait(self, script, seconds=20.0):
        """Waits until an expression is true, and returns its value; fails after `seconds`."""
        end = asyncio.get_running_loop().time() + seconds
        while not (value := await self.run(script)):
            left = end - asyncio.get_running_loop().time()
            if left < 0:
                text = await self.run("document.body?.textContent.replace(/\\s+/g, ' ')")
                raise AssertionError(f"not in {seconds:g} s: {script}\n{text}\n{self.problems()}")
            await asyncio.sleep(0.1)
        return value

    async def choose_file(self, selector, path):
        """Gives a file to an <input type=file>, as the file picker would."""
        document = await self.call("DOM.getDocument")
        node = await self.call(
            "DOM.querySelector", nodeId=document["root"]["nodeId"], selector=selector
        )
        await self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node["nodeId"])

    async def screenshot(self, path, *, width, height, scheme="light", phone=False):
        """Writes a PNG of the page at a size, `scheme` light or dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1}
        await self.call("Emulation.setDeviceMetricsOverride", mobile=phone, **size)
        await self.prefer(scheme)
        picture = await self.call("Page.captureScreenshot", format="png")
        Path(path).write_bytes(base64.b64decode(picture["data"]))

    async def prefer(self, scheme):
        """Sets the person's color scheme, light or dark."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        await self.call("Emulation.setEmulatedMedia", features=[feature])
        await asyncio.sleep(0.3)

    async def press_key(self, key, code):
        """Presses a key, named as in KeyboardEvent, with its Windows code."""
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code
            )

    def problems(self):
        """What the page logged as errors (violations of its policy, too), and its uncaught exceptions."""
        return [
            (method, params)
            for method, params in self.events
            if method == "Runtime.exceptionThrown"
            or (method == "Log.entryAdded" and params["entry"]["level"] == "error")
        ]

    async def listen(self):
        async for message in self._socket:
            data = message.json()
            if answer := self._answers.pop(data.get("id"), None):
                answer.set_result(data)
            elif "method" in data:
                self.events.append((data["method"], data["params"]))


@contextlib.asynccontextmanager
async def browser(url, *, profile, microphone=None, arguments=()):
    """Opens `url` in a fresh Chromium; yields its `Tab`.

    `microphone`: a WAV file, played once when a page opens it. Without a sandbox, as containers need it.
    """
    program = executable()
    assert program, f"none of {NAMES} is installed"
    command = [
        program, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--mute-audio",
        "--remote-debugging-port=0", f"--user-data-dir={profile}", "--disable-background-networking",
        "--disable-component-update", "--autoplay-policy=user-gesture-required",
        "--use-fake-device-for-media-stream", *arguments,
    ]  # fmt: skip
    if microphone:
        command += [
            "--use-fake-ui-for-media-stream",
            f"--use-file-for-fake-audio-capture={microphone}%noloop",
        ]
    log = open(Path(profile) / "log.txt", "w")  # noqa: SIM115
    process = subprocess.Popen(
        [*command, "about:blank"], stdout=log, stderr=log, start_new_session=True
    )
    try:
        port = await _port(Path(profile) / "DevToolsActivePort")
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                pages = [p for p in await answer.json() if p["type"] == "page"]
            async with session.ws_connect(
                pages[0]["webSocketDebuggerUrl"], max_msg_size=0
            ) as socket:
                tab = Tab(socket, [])
                listening = asyncio.create_task(tab.listen())
                for domain in ("Page", "Runtime", "Log", "DOM"):
                    await tab.call(f"{domain}.enable")
                await tab.call("Page.navigate", url=url)
                await tab.wait("document.readyState === 'complete'", 60)
                yield tab
                listening.cancel()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


async def _port(file):
    for _ in range(300):
        if file.exists() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        await asyncio.sleep(0.1)
    raise AssertionError(f"Chromium did not start: {file} was not written")
