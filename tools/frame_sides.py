"""The sides of `bench_frame.py`: the mid-size model, and what steps it once in each runtime."""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAYOUTS = ("torch", "mlx")


def make_config(context: int):
    """The mid-size model; upstream's MLX has vocabularies and codebooks in its source."""
    from mvjax import gates
    from mvjax.config import schema

    return schema.ModelConfig(
        backbone=schema.BackboneConfig(width=1024, layers=8, heads=8, hidden=2816, context=context),
        depformer=schema.DepformerConfig(width=512, layers=4, heads=8, hidden=1408),
        siglip=schema.SiglipConfig(width=64, layers=1, heads=4, hidden=128),
        cross_attention=schema.CrossAttentionConfig(
            gate=gates.Conditional(hidden=128), image_norm="mean_square"
        ),
    )


def write(folder: Path, context: int) -> None:
    """Exports random weights, scaled so that matmuls keep unit variance, to the layouts of both runtimes."""
    import numpy as np

    from mvjax import tree
    from mvjax.config import schema
    from mvjax.export import folder as export_folder
    from mvjax.weights import kyutai, rules

    model = make_config(context)
    if all((folder / layout / "siglip448.config").is_file() for layout in LAYOUTS):
        return
    rng = np.random.default_rng(0)
    flat = {}
    for path, shape in rules.leaf_shapes(kyutai.vis_rules(model), kyutai.sizes(model)).items():
        x = rng.standard_normal(shape, np.float32)
        if path.endswith("scale"):
            x = 1 + x * np.float32(0.1)
        elif path.endswith("bias"):
            x *= 0
        elif "embedding" in path:
            x *= np.float32(0.2)
        else:
            fan_in = np.prod(shape[:-1][-2:]) if path.endswith("out/kernel") else shape[-2]
            x *= np.float32(fan_in**-0.5)
        flat[path] = x
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "none").write_bytes(b"")
    none = str(folder / "none")
    run = schema.Config(frozen=schema.FrozenFiles("", "", none, none), model=model)
    for layout in LAYOUTS:
        export_folder.export(tree.unflatten(flat), run, layout, folder / layout)


def pixels():
    import numpy as np

    side = make_config(1).siglip.image_size
    return np.random.default_rng(1).uniform(-1, 1, (1, side, side, 3)).astype(np.float32)


def user_codes():
    """The same in every frame, so that upstream's PyTorch, which takes them a frame early, hears the same."""
    import numpy as np

    return np.random.default_rng(2).integers(0, 2048, 8).astype(np.int32)


def memory(args: argparse.Namespace):
    """Returns what reads as many bytes as a frame's weights, with all threads."""
    import numpy as np

    threads = os.cpu_count() or 1
    block = sizes(args)["weights"] // 4 // threads
    parts = [np.ones(block, np.float32) for _ in range(threads)]
    pool = concurrent.futures.ThreadPoolExecutor(threads)

    def step() -> None:
        list(pool.map(lambda x: np.dot(x, x), parts))

    return step


def ours(args: argparse.Namespace):
    """Returns what steps our runtime of the side once, all its slots, and returns the tokens of one."""
    from mvjax.runtimes import interface, loading

    if args.side == "jax":
        import numpy as np

        from mvjax.export import weight_files
        from mvjax.runtimes.jax import model as jax_model

        config = make_config(args.context)
        file = args.folder / "torch" / "model.safetensors"
        params = weight_files.load_exported(file, config, "torch", dtype=np.float32)
        model = jax_model.JaxModel(config, params)
    else:
        model = loading.open_folder(args.folder / args.side)
    image = None if args.blind else model.encode_image(pixels())
    codes = user_codes()
    if args.size == 1:
        session = model.session(image)
        return lambda: tokens(session.step(codes))
    slots = model.slots(args.size)
    joined = [slots.join(image) for _ in range(args.size)]
    turns = {slot: interface.Turn(codes) for slot in joined}
    return lambda: tokens(slots.step(turns)[joined[-1]])


def tokens(frame) -> list[int]:
    """Text token and the codes of a frame, but for those that belong to no frame."""
    codes = frame.audio_codes
    return [frame.text_token, *([-1] * 8 if codes is None else codes.tolist())]


def kyuteye_pt(args: argparse.Namespace):
    """Returns what steps upstream's PyTorch once."""
    import torch

    params, config = parity(args, "torch")
    import test_kyuteye_pt as test

    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        gen, embedder = test.build(config, params, Path(scratch))
        del params
        seen = embedder(torch.tensor(pixels()).permute(0, 3, 1, 2))["cross_attention_src"]
        source = None if args.blind else gen.precompte_ca_kv(seen)
    codes = torch.tensor(user_codes()).long()[None, :, None]
    gen.streaming_forever()

    @torch.no_grad()
    def step() -> list[int]:
        out, _ = gen.step(codes, ca_src=source)
        state = gen._streaming_state  # what it returns has the text of the frame before
        text = int(state["cache"][0, 0, state["offset"] % 3])
        return [text, *([-1] * 8 if out is None else out[0, 1:, 0].tolist())]

    return step


def kyuteye_mlx(args: argparse.Namespace):
    """Returns what steps upstream's MLX once; it keeps image keys and values in float32 here."""
    import mlx.core as mx
    import pytest

    params, config = parity(args, "mlx")
    import test_kyuteye_mlx as test

    patch = pytest.MonkeyPatch()
    test.unrounded(patch)
    with tempfile.TemporaryDirectory() as scratch:
        model, embedder = test.build(config, params, Path(scratch), patch)
        mx.eval(model.parameters(), embedder.parameters())  # before the files are gone
        del params
        os.chdir(args.folder)
    features = None
    if not args.blind:
        levels = (pixels()[0] + 1) * 127.5  # as its wrapper normalizes
        features = embedder(mx.array(levels))
        mx.eval(features)
    greedy = lambda logits: (mx.argmax(logits, axis=-1), logits)  # noqa: E731
    gen = test.MLX.models.LmGen(model, max_steps=100_000, text_sampler=greedy, audio_sampler=greedy)
    gen.reset()
    import numpy as np

    codes = mx.array(user_codes())[None]

    def step() -> list[int]:
        text = gen.step(codes, features).item()
        heard = gen.last_audio_tokens()
        return [text, *([-1] * 8 if heard is None else np.array(heard)[0].tolist())]

    return step


def parity(args: argparse.Namespace, target: str):
    """Makes the tests that run upstream's code importable; returns (parameters, config)."""
    import numpy as np

    from mvjax.export import weight_files

    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "parity")]
    config = make_config(args.context)
    file = args.folder / target / "model.safetensors"
    return weight_files.load_exported(file, config, target, dtype=np.float32), config


def sizes(args: argparse.Namespace) -> dict[str, int]:
    """Bytes in float32 that one frame reads: weights once, keys and values of a past frame, of the image."""
    c = make_config(args.context)
    D, d, Q = c.backbone.width, c.depformer.width, c.codebooks_out
    backbone = c.backbone.layers * (4 * D * D + 3 * D * c.backbone.hidden) + D * c.text_vocab
    depth = c.depformer.layers * (4 * d * d + 3 * d * c.depformer.hidden) + d * (D + c.audio_vocab)
    cross = 2 * D * D + c.backbone.layers * 2 * D * c.cross_attention.gate.hidden
    weights = backbone + Q * depth + (0 if args.blind else cross)
    kv = 2 * D * c.backbone.layers  # of one frame
    image = 0 if args.blind else kv * c.siglip.tokens  # each layer reads it again
    return {"weights": 4 * weights, "frame": 4 * kv, "image": 4 * image}


SIDES = dict.fromkeys(("torch", "jax", "mlx"), ours) | {
    "memory": memory,
    "kyuteye_pt": kyuteye_pt,
    "kyuteye_mlx": kyuteye_mlx,
}
