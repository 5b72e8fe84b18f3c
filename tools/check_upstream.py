"""Runs upstream's own code beside ours on the same weights, and prints what was compared.

    git clone https://github.com/kyutai-labs/moshivis ~/moshivis
    git clone https://github.com/google-research/big_vision ~/big_vision
    git clone https://github.com/NVIDIA/personaplex ~/personaplex
    python tools/check_upstream.py --moshivis ~/moshivis --big-vision ~/big_vision --personaplex ~/personaplex

The comparisons are the tests of `tests/parity`, which skip where no checkout is named. They need the `dev`
extra and `moshi`; a minute or two. The exit status is 0 if everything that was asked for passed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Environment variable of each checkout, and a file by which it is known.
CHECKOUTS = {
    "moshivis": ("MVJAX_MOSHIVIS", "kyuteye_pt/kyuteye/models/moshivis.py"),
    "big_vision": ("MVJAX_BIG_VISION", "big_vision/models/vit.py"),
    "personaplex": ("MVJAX_PERSONAPLEX", "moshi/moshi/models/lm.py"),
}
TESTS = {
    "moshivis": "test_kyuteye_*.py",
    "big_vision": "test_big_vision_*.py",
    "personaplex": "test_personaplex.py",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in CHECKOUTS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, metavar="DIR")
    asked = {name: path for name, path in vars(parser.parse_args()).items() if path is not None}
    if not asked:
        parser.error("name at least one checkout")
    for name, path in asked.items():
        if not (path / CHECKOUTS[name][1]).is_file():
            parser.error(f"{path}: expected a checkout of {name} with {CHECKOUTS[name][1]}")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.jsonl"
        report.touch()
        status, log = _run(asked, report)
        lines = [json.loads(line) for line in report.read_text().splitlines()]
    print(_table(lines))
    failed = sum(not line["passed"] for line in lines)
    if status or not lines:
        print(log)
        return 1
    print(f"{len(lines)} comparisons, {failed} failed")
    return int(failed > 0)


def _run(asked: dict[str, Path], report: Path) -> tuple[int, str]:
    """Returns pytest's exit status, not 0 if a test that was asked for skipped, and its output."""
    folder = ROOT / "tests" / "parity"
    tests = [str(test) for name in asked for test in sorted(folder.glob(TESTS[name]))]
    env = os.environ | {CHECKOUTS[name][0]: str(path.resolve()) for name, path in asked.items()}
    env |= {"MVJAX_PARITY_REPORT": str(report), "NO_TORCH_COMPILE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    skipped = "SKIPPED" in done.stdout
    return done.returncode or int(skipped), done.stdout + done.stderr


def _table(lines: list[dict]) -> str:
    head = {"check": "check", "what": "compared", "error": "max error", "allowed": "allowed"}
    rows = [head | {"verdict": "verdict"}]
    rows += [line | {"verdict": "pass" if line["passed"] else "FAIL"} for line in lines]
    columns = ("check", "what", "error", "allowed", "verdict")
    widths = {c: max(len(row[c]) for row in rows) for c in columns}
    return "\n".join("  ".join(row[c].ljust(widths[c]) for c in columns) for row in rows)


if __name__ == "__main__":
    sys.exit(main())
