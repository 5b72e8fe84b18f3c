import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "BUILD.md", "BENCHMARKS.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "docs/results/README.md",
]
PATH = re.compile(r"`((?:mvjax|tests|tools|experiments|docs|\w+)/[\w./-]+\.(?:py|sh|md|html))`")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_lines_are_at_most_120_characters(document):
    long = [n for n, line in enumerate(document.read_text().splitlines(), 1) if len(line) > 120]
    assert long == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_named_files_exist(document):
    text = document.read_text()
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", text)
    missing = [link for link in links if not (document.parent / link).exists()]
    named = {path for path in PATH.findall(text) if not path.startswith("runs/")}
    missing += [p for p in named if not ((ROOT / p).exists() or (ROOT / "mvjax" / p).exists())]
    assert missing == []


def test_every_document_is_one_click_from_the_readme():
    links = set(re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()))
    wanted = {str(path.relative_to(ROOT)) for path in DOCUMENTS} - {"README.md"}
    assert wanted <= links


def test_build_md_stays_short():
    assert len((ROOT / "BUILD.md").read_bytes()) <= 8000


def test_the_license_is_the_one_that_the_package_names():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0" and project["license-files"] == ["LICENSE"]
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text
