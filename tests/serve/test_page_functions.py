"""The page's pure functions by node, and what can be said of its files without a browser."""

import io
import json
import re
import shutil
import subprocess
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "mvjax" / "serve" / "page"


def test_functions_of_the_page_by_node(tmp_path):
    if not (node := shutil.which("node")):
        pytest.skip("node is not installed")
    for script in PAGE.glob("*.js"):
        shutil.copy(script, tmp_path)
    shutil.copy(Path(__file__).with_name("page_test.mjs"), tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    saved = tmp_path / "saved.zip"
    done = subprocess.run(
        [node, "--test", "page_test.mjs"],
        cwd=tmp_path,
        env={"SAVED": str(saved)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    with zipfile.ZipFile(saved) as archive:
        assert archive.testzip() is None
        names = ["conversation.wav", "transcript.json", "transcript.txt", "image-1.png"]
        assert archive.namelist() == names
        assert archive.read("image-1.png") == b"\1\2\3"
        transcript = json.loads(archive.read("transcript.json"))
        assert [event["seconds"] for event in transcript["events"]] == [0, *[0.08] * 5, 0.16]
        with wave.open(io.BytesIO(archive.read("conversation.wav"))) as sound:
            assert (sound.getnchannels(), sound.getframerate()) == (2, 24000)
            assert (sound.getsampwidth(), sound.getnframes()) == (2, 3 * 1920)
            both = np.frombuffer(sound.readframes(3 * 1920), "<i2").reshape(3, 1920, 2)
    assert both[:, 0].tolist() == [
        [0, 100],
        [7, 101],
        [0, 102],
    ]  # left the assistant, right the user
    assert (both == both[:, :1]).all()


def test_page_needs_nothing_from_elsewhere_and_no_inline_code():
    texts = {path.name: path.read_text() for path in sorted(PAGE.iterdir())}
    for name, text in texts.items():
        addresses = re.findall(r"https?://[^\s\"')]+", text)
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}, name
    page = texts["index.html"]
    assert "default-src 'none'" in page
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)
    named = re.findall(r'(?:src|href)="([^"#]+)"', page)
    imported = [n for text in texts.values() for n in re.findall(r'from "\./([\w.-]+)"', text)]
    assert {*named, *imported} <= texts.keys()
    worklets = re.findall(r'\["(\w+)", "(\w+)"\]\.map\(\(name\) => audioWorklet', texts["audio.js"])
    assert {f"{name}-worklet.js" for name in worklets[0]} <= texts.keys()
    assert all(text.count("\n") <= 320 for text in texts.values())


def test_page_is_package_data():
    pyproject = (PAGE.parents[2] / "pyproject.toml").read_text()
    assert '"serve/page/*"' in pyproject
