"""The report: self-contained, escaped, readable without seeing, and its sounds and plots decode."""

import base64
import dataclasses
import html.parser
import io
import re
import wave
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from mvjax.report import html as html_lib
from mvjax.report import plots

VOID = {"meta", "img", "source", "br", "link", "input", "hr"}


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
        image=rng.integers(0, 256, (6, 5, 3), dtype=np.uint8),
        scene="a red seven at the top left",
        voice="en-us+f3",
        question="is it <seven>",
        question_audio=np.linspace(-2, 2, 480, dtype=np.float32),
        said="yes & it is",
        answer_audio=np.zeros(960, np.float32),
        correct=True,
    )
    wrong = dataclasses.replace(example, said="", correct=False)
    exchanges = [
        plots.PlottedExchange(True, (0, 9), "hm", (0, 3), "a red one", (4, 8)),
        plots.PlottedExchange(False, (9, 20), "ah", (9, 12), "", None),
    ]
    shares = {
        "text": html_lib.Share(1.0, (0.82, 1.0)),
        "audio": None,
        "chance": html_lib.Share(0.1),
    }
    losses = plots.losses({"total": ([1, 2, 3], [3.0, 2.0, 1.0]), "audio": ([1, 3], [2.0, 1.5])})
    gates = plots.gates(rng.random((3, 20)), exchanges)
    return html_lib.Report(
        title="Digits",
        subtitle="two cores",
        tiles=[html_lib.Tile("written questions", "96 %", "at least 90 %", True)],
        examples=[html_lib.ExampleKind("digit", 17, 18, [example, wrong])],
        accuracy=[html_lib.AccuracyRow(kind, 18, shares) for kind in ("digit", "all")],
        gate=html_lib.Picture(gates, "gate over time", "it opens", np.zeros(1920)),
        trained=[("Steps", "600")],
        loss=html_lib.Picture(losses, "loss falls"),
        certificates=[
            html_lib.Certificate("PyTorch", 3.2e-6, 1e-4, 120, "pass"),
            html_lib.Certificate("MLX", None, 1e-4, None, "not run", ["mvjax certify <DIR>"]),
        ],
        codec=[("as synthesized", 100, html_lib.Share(0.97, (0.92, 0.99)))],
        voices=[html_lib.SaidSentence("<it> is red", {"synthesizer": np.zeros(1920)})],
        stages=[html_lib.Stage("train", 1.5, 2.0)],
        continued=False,
        footer="mvjax",
    )


@pytest.fixture(scope="module")
def report() -> html_lib.Report:
    return _report()


@pytest.fixture(scope="module")
def page(report) -> str:
    return html_lib.render(report)


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
    cells = re.findall(r"<td[^>]*>([^<]*)<", page)
    assert "100.0" in cells and "–" in cells and "nan" not in cells


def test_sounds_are_wav_files_of_the_samples():
    samples = np.array([0.0, 0.5, -0.5, 1.7, np.nan], np.float32)
    with wave.open(io.BytesIO(html_lib.wav_bytes(samples))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24_000, 1, 2)
        stored = np.frombuffer(file.readframes(9), "<i2")
    assert stored.tolist() == [0, 16384, -16384, 32767, 0]


def test_pictures_are_png_files_of_the_pixels(report, page):
    image = report.examples[0].examples[0].image
    uri = re.search(r'<img src="data:image/png;base64,([^"]*)" alt="a red', page)
    assert uri is not None
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(base64.b64decode(uri[1])))), image
    )


def test_right_and_wrong_answers_stand_beside_each_other(page):
    grid = page.split('<div class="examples">')[1].split("</section>")[0]
    assert re.findall("a (right|wrong) answer", grid) == ["right", "wrong"]
    assert "17 of 18 spoken questions right" in page and "said nothing" in grid


def test_every_bar_is_as_wide_as_every_other_and_holds_no_digits(page):
    bars = re.findall(r'<span class="bar" style="--share: ([\d.]+)%">(.*?)</span>', page)
    assert [share for share, _ in bars] == ["100.0", "10.0", "100.0", "10.0", "97.0"]
    assert all(re.sub("<[^>]*>", "", inner) == "" for _, inner in bars)
    assert re.findall("--low: ([\\d.]+)%; --high: ([\\d.]+)%", bars[0][1]) == [("82.0", "100.0")]
    assert re.search(r"\.bar { [^}]*width: var\(--bar-width\)", page)


def test_a_verdict_is_named_and_what_was_not_run_has_no_numbers(report, page):
    (table,) = re.findall('<section id="certificates".*?</section>', page, re.DOTALL)
    rows = re.findall('<tr><th scope="row">(.*?)</tr>', table, re.DOTALL)
    cells = [re.sub("<[^>]*>", " ", row).split() for row in rows]
    assert cells == [
        ["PyTorch", "3.2e-06", "1e-04", "120", "agrees"],
        ["MLX", "–", "1e-04", "–", "not", "run"],
    ]
    assert "<p>MLX: mvjax certify &lt;DIR&gt;</p>" in table and "<p>PyTorch" not in table
    failed = dataclasses.replace(report.certificates[0], verdict="fail")
    assert "differs" in html_lib.render(dataclasses.replace(report, certificates=[failed]))


def test_a_continued_run_does_not_claim_its_whole_time(report, page):
    said = "whose time and memory are not in here"
    assert said not in page
    assert said in html_lib.render(dataclasses.replace(report, continued=True))


PLOTS = [(name, width) for name in ("gate", "loss") for width in plots.Plot._fields]


@pytest.mark.parametrize(("name", "width"), PLOTS)
def test_plots_are_pictures_with_ink_in_colors_of_the_page(report, name, width):
    svg = getattr(getattr(report, name).plot, width)
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg") and len(root.findall(".//{*}path")) > 20
    inches = float(root.attrib["width"].removesuffix("pt")) / 72
    assert inches == pytest.approx({"wide": 9.6, "narrow": 3.6}[width])
    style = root.find(".//{*}style")
    assert style is not None and style.text is not None
    light, dark = re.findall(r"svg {([^}]*)}", style.text)
    assert "prefers-color-scheme: dark" in style.text
    named = [dict(re.findall(r"(--\w+): (#\w{6})", scheme)) for scheme in (light, dark)]
    assert named[0].keys() == named[1].keys() and not set(named[0].values()) & set(
        named[1].values()
    )
    rest = svg.replace(style.text, "")
    assert set(re.findall(r"var\((--\w+)\)", rest)) <= named[0].keys()
    # what is drawn in a color of its own does not follow the page
    assert set(re.findall(r"#[0-9a-f]{6}\b", rest)) == set()


def test_the_page_shows_the_narrow_plots_on_narrow_screens(page):
    for picture in re.findall(r"<picture>(.*?)</picture>", page):
        media, narrow, wide = re.fullmatch(
            r'<source media="(.*?)" srcset="(.*?)"><img src="(.*?)" alt=".*?">', picture
        ).groups()
        assert "max-width" in media and narrow != wide
    assert page.count("<picture>") == 2


def test_a_curve_is_smoothed_over_its_neighbors_and_keeps_its_length():
    values = [0.0, 4.0] * 20
    smooth = plots._running_mean(values)
    assert len(smooth) == 40 and np.abs(smooth[5:-5] - 2).max() < 0.5
    np.testing.assert_allclose(plots._running_mean([1.0] * 41), np.ones(41))
    assert plots._running_mean([3.0]).tolist() == [3.0]


def test_write_makes_one_file(report, tmp_path):
    html_lib.write(tmp_path / "report.html", report)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
