"""Latency of a frame on this CPU: our PyTorch, JAX and MLX runtimes, upstream's two, and the limit of memory.

    python tools/bench_frame.py --moshivis DIR
    python tools/bench_frame.py --sides torch jax --folder mid             # ours; keeps the exports

All sides run one exported model (width 1024, 8 layers, depth transformer of width 512 and 4 layers, 1,024
image tokens, random weights, float32) and hear the same codes, with an image unless `--blind`. Each side has
a process of its own, and they take turns, so that other load on the machine slows all of them. All must
choose the same tokens by greedy decoding in the first frames before anything is timed. Memory is read by all
threads, in the same turns: the limit of a frame is the time that its weights, the KV cache so far and the
image take.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import frame_sides

sys.path.insert(0, str(Path(__file__).parents[1]))
OURS, UPSTREAM = ("torch", "jax", "mlx"), ("kyuteye_pt", "kyuteye_mlx")
MEMORY = "memory"
AGREE = 8  # frames whose tokens are compared
TURN = 6  # frames a turn; the first is not timed: page faults of memory that was idle slow it down


def main() -> None:
    args = arguments()
    if args.side:
        serve(args)
        return
    sides = [s for s in args.sides if args.moshivis or s not in UPSTREAM]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "NO_TORCH_COMPILE": "1"}
    if args.moshivis:
        environment["MVJAX_MOSHIVIS"] = str(args.moshivis.resolve())
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        frame_sides.write(folder, args.context)
        workers = {MEMORY: Worker(MEMORY, 1, args, folder, environment)}
        for side in sides:
            for slots in args.slots if side in OURS else (1,):
                name = side if slots == 1 else f"{side} x {slots}"
                workers[name] = Worker(side, slots, args, folder, environment)
        first = {name: worker.first for name, worker in workers.items() if name != MEMORY}
        agree(first, blind=args.blind)
        times = {name: [] for name in workers}
        for _ in range(args.rounds):
            for name, worker in workers.items():
                times[name] += worker.ask()
    report(times, frame_sides.sizes(args), args)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--moshivis", type=Path, metavar="DIR", help="checkout; without: ours only")
    add("--sides", nargs="+", choices=(*OURS, *UPSTREAM), default=[*OURS, *UPSTREAM])
    add("--slots", type=lambda text: [int(n) for n in text.split(",")], default=[1], metavar="N,N",
        help="conversations that step together, of ours (%(default)s)")  # fmt: skip
    add("--rounds", type=int, default=12, help="turns of each side (%(default)s)")
    add("--blind", action="store_true", help="no image")
    add("--context", type=int, default=3000, help="frames of the attention window (%(default)s)")
    add("--start", type=int, default=0, metavar="FRAME",
        help="frames before the first that is timed (%(default)s)")  # fmt: skip
    add("--folder", type=Path, metavar="DIR", help="write the exports here, and use them again")
    add("--json", type=Path, metavar="FILE", help="write the times here too")
    add("--side", help=argparse.SUPPRESS)
    add("--size", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


class Worker:
    """One side in a process of its own; `first`: its tokens of the first frames."""

    def __init__(self, side, slots, args, folder: Path, environment: dict[str, str]) -> None:
        command = [sys.executable, __file__, "--side", side, "--size", str(slots)]
        command += ["--folder", str(folder), "--start", str(args.start)]
        command += ["--context", str(args.context), *(["--blind"] if args.blind else [])]
        if side == MEMORY:
            environment = environment | {"OPENBLAS_NUM_THREADS": "1"}  # its threads are its own
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.first = self._answer()

    def ask(self) -> list[float]:
        """Returns the seconds of each frame of one turn."""
        assert self._process.stdin is not None
        self._process.stdin.write("turn\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self):
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("BENCH "):
                return json.loads(line.removeprefix("BENCH "))
        raise SystemExit("bench_frame: a side ended early; its error is above")


def serve(args: argparse.Namespace) -> None:
    """Builds one side, says its first tokens, then answers each line of stdin with the times of a turn."""
    step = frame_sides.SIDES[args.side](args)
    first = [step() for _ in range(AGREE)]
    for _ in range(args.start - AGREE):
        step()
    print("BENCH", json.dumps(first), flush=True)
    for _ in sys.stdin:
        step()
        seconds = []
        for _ in range(TURN - 1):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        print("BENCH", json.dumps(seconds), flush=True)


def agree(first: dict[str, list], *, blind: bool) -> None:
    """Stops unless all sides chose the same tokens."""
    (name, wanted), *others = first.items()
    for other, found in others:
        if blind and other == "kyuteye_mlx":
            continue  # it adds norm_cross(x) where there is no image: reference 5.4
        if found != wanted:
            raise SystemExit(f"bench_frame: {other} says {found}, {name} says {wanted}")
    print(f"{', '.join(first)}: the same {AGREE} frames of tokens by greedy decoding")


def report(times: dict[str, list[float]], size: dict[str, int], args: argparse.Namespace) -> None:
    """Prints the table: medians, share of the limit, ratios."""
    weights = statistics.median(times[MEMORY])
    rate = size["weights"] / weights
    frames = args.start + args.rounds * TURN // 2
    past = size["frame"] * min(frames, args.context)
    best = size["weights"] / min(times[MEMORY])
    print(
        f"{os.cpu_count()} threads read {rate / 1e9:.1f} GB/s (at best {best / 1e9:.1f}): a frame's"
    )
    print(
        f"weights, {size['weights'] / 1e6:.0f} MB, in {weights * 1e3:.1f} ms; KV cache so far",
        end=" ",
    )
    print(f"{past / 1e6:.0f} MB, image {size['image'] / 1e6:.0f} MB")
    medians = {name: statistics.median(t) for name, t in times.items() if name != MEMORY}
    print(f"{'side':16}{'median ms':>10}{'best':>8}{'x weights':>11}{'% of limit':>12}  ratios")
    for name, median in medians.items():
        slots = int(name.partition(" x ")[2] or 1)
        limit = (size["weights"] + slots * (past + size["image"])) / rate
        line = f"{name:16}{median * 1e3:10.1f}{min(times[name]) * 1e3:8.1f}"
        line += f"{median / weights:11.2f}{limit / median:12.0%}  "
        ratios = [f"{medians[u] / median:.2f} x as fast as {u}" for u in UPSTREAM if u in medians]
        if slots > 1 and name.partition(" x ")[0] in medians:
            alone = medians[name.partition(" x ")[0]]
            ratios = [f"{slots * alone / median:.2f} x the frames of one slot"]
        print(line + ("" if name in UPSTREAM else ", ".join(ratios)))
    if args.json:
        kept = {
            "times": times,
            "bytes": size,
            "arguments": {k: str(v) for k, v in vars(args).items()},
        }
        args.json.write_text(
            json.dumps(
                dataclasses.asdict(frame_sides.make_config(args.context)) | kept, default=str
            )
        )


if __name__ == "__main__":
    main()
