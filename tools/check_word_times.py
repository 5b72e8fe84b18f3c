"""Word times of a synthesizer against PocketSphinx's forced alignment of the same samples.

    python tools/check_word_times.py                   # hibari; --tts espeak: eSpeak NG; 20 seconds

Half of the sentences are the digits world's, half describe pictures, with commas. PocketSphinx gets the text
and the audio and says where each word starts, in steps of 10 ms; its own error is part of what is printed.
"""

from __future__ import annotations

import argparse

import numpy as np

from mvjax.dialogues import hibari_tts, tts
from mvjax.digits import talk, users
from mvjax.eval.health import recognize

_MOST = 3000  # sentences: half are the digits world's, which has about 1,800
_WHAT = (
    "a woman", "an old man", "the little boy", "a black dog", "the brown horse", "a street musician",
    "the tall waiter", "a young couple", "the fisherman", "an orange cat", "a group of children",
    "the red bicycle", "a yellow school bus", "the wooden table", "a bowl of green apples",
)  # fmt: skip
_DOES = (
    "stands", "is waiting", "is resting", "can be seen", "appears", "sits quietly", "has stopped",
)  # fmt: skip
_WHERE = (
    "near the window", "under a large umbrella", "in front of the bakery", "beside a stone bridge",
    "on the left side of the picture", "between two parked cars", "at the edge of the water",
    "behind a white fence", "in the upper right corner", "next to a pile of books",
)  # fmt: skip
_MORE = (
    "and the sky is getting dark", "but nobody is looking", "while it is raining",
    "so the shadows are long", "and everything else is blurred", "with mountains in the distance",
    "although the light is poor", "and a small sign says closed",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tts", choices=("hibari", "espeak"), default="hibari")
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not 1 <= args.sentences <= _MOST or args.seed < 0:
        parser.error(
            f"expected 1 to {_MOST} --sentences and a --seed of 0 or more, got {args.sentences}, {args.seed}"
        )
    voices = hibari_tts.Hibari() if args.tts == "hibari" else tts.Espeak()
    starts, ends = errors(voices, sentences(args.sentences, args.seed))
    for name, found in (("start", starts), ("end", ends)):
        size = 1000 * np.abs(found)
        print(
            f"{args.tts}: {len(size)} words of {args.sentences} sentences, {name}: median error"
            f" {np.median(size):.0f} ms, 95% within {np.quantile(size, 0.95):.0f}, largest"
            f" {size.max():.0f}; on average {1000 * np.mean(found):+.0f}"
        )


def sentences(count: int, seed: int) -> list[str]:
    """Distinct sentences of words in PocketSphinx's dictionary, without numbers in digits."""
    rng = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        if len(found) % 2:
            parts = [str(rng.choice(part)) for part in (_WHAT, _DOES, _WHERE, _MORE)]
            found[f"{' '.join(parts[:3])}, {parts[3]}."] = None
            continue
        turns = talk.visual_dialogue(talk.random_facts(rng), rng).turns
        fresh = [turn.text for turn in turns if turn.text not in found]
        found |= {text: None for text in fresh[:1]}
    return list(found)


def errors(voices: tts.Tts, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Seconds by which the synthesizer's starts and ends of words are later than PocketSphinx's."""
    align = recognize.aligner(users.PRONUNCIATIONS)
    starts, ends = [], []
    for n, text in enumerate(texts):
        (said,) = voices.speak([tts.TtsLine(text, voices.assistant, n)])
        for ours, theirs in zip(said.words, align(said.samples, text), strict=True):
            starts.append(ours.start - theirs.start)
            ends.append(ours.end - theirs.end)
    return np.array(starts), np.array(ends)


if __name__ == "__main__":
    main()
