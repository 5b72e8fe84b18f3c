"""The report: self-contained, escaped, readable without seeing, and its sounds and plots decode."""

import base64
import html.parser
import io
import re
import wave

import numpy as np
import pytest
from PIL import Image

from mvjax.eval import metrics
from mvjax.report import html as html_lib
from mvjax.report import plots

VOID = {"meta", "img", "br", "link", "input", "hr"}


class _Outline(html.parser.HTMLParser):
    """Tags with their attributes; checks that they nest."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def _report() -> html_lib.Report:
    rng = np.random.default_rng(0)
    example = html_lib.ReportExample(
        kind="digit",
        image=rng.integers(0, 256, (6, 5, 3), dtype=np.uint8),
        scene="a red seven at the top left",
        voice="en-us+f3",
        question="is it <seven>",
        question_audio=np.linspace(-2, 2, 480, dtype=np.float32),
        said="yes & it is",
        answer_audio=np.zeros(960, np.float32),
        correct=True,
    )
    rows = metrics.table(
        {"text": [metrics.ScoredAnswer("a", "digit", "q", "s", True)], "audio": []}
    )
    gates = plots.gates(
        rng.random((3, 20)), looks=[(0, 9)], talks=[(9, 20)], words=[("red", 4)], asked=[("hm", 1)]
    )
    losses = plots.losses({"total": ([1, 2, 3], [3.0, 2.0, 1.0]), "audio": ([1, 3], [2.0, 1.5])})
    return html_lib.Report(
        title="Digits",
        subtitle="two cores",
        tiles=[html_lib.Tile("written questions", "96 %", "at least 90 %", True)],
        examples=[example, example],
        accuracy=[{**row, "chance": 0.1} for row in rows],
        gate=html_lib.Picture(gates, "gate over time", "it opens", np.zeros(1920)),
        trained=[("Steps", "600")],
        loss=html_lib.Picture(losses, "loss falls"),
        certificates=[html_lib.Certificate("PyTorch", 3.2e-6, 1e-4, 120, True)],
        codec=[("as synthesized", 100, 0.97)],
        stages=[html_lib.Stage("train", 1.5, 2.0)],
        footer="mvjax",
    )


@pytest.fixture(scope="module")
def page() -> str:
    return html_lib.render(_report())


def test_nothing_is_loaded_from_elsewhere(page):
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources and all(s.startswith(("data:", "#")) for s in sources)
    assert "http" not in page and "@import" not in page and "<script" not in page


def test_html_nests_and_every_picture_and_sound_has_words(page):
    outline = _Outline()
    outline.feed(page)
    assert outline.open == []
    tags = outline.seen
    assert ("html", {"lang": "en"}) in tags
    assert all(a.get("alt") for t, a in tags if t == "img")
    assert all(a.get("aria-label") and "controls" in a for t, a in tags if t == "audio")
    assert all(a.get("scope") for t, a in tags if t == "th")
    ids = {a["id"] for _, a in tags if "id" in a}
    links = [a["href"][1:] for t, a in tags if t == "a"]
    labels = [a["aria-labelledby"] for _, a in tags if "aria-labelledby" in a]
    assert set(links) | set(labels) <= ids
    assert sum(t == "table" for t, _ in tags) == sum(t == "caption" for t, _ in tags)


def test_text_is_escaped(page):
    assert "is it &lt;seven&gt;" in page and "<seven>" not in page and "yes &amp; it is" in page


def test_a_mode_without_answers_shows_a_dash_and_numbers_are_per_cent(page):
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", page)
    assert "100.0" in cells and "–" in cells and "nan" not in cells


def test_sounds_are_wav_files_of_the_samples():
    samples = np.array([0.0, 0.5, -0.5, 1.7, np.nan], np.float32)
    with wave.open(io.BytesIO(html_lib.wav_bytes(samples))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24_000, 1, 2)
        stored = np.frombuffer(file.readframes(9), "<i2")
    assert stored.tolist() == [0, 16384, -16384, 32767, 0]


def test_pictures_are_png_files_of_the_pixels(page):
    image = _report().examples[0].image
    uri = re.search(r'<img src="data:image/png;base64,([^"]*)" alt="a red', page)
    assert uri is not None
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(base64.b64decode(uri[1])))), image
    )


def test_plots_are_pictures_with_ink():
    picture = _report()
    for png in (picture.gate.png, picture.loss.png):
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
        assert min(pixels.shape) > 400 and np.unique(pixels).size > 20


def test_write_makes_one_file(tmp_path):
    html_lib.write(tmp_path / "report.html", _report())
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
