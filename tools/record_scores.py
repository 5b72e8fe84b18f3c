"""Records what the reference scorers answer: tests/golden/ptb.json.xz and tests/golden/scores.json.xz.

    pip install --target REFERENCE --no-deps pycocoevalcap==1.2
    git clone https://github.com/GT-Vision-Lab/VQA
    python tools/record_scores.py --pycocoevalcap REFERENCE/pycocoevalcap \
        --vqa VQA/PythonEvaluationTools/vqaEvaluation/vqaEval.py

Needs Java (8 or later) and takes 10 s. A seed gives the same cases every time. Record again when the cases of
`noisy_captions.py` change. With --check N --seed S nothing is written: our scorers are compared with the
reference on N other cases.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import lzma
import random
import re
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import noisy_captions

from mvjax.eval.scoring import cider, ptb, vqa

GOLDEN = Path(__file__).parents[1] / "tests/golden"
_JAR = "tokenizer/stanford-corenlp-3.4.1.jar"


def main() -> None:
    """Writes both files, or compares."""
    parser = argparse.ArgumentParser(description="records what the reference scorers answer")
    parser.add_argument("--pycocoevalcap", type=Path, required=True, metavar="DIR")
    parser.add_argument("--vqa", type=Path, required=True, metavar="vqaEval.py")
    parser.add_argument("--check", type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.check:
        check(args)
        return
    captions = noisy_captions.captions(5000, args.seed)
    tokens = java_tokens(captions, args.pycocoevalcap / _JAR)
    write(GOLDEN / "ptb.json.xz", {"captions": captions, "tokens": tokens})
    sets = [cider_set(1000, args.seed), *(cider_set(n, n) for n in (1, 2, 7))]
    asked = vqa_cases(1000, args.seed)
    values = {
        "cider": [case | {"scores": reference_cider(case, args.pycocoevalcap)} for case in sets],
        "vqa": [[*case, value] for case, value in zip(asked, reference_vqa(asked, args.vqa))],
    }
    write(GOLDEN / "scores.json.xz", values)


def check(args: argparse.Namespace) -> None:
    """Prints how many of N new cases differ from the reference's answers."""
    captions = noisy_captions.captions(args.check, args.seed)
    pairs = list(
        zip(captions, java_tokens(captions, args.pycocoevalcap / _JAR), ptb.tokens(captions))
    )
    differ = [case for case in pairs if case[1] != " ".join(case[2]).rstrip()]
    for case in differ[:10]:
        print(*map(repr, case), sep="\n  ")
    print(f"PTB: {len(differ)} of {len(pairs)} captions differ")
    case = cider_set(args.check, args.seed)
    ours = cider.scores(case["candidates"], case["references"])
    theirs = reference_cider(case, args.pycocoevalcap)
    print(f"CIDEr: at most {max(abs(a - b) for a, b in zip(ours, theirs)):.1e} apart")
    asked = vqa_cases(args.check, args.seed)
    theirs = reference_vqa(asked, args.vqa)
    apart = max(abs(vqa.accuracy(*case) - value) for case, value in zip(asked, theirs))
    print(f"VQA: at most {apart:.1e} apart")


def java_tokens(captions: list[str], jar: Path) -> list[str]:
    """The tokens of each caption, joined by spaces, as pycocoevalcap has them made."""
    with tempfile.NamedTemporaryFile(suffix=".txt") as file:
        file.write("\n".join(captions).encode())
        file.flush()
        tokenizer = "edu.stanford.nlp.process.PTBTokenizer"
        command = ["java", "-cp", str(jar), tokenizer, "-preserveLines", "-lowerCase", file.name]
        out = subprocess.run(command, check=True, capture_output=True).stdout.decode()
    lines = [line.rstrip() for line in out.split("\n")]
    if len(lines) == len(captions) + 1:  # Java ends with a line break
        lines.pop()
    assert len(lines) == len(captions), f"{len(captions)} captions, {len(lines)} lines"
    return lines


def cider_set(count: int, seed: int) -> dict[str, Any]:
    """Captions of `count` images, of one to six references each."""
    rng = random.Random(seed)

    def caption() -> str:
        return noisy_captions.words(rng, vocabulary=60, longest=14)

    references = [[caption() for _ in range(rng.randint(1, 6))] for _ in range(count)]
    candidates = [rng.choice([*some, caption()]) for some in references]
    return {"candidates": candidates, "references": references}


def vqa_cases(count: int, seed: int) -> list[tuple[str, list[str]]]:
    """Answers with ten human ones each."""
    rng = random.Random(seed)
    return [noisy_captions.answers(rng) for _ in range(count)]


def reference_cider(case: dict[str, Any], folder: Path) -> list[float]:
    """The score of each image by pycocoevalcap."""
    sys.path.insert(0, str(folder.parent))
    from pycocoevalcap.cider import cider_scorer  # pyright: ignore[reportMissingImports]

    scorer = cider_scorer.CiderScorer(n=4, sigma=6.0)
    for candidate, references in zip(case["candidates"], case["references"]):
        scorer += (candidate, references)
    return [float(score) for score in scorer.compute_score()[1]]


def reference_vqa(cases: list[tuple[str, list[str]]], file: Path) -> list[float]:
    """The accuracy of each answer by the official evaluator, which is Python 2."""
    module: dict[str, Any] = {}
    exec(re.sub(r'print ("[^"]*")', r"print(\1)", file.read_text()), module)
    fields = {"question_type": "", "answer_type": ""}
    asked = {
        n: {"answers": [{"answer": a, "answer_id": k} for k, a in enumerate(given)]} | fields
        for n, (_, given) in enumerate(cases)
    }
    questions = types.SimpleNamespace(qa=asked, getQuesIds=lambda: list(asked))
    answers = types.SimpleNamespace(qa={n: {"answer": said} for n, (said, _) in enumerate(cases)})
    evaluator = module["VQAEval"](questions, answers, n=12)  # digits, of a percentage
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.evaluate()
    return [evaluator.evalQA[n] / 100 for n in asked]


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes compressed JSON and says how large it is."""
    path.write_bytes(lzma.compress(json.dumps(content, ensure_ascii=False).encode(), preset=9))
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
