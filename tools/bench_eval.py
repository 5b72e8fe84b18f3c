"""Throughput of evaluation: on this machine with the tiny model, or of a full-size model by its compiler.

    python tools/bench_eval.py [RUN] --prompt text --prompt audio --batch-size 1 --batch-size 64
    python tools/bench_eval.py --topology v5e:4x4 --experiment experiments/moshika_vis.py --tensor 4 --rows 64

The first asks the digits benchmark of RUN, or of the tiny model with random adapters, and counts
conversations a second and CPU time of whole evaluations, journal included, without compilation. The second
compiles whole spoken conversations for a TPU slice that need not be here and states their time at published
peak rates: an estimate from the compiler's program, not a measurement.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path


def main() -> None:
    """Runs one of the two."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arg = parser.add_argument
    arg("run", nargs="?", type=Path, help="a trained run of the digits world")
    arg("--prompt", action="append", choices=("text", "audio"))
    arg("--batch-size", action="append", type=int)
    arg("--conversations", type=int, default=192, help="to measure (%(default)s)")
    arg("--topology", help="a TPU slice, such as v5e:4x4")
    arg("--experiment", type=Path, default=Path("experiments/moshika_vis.py"))
    arg("--tensor", type=int, default=4, help="devices that share each matmul (%(default)s)")
    arg("--rows", type=int, default=64, help="conversations at once (%(default)s)")
    arg("--frames", type=int, default=256, help="of a conversation (%(default)s: 20.5 s)")
    args = parser.parse_args()
    if args.topology:
        _estimate(args)
    else:
        _measure(args)


def _measure(args: argparse.Namespace) -> None:
    import dataclasses
    import tempfile

    from mvjax.digits import benchmark
    from mvjax.eval import journal, runner

    model, digits = _model(args.run), benchmark.DigitsBenchmark()
    print(
        "| prompt | batch size | conversations/s | CPU seconds a conversation |\n|---|---|---|---|"
    )
    for mode in args.prompt or ("text", "audio"):
        samples = []
        for sample in digits.samples(args.conversations, 1):
            assert sample.speech is not None
            clip = sample.speech()  # its synthesis is not measured
            samples.append(dataclasses.replace(sample, speech=lambda clip=clip: clip))
        for size in args.batch_size or (1, 64):
            with tempfile.TemporaryDirectory() as folder:
                for _ in range(2):  # the first compiles
                    began, cpu = time.perf_counter(), time.process_time()
                    with journal.Journal(Path(folder) / "samples.jsonl", {}, fresh=True) as log:
                        runner.evaluate(model, digits, samples, [mode], batch_size=size, log=log)
                    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
            count = len(samples)
            print(f"| {mode} | {size} | {count / seconds:.2f} | {cpu / count:.4f} |", flush=True)


def _model(run: Path | None):
    import jax

    from mvjax import tree
    from mvjax.digits import recipe
    from mvjax.eval import model as eval_model
    from mvjax.train import load, sharding

    if run is not None:
        trained = load.trained(run)
        return eval_model.load(trained.config, trained.params)
    config = recipe.digits()
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    return eval_model.load(config, tree.merge(*load.weights(config, mesh)))


def _estimate(args: argparse.Namespace) -> None:
    import dataclasses

    import jax
    import jax.numpy as jnp

    from mvjax import tree
    from mvjax.config import schema, text
    from mvjax.nn import model as model_lib
    from mvjax.plan import compiled_step, from_compiler, hlo, hlo_cost
    from mvjax.runtimes.jax import generate
    from mvjax.train import chips, load, sharding

    run = text.load_experiment(args.experiment)
    run = dataclasses.replace(run, mesh=schema.MeshConfig(data=-1, tensor=args.tensor))
    topology = chips.topology(args.topology)
    mesh = compiled_step.topology_mesh(run, topology)
    params = tree.merge(*load.shapes(run))
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), params)
    params = sharding.with_shardings(params, sharding.shardings(params, mesh))
    model, size = model_lib.VisionSpeech(run.model), run.model.siglip.image_size
    rows = sharding.rows(mesh)

    def struct(dtype, *shape: int):
        return jax.ShapeDtypeStruct((args.rows, *shape), dtype, sharding=rows)

    def converse(params, pixels, codes, text_ids, audio_codes):
        kv = generate.image_kv(model, params, pixels)
        out = generate.generate(
            model, params, codes, kv, forced_text=text_ids, forced_audio=audio_codes,
            with_text_logits=False,
        )  # fmt: skip
        return out.text_ids, out.audio_codes, out.layer_gates

    users = run.model.codebooks - 1 - run.model.codebooks_out
    inputs = (
        struct(jnp.float32, size, size, 3),
        struct(jnp.int32, users, args.frames),
        struct(jnp.int32, args.frames),
        struct(jnp.int32, run.model.codebooks_out, args.frames),
    )
    began = time.monotonic()
    lowered = jax.jit(converse).trace(params, *inputs).lower(lowering_platforms=("tpu",))
    program = lowered.compile()
    print(f"compiled in {time.monotonic() - began:.0f} s for {sharding.describe(mesh)}")
    cost = hlo_cost.program_cost(hlo.parse(program.as_text()), devices=topology.devices)
    times = from_compiler.step_times(cost, topology, mesh)
    gigabytes = compiled_step.peak_memory(program) / 1e9
    print(f"{gigabytes:.2f} GB of {topology.chip.hbm_bytes / 1e9:.2f} GB a device")
    print(f"seconds at peak rates: {times}")
    frames = args.frames + max(run.model.delays)
    for name, seconds in (
        ("bound by HBM alone", times.hbm),
        ("no overlap of matmuls, HBM and collectives", times.no_overlap),
    ):
        print(
            f"{name}: {1000 * seconds / frames:.2f} ms a frame of {args.rows} conversations,"
            f" {args.rows * frames / seconds:.0f} frames/s, {args.rows / seconds:.2f} conversations/s"
        )


if __name__ == "__main__":
    main()
