"""Step time of training on this CPU: ours, upstream's modules in PyTorch, and a PyTorch twin of ours.

    python tools/bench_step.py --moshivis DIR

All sides train one model (width 1024, 8 layers, 1,024 image tokens, float32) on one batch (2 text rows of
128 frames) from the same weights. Each side has a process of its own, and they take turns, so that other load
on the machine slows all of them. Loss and gradient norm of the first step must agree before it times them.
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

ROWS, FRAMES = 2, 128
SIDES = ("ours", "upstream", "upstream compiled", "twin", "twin compiled")
# Steps per turn; the first is not timed: page faults of memory that was idle while others ran slow it down.
TURN = 4
TOLERANCE = 1e-3  # relative, of loss and gradient norm


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--moshivis", type=Path, metavar="DIR", help="checkout; without: the twin only"
    )
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side (%(default)s)")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        serve(args.side, args.folder)
        return
    sides = [side for side in SIDES if args.moshivis or not side.startswith("upstream")]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "NO_TORCH_COMPILE": "1"}
    if args.moshivis:
        environment["MVJAX_MOSHIVIS"] = str(args.moshivis.resolve())
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        workers = {side: Worker(side, folder, environment) for side in sides}
        seconds = {side: [] for side in sides}
        for _ in range(args.rounds):
            for side, worker in workers.items():
                seconds[side].append(worker.ask()["seconds"])
        peak = workers["ours"].ask("peak")["flops"]
    report(seconds, {side: worker.first for side, worker in workers.items()}, peak)


def make_config():
    """The mid-size model; all sides get the features of the image encoder, which is small, as input."""
    from mvjax import gates
    from mvjax.config import schema

    model = schema.ModelConfig(
        backbone=schema.BackboneConfig(width=1024, layers=8, heads=8, hidden=2816),
        depformer=schema.DepformerConfig(width=64, layers=1, heads=2, hidden=176),
        siglip=schema.SiglipConfig(width=64, layers=1, heads=4, hidden=128),
        cross_attention=schema.CrossAttentionConfig(gate=gates.Conditional(hidden=128)),
        stream=schema.StreamConfig(absent_start="nothing"),  # as the batch of the PyTorch sides
    )
    return schema.Config(
        frozen=schema.FrozenFiles("", "", "", ""),
        model=model,
        data=schema.DataConfig(
            speech_rows=0,
            speechless_rows=ROWS,
            speechless_tokens=FRAMES,
            p_concat=0.0,
            features=True,
        ),
        loss=schema.LossConfig(text_padding_weight=1.0),
        optim=schema.OptimConfig(warmup_steps=0, final_lr_fraction=1.0),
        train=schema.TrainConfig(steps=1000, remat="frozen"),
    )


def write(folder: Path) -> None:
    """Writes random parameters, scaled so that matmuls keep unit variance, and the batch, for all sides."""
    import jax
    import numpy as np

    from mvjax import tree
    from mvjax.nn import model as model_lib

    run = make_config()
    shapes = jax.eval_shape(model_lib.VisionSpeech(run.model).init, jax.random.key(0))["params"]
    rng = np.random.default_rng(0)
    flat = {}
    for path, leaf in tree.flatten(shapes).items():
        fan_in = (
            np.prod(leaf.shape[:-1][-2:]) if path.endswith("out/kernel") else leaf.shape[-2:][0]
        )
        scale = 0.0 if path.endswith("bias") else 1.0 if path.endswith("scale") else fan_in**-0.5
        noise = rng.standard_normal(leaf.shape, np.float32)
        flat[path] = (
            noise * 0.1 + 1 if path.endswith("scale") else noise * np.float32(min(scale, 0.05))
        )
    np.savez(folder / "params.npz", **flat)
    side = run.model.siglip.image_size
    images = rng.integers(0, 256, (ROWS, side, side, 3), np.uint8)
    targets = rng.integers(4, run.model.text_vocab, (ROWS, FRAMES), np.int32)
    inputs = np.concatenate(
        [np.full((ROWS, 1), run.model.text_vocab, np.int32), targets[:, :-1]], 1
    )
    features = jax.jit(_encode)(tree.unflatten(flat), images)
    batch = {"targets": targets, "inputs": inputs, "features": np.asarray(features)}
    np.savez(folder / "batch.npz", **batch)


def _encode(params, images):
    from mvjax.nn import model as model_lib
    from mvjax.train import gradients

    model = model_lib.VisionSpeech(make_config().model)
    return model.apply({"params": params}, gradients.pixels(images), method="encode_images")


class Worker:
    """One side in a process of its own; `first` is its loss and gradient norm before training."""

    def __init__(self, side: str, folder: str, environment: dict[str, str]) -> None:
        command = [sys.executable, __file__, "--side", side, "--folder", folder]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.first = self._answer()

    def ask(self, what: str = "step") -> dict:
        """Sends one request and returns the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit("bench_step: a side ended early; its error is above")


def serve(side: str, folder: Path) -> None:
    """Builds one side, trains two steps (the first compiles), then answers each line of stdin."""
    step = ours(folder) if side == "ours" else in_torch(side, folder)
    loss, norm = step()
    step()
    print(json.dumps({"loss": loss, "norm": norm}), flush=True)
    for request in sys.stdin:
        if request.strip() == "peak":
            print(json.dumps({"flops": matmul_flops()}), flush=True)
            continue
        step()
        start = time.perf_counter()
        for _ in range(TURN - 1):
            step()
        seconds = (time.perf_counter() - start) / (TURN - 1)
        print(json.dumps({"seconds": seconds}), flush=True)


def ours(folder: Path):
    """Returns a function that runs the step of `mvjax train` and returns (loss, gradient norm)."""
    import jax
    import numpy as np

    from mvjax import tree, types
    from mvjax.config import schema
    from mvjax.data import batch_spec, collate
    from mvjax.train import load, sharding
    from mvjax.train import step as step_lib

    run = make_config()
    mesh = sharding.make_mesh(schema.MeshConfig())
    with np.load(folder / "params.npz") as file:
        params = tree.unflatten({path: jax.numpy.asarray(file[path]) for path in file})
    parts = load.ModelParams(*tree.partition(params, run.train.trained))
    state = step_lib.new_state(run, mesh, parts.adapters)
    stacks = jax.device_put(parts.frozen, sharding.shardings(parts.frozen, mesh))
    frozen = step_lib.unstacked(run, mesh, stacks)
    with np.load(folder / "batch.npz") as file:
        codes = np.full((ROWS, run.model.codebooks, FRAMES), types.ZERO_TOKEN, np.int32)
        codes[:, 0] = file["targets"]
        has_image = np.ones(ROWS, bool)
        features = file["features"]
    text = types.Part(codes, np.ones((ROWS, FRAMES), bool), features, has_image)
    speech = collate.stack([], rows=0, spec=batch_spec.batch_spec(run).speech)
    batch = jax.device_put(types.Batch(speech, text), sharding.rows(mesh))
    train_step = step_lib.make(run, mesh, adapters=state.adapters, frozen=frozen)

    def step() -> tuple[float, float]:
        nonlocal state
        state, metrics = train_step(state, frozen, batch)
        return float(metrics["loss"]), float(metrics["grad_norm"])

    return step


def in_torch(side: str, folder: Path):
    """Returns a function that runs one step in PyTorch and returns (loss, gradient norm)."""
    import numpy as np
    import torch_step
    from safetensors import torch as safetensors_torch

    from mvjax import tree
    from mvjax.config import upstream
    from mvjax.export import weight_files

    run = make_config()
    model = dataclasses.replace(
        run.model, depformer=upstream.imitate(run.model, "kyuteye_pt").depformer
    )
    with np.load(folder / "params.npz") as file:
        params = tree.unflatten(dict(file))
    with np.load(folder / "batch.npz") as file:
        batch = {name: file[name] for name in ("inputs", "targets", "features")}
    batch["inputs"], batch["targets"] = (batch[n].astype(np.int64) for n in ("inputs", "targets"))
    with tempfile.TemporaryDirectory() as scratch:
        if side.startswith("upstream"):
            built = torch_step.Upstream(Path(scratch), model, params)
        else:
            path = Path(scratch) / "model.safetensors"
            weight_files.save_exported(path, params, model, "torch")
            built = torch_step.Twin(model, safetensors_torch.load_file(path))
    trainer = torch_step.Trainer(built, batch, run.optim, compiled=side.endswith("compiled"))
    return trainer.step


def matmul_flops() -> float:
    """Returns the FLOP/s of XLA's float32 matmul of 2048 x 2048 matrices, the best of ten."""
    import jax

    x = jax.random.normal(jax.random.key(0), (2048, 2048))
    matmul = jax.jit(lambda x: x @ x)
    matmul(x).block_until_ready()
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        matmul(x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * 2048**3 / best


def report(seconds: dict[str, list[float]], first: dict[str, dict], peak: float) -> None:
    """Prints the table; stops if the sides do not compute the same."""
    from mvjax.train import flops as flops_lib

    for side, numbers in first.items():
        for name, value in numbers.items():
            wanted = first["ours"][name]
            assert abs(value - wanted) <= TOLERANCE * wanted, (side, name, value, wanted)
    print(
        f"first loss {first['ours']['loss']:.5f}, gradient norm {first['ours']['norm']:.5f}: all equal"
    )
    medians = {side: statistics.median(times) for side, times in seconds.items()}
    for side, times in seconds.items():
        share = medians[side] / medians["ours"]
        print(f"{side:18} {medians[side]:.3f} s (from {min(times):.3f}), {share:.2f} x ours")
    flops = flops_lib.step_flops(make_config()).model_flops
    rate = flops / medians["ours"]
    print(
        f"{flops / 1e9:.0f} GFLOP per step: {rate / 1e9:.0f} GFLOP/s, {rate / peak:.0%} of XLA's "
        f"{peak / 1e9:.0f} in a float32 matmul of 2048 x 2048"
    )


if __name__ == "__main__":
    main()
