"""How the assistant sounds: the same sentences synthesized, through the codec, and in the model's answers.

    python tools/bench_voice.py RUN      # a trained run of the digits world; extras eval and quality

The sentences are those of `voice_check.held_out` among the model's spoken answers to held-out questions in
held-out voices. A word classifier, trained on other sentences as synthesized, hears each word alone, cut out
where forced alignment finds it, and on the frame grid. PocketSphinx hears whole sentences, by the grammar of
all that the assistant may say. DNSMOS judges the sound of the first 48 (each second costs it 0.3 s of a
core). Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mvjax.digits import benchmark, talk, users, voice_check
from mvjax.eval import codec_check, journal, metrics, runner
from mvjax.eval import model as eval_model
from mvjax.eval.health import quality, recognize
from mvjax.train import load

_NAMES = {"synthesizer": "synthesizer", "codec": "after the codec", "model": "the model's answers"}
_TRAINED_ON = 240  # utterances of the classifier
_JUDGED = 48  # sentences that DNSMOS hears


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--per-kind", type=int, default=48, help="questions (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.per_kind < 1 or args.seed < 0:
        parser.error(
            f"expected --per-kind of 1 or more and a --seed of 0 or more, got {args.per_kind}, {args.seed}"
        )
    try:
        trained = load.trained(args.run)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    model = eval_model.load(trained.config, trained.params)
    said = answers(model, args.per_kind * len(talk.KINDS), args.seed)
    texts = {sentence.text for sentence in said}
    training, _ = voice_check.utterances(_TRAINED_ON, 0, args.seed)
    ear = Ear(training)
    print(f"{len(said)} sentences, {len(texts)} distinct\n")
    print("| speech | words | classifier | on the grid | PocketSphinx | DNSMOS overall / P.808 |")
    print("|---|---|---|---|---|---|")
    for side in voice_check.SIDES:
        print(row(side, said, ear), flush=True)


def answers(model: eval_model.LoadedModel, count: int, seed: int) -> list[voice_check.Sentence]:
    """The held-out sentences among the model's spoken answers to questions of the digits benchmark."""
    digits = benchmark.DigitsBenchmark()
    samples = digits.samples(count, seed)
    with (
        tempfile.TemporaryDirectory() as folder,
        journal.Journal(Path(folder, "samples.jsonl"), {}, fresh=True) as log,
    ):
        found = runner.evaluate(model, digits, samples, ["audio"], log=log, keep_spoken=count)
    spoken = [
        found.spoken[s.id]
        for s, a in zip(samples, found.answers["audio"], strict=True)
        if voice_check.held_out(a.said)
    ]
    return voice_check.sentences(model, spoken)


class Ear:
    """Hears words alone, after training on utterances as synthesized, and whole sentences."""

    def __init__(self, training: Sequence[codec_check.Utterance]):
        self.align = recognize.aligner(users.PRONUNCIATIONS)
        self.aligned = codec_check.WordClassifier([w for u in training for w in self.cut(*u)])
        self.on_grid = codec_check.WordClassifier(
            [w for u in training for w in codec_check.cut(*u)]
        )
        self.whole = recognize.pocketsphinx(users.grammar(), users.PRONUNCIATIONS)

    def cut(
        self, samples: np.ndarray, words: list[tuple[str, float]]
    ) -> list[codec_check.WordClip]:
        """Words where forced alignment finds them; none if it does not."""
        found = self.align(samples, " ".join(word for word, _ in words))
        return codec_check.cut_at(samples, [(w.text, w.start, w.end) for w in found])


def row(side: str, said: list[voice_check.Sentence], ear: Ear) -> str:
    """One line of the table; recognized words with 95% intervals. Words that are not found count as wrong."""
    utterances = [sentence.said[side] for sentence in said]
    words = sum(len(timed) for _, timed in utterances)
    aligned = [word for utterance in utterances for word in ear.cut(*utterance)]
    gridded = [word for utterance in utterances for word in codec_check.cut(*utterance)]
    clips = [samples for samples, _ in utterances]
    errors = recognize.word_errors([sentence.text for sentence in said], ear.whole(clips))
    mos = quality.dnsmos(clips[:_JUDGED])
    right = [
        ear.aligned.accuracy(aligned) * len(aligned) / words,
        ear.on_grid.accuracy(gridded) * len(gridded) / words,
        max(1 - errors["word_error_rate"], 0.0),
    ]
    shares = [
        "{:.1f}% ({:.1f} to {:.1f})".format(*(100 * x for x in (p, *metrics.interval(p, [words]))))
        for p in right
    ]
    cells = [_NAMES[side], str(words), *shares, f"{mos['overall']:.2f} / {mos['p808']:.2f}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
