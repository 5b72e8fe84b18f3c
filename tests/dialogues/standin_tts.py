"""A stand-in for a text-to-speech program: every word is 0.25 s of a tone, at 16 kHz, after 0.1 s of silence.

standin_tts.py [--say TEXT] [--voice HERTZ] --out WAV [--times JSON] [--wrong | --fail]
"""

import argparse
import json
import sys
import wave

import numpy as np

RATE, LEAD, WORD = 16_000, 0.1, 0.25


def main():
    parser = argparse.ArgumentParser()
    for name in ("--say", "--voice", "--out", "--times"):
        parser.add_argument(name)
    parser.add_argument("--wrong", action="store_true")
    parser.add_argument("--fail", action="store_true")
    args = parser.parse_args()
    if args.fail:
        sys.exit("no voice today")
    words = (args.say or sys.stdin.read()).split()
    t = np.arange(round(len(words) * WORD * RATE)) / RATE
    tone = np.sin(2 * np.pi * float(args.voice or 200) * t)
    samples = np.concatenate([np.zeros(round(LEAD * RATE)), tone]) * 20_000
    with wave.open(args.out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.astype("<i2").tobytes())
    if args.times:
        times = [[w, LEAD + n * WORD, LEAD + (n + 1) * WORD] for n, w in enumerate(words)]
        with open(args.times, "w") as file:
            json.dump(times[1:] if args.wrong else times, file)


main()
