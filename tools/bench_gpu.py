"""Measures the full model on one GPU: training (best throughput, smallest peak memory), and serving.

    python tools/bench_gpu.py                                # both figures, minutes per setting
    python tools/bench_gpu.py --only memory
    python tools/bench_gpu.py --speech-only --rows 4 8 16    # rows as moshi-finetune's
    python tools/bench_gpu.py --only serving                 # milliseconds a frame, 1, 8, 16, 32 slots

The 8.3 B model has random weights; the batch is on the GPU already. Throughput: for bfloat16 and int8 frozen
weights, the batch sizes that are best by estimate are measured, each with the fastest remat policy that fits.
Memory: int8, one speech row, remat full. Each setting runs in a process of its own, so that the peak is that
setting's; it is the peak in use, not what jax's pool reserved, without the CUDA context and the code, which
lie outside the pool.

The limit is 4 FLOPs per frame for each frozen parameter of the backbone's matmuls, at the published peak.
Serving: `mvjax bench --random` for each runtime and precision; its limit is what a frame reads over the
bandwidth measured on the spot (bench_serving.py).
`--cpu` tries the tool itself, with a small `--experiment`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
MOSHI_FINETUNE = 1300.0  # frames/s on one H100: 12k "tokens" a second of 9 a frame, as it publishes
MFU_TARGET, MEMORY_TARGET = 0.5, 24e9
ONE_DEVICE = ("mesh.data=1", "mesh.fsdp=1", "mesh.tensor=1", "train.grad_accum_steps=1")
NO_GPU = 2


PARTS = ("serving", "speed", "memory")


def main() -> int:
    args = arguments()
    if args.setting is not None:
        return serve(args)
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    environment.setdefault("JAX_PLATFORMS", "cuda,cpu")
    if args.cpu:
        environment["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_PLATFORMS"] = "cpu"  # this process estimates; those that it starts take the GPU
    device = ask(args, environment, None)
    if device["platform"] != "gpu" and not args.cpu:
        print("bench_gpu: no GPU is here that jax can use; --cpu tries the tool itself")
        return NO_GPU
    print(f"{device['count']} x {device['kind']}, of which one is used; jax {device['jax']}")
    results = []
    if "serving" in args.only:
        import bench_serving  # beside this file

        results += bench_serving.serving(args.random, device["kind"], cpu=args.cpu)
    if "speed" in args.only:
        for kind in args.frozen:
            results += speed(args, environment, device["kind"], kind)
    if "memory" in args.only:
        words = (*rows_words(1, 0), *kind_words("int8", "full"))
        results.append(report(args, ask(args, environment, words), words, device["kind"]))
        peak = results[-1]["peak_memory"]
        verdict = "meets" if results[-1]["fits"] and peak < MEMORY_TARGET else "misses"
        print(
            f"smallest memory: {peak / 1e9:.2f} GB {verdict} the target of {MEMORY_TARGET / 1e9:.0f} GB"
        )
    if args.json:
        args.json.write_text(json.dumps({"device": device, "results": results}, indent=1) + "\n")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--experiment", type=Path, default=ROOT / "experiments" / "moshika_vis.py", metavar="EXP")
    add("--only", nargs="+", choices=PARTS, default=PARTS, help="some of them")
    add("--frozen", nargs="+", default=["bfloat16", "int8"], help="dtypes (%(default)s)")
    add("--rows", nargs="+", type=int, default=[1, 2, 4, 8, 16], help="speech rows (%(default)s)")
    add("--speech-only", action="store_true", help="no speechless rows beside them")
    add("--remat", nargs="+", help="policies to choose from; default: all")
    add("--tries", type=int, default=3, help="how many of these are measured (%(default)s)")
    add("--steps", type=int, default=10, help="timed steps per setting (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the results here too")
    add("--random", default="7b", choices=("tiny", "mid", "7b"), help="served (%(default)s)")
    add("--cpu", action="store_true", help="run on the CPU")
    add("--setting", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


def speed(
    args: argparse.Namespace, environment: dict[str, str], device: str, frozen: str
) -> list[dict]:
    """Measures the best batch sizes by estimate, each with the fastest remat that fits; prints the best."""
    results = []
    for settings in promising(args, device, frozen):
        for (
            words
        ) in settings:  # the fastest by estimate first; the next if it does not fit after all
            results.append(report(args, ask(args, environment, words), words, device))
            if results[-1]["fits"]:
                break
    ran = [one for one in results if one["fits"]]
    if not ran:
        print(f"{frozen}: no setting fits")
        return results
    best = max(ran, key=lambda one: one["frames_per_second"])
    times = best["frames_per_second"] / MOSHI_FINETUNE
    text = f"best in {frozen}: {best['name']}: {best['frames_per_second']:,.0f} frames/s, {times:.1f} x "
    text += f"moshi-finetune's published {MOSHI_FINETUNE:,.0f} on an H100 in its own configuration"
    if best["mfu"] is not None:
        verdict = "meets" if best["mfu"] >= MFU_TARGET else "misses"
        text += f"; MFU {best['mfu']:.1%} {verdict} the target of {MFU_TARGET:.0%}"
    print(text, flush=True)
    return results


def promising(args: argparse.Namespace, device: str, frozen: str) -> list[list[tuple[str, ...]]]:
    """Returns `--set` words of what fits by estimate: by batch size, then by remat, the fastest first."""
    from mvjax.plan import estimate, search
    from mvjax.train import chips, flops, load

    chip = chips.of_device(device) or chips.CHIPS["h100"]  # decides the order only
    topology, run = chips.topology(f"{chip.name}:1"), experiment(args)
    ratio = 0 if args.speech_only else run.data.speechless_rows / run.data.speech_rows
    remats = args.remat or search.REMATS
    by_rows, params = [], load.abstract_params(override(run, kind_words(frozen, "full")))
    for rows in args.rows:
        estimates = []
        for remat in remats:
            words = (*rows_words(rows, round(rows * ratio)), *kind_words(frozen, remat))
            one = estimate.estimated_plan(override(run, words), topology, params=params)
            if one.fits and one.times:
                estimates.append((one.times.expected / flops.frames_per_step(one.run.data), words))
        if estimates:
            by_rows.append(sorted(estimates))
    return [[words for _, words in one] for one in sorted(by_rows)[: args.tries]]


def report(args: argparse.Namespace, measured: dict, words: tuple[str, ...], device: str) -> dict:
    """Prints one setting; returns what was measured, with throughput and MFU."""
    from mvjax.train import chips, flops

    run = override(experiment(args), words)
    data, chip = run.data, chips.of_device(device)
    name = f"{run.train.frozen_dtype} frozen, {data.speech_rows} x {data.speech_frames} frames"
    if data.speechless_rows:
        name += f" + {data.speechless_rows} x {data.speechless_tokens} tokens"
    name += f", remat {run.train.remat}"
    result = measured | {"name": name, "words": words}
    result |= {"frames_per_second": None, "mfu": None, "share_of_limit": None}
    memory = f"{measured['peak_memory'] / 1e9:.2f} GB by the {measured['memory_source']}"
    if not measured["fits"]:
        print(f"{name}: does not fit ({memory}): {measured['error']}", flush=True)
        return result
    seconds = measured["step_seconds"]
    rate = result["frames_per_second"] = flops.frames_per_step(data) / seconds
    text = f"{name}: {seconds * 1e3:.1f} ms, {rate:,.0f} frames/s"
    if chip is not None:
        needed, limit = flops.step_flops(run).model_flops, chip.peak_flops / limit_flops(run)
        result["mfu"] = needed / (seconds * chip.peak_flops)
        result["share_of_limit"] = rate / limit
        text += f", MFU {result['mfu']:.1%}, {rate / limit:.1%} of the limit of "
        text += f"{limit:,.0f} frames/s"
    print(f"{text}; {memory}; compiled in {measured['compile_seconds']:.0f} s", flush=True)
    return result


def limit_flops(run) -> float:
    """Returns 4 FLOPs for each frozen parameter of the backbone's matmuls, which every frame goes through."""
    from mvjax import tree
    from mvjax.train import load

    frozen = tree.flatten(load.shapes(run).frozen)
    kernels = [path for path in frozen if re.fullmatch(r"backbone/.*/kernel", path)]
    return 4.0 * sum(frozen[path].size for path in kernels)


def rows_words(speech: int, speechless: int) -> tuple[str, ...]:
    return (f"data.speech_rows={speech}", f"data.speechless_rows={speechless}", *ONE_DEVICE)


def kind_words(frozen: str, remat: str) -> tuple[str, ...]:
    return (f'train.frozen_dtype="{frozen}"', f'train.remat="{remat}"')


def experiment(args: argparse.Namespace):
    from mvjax.config import text as config_text

    return config_text.load_experiment(args.experiment)


def override(run, words: tuple[str, ...]):
    from mvjax.config import text as config_text

    return config_text.override(run, list(words))


def ask(
    args: argparse.Namespace, environment: dict[str, str], words: tuple[str, ...] | None
) -> dict:
    """Returns what a process of its own measures of a setting, or the devices it sees (None)."""
    command = [sys.executable, __file__, "--experiment", str(args.experiment)]
    command += ["--steps", str(args.steps), "--setting", *(words or ())]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise SystemExit(f"bench_gpu: {' '.join(words or ('looking',))}: failed; see above")
    return json.loads(lines[-1])


def serve(args: argparse.Namespace) -> int:
    """Prints a JSON line: the measured setting, or, without one, the devices."""
    import jax

    device = jax.devices()[0]
    if not args.setting:
        about = {"platform": device.platform, "kind": device.device_kind}
        print(json.dumps(about | {"count": jax.device_count(), "jax": jax.__version__}))
        return 0
    from mvjax.plan import measure

    run = override(experiment(args), tuple(args.setting))
    measured = measure.measure(run, [device], steps=args.steps)
    print(json.dumps(dataclasses.asdict(measured)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
