"""The models that `mvjax bench` measures: an export, a run, or random weights in every runtime."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvjax import run_folder
from mvjax.commands import extras, speakers

if TYPE_CHECKING:
    from mvjax.config import schema
    from mvjax.runtimes import frame_bytes, interface
    from mvjax.serve import bench

RUNTIMES = ("torch", "mlx", "jax")
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5, "q8": 1.0, "q4": 0.5}


@dataclasses.dataclass(frozen=True)
class Opened:
    """A loaded model.

    Attributes:
      runtime: of `RUNTIMES`.
      model: as `interface.Model`.
      computes: in "float32" or "bfloat16".
      stored: how weights are, if otherwise: int8, int4, q8 or q4.
      context: frames of the attention window.
      values: that a frame reads; None where they are not known.
      folder: with codec and tokenizer; None without.
      shallow: as `bench.measure` takes it.
      kv_cache: how it is stored, if otherwise than `computes`.
    """

    runtime: str
    model: Any
    computes: str
    stored: str | None
    context: int
    values: frame_bytes.FrameValues | None
    folder: Path | None = None
    shallow: Callable[[Any], Any] | None = None
    kv_cache: str | None = None

    @property
    def dtype(self) -> str:
        """For people."""
        stored = {"weights": self.stored, "KV cache": self.kv_cache}
        return ", ".join([self.computes, *(f"{how} {what}" for what, how in stored.items() if how)])

    def needed(self, case: bench.Case, frames: int) -> float | None:
        """Returns the bytes that a frame of a case, in its middle, has to read."""
        if self.values is None:
            return None
        return self.values.bytes(
            weight=_BYTES[self.stored or self.computes],
            activation=_BYTES[self.computes],
            cached=None if self.kv_cache is None else _BYTES[self.kv_cache],
            slots=case.slots,
            past=min(case.position + frames // 2, self.context),
            image=case.image,
        )


def models(args: argparse.Namespace) -> Iterator[Opened]:
    """Loads what the arguments name, one after the other."""
    if args.folder is None:
        extras.require("jax")  # which the config of a model is made of
        yield from _random(args)
        return
    folder, step = args.folder
    if run_folder.is_run(folder):
        trained, model = speakers.trained_run(args)
        yield in_jax(model, trained.params, kv_cache=args.kv_cache)
    elif step is not None:
        raise ValueError(f"{args.folder}: expected a run folder before @{step}, got {folder}")
    else:
        how = {"dtype": args.dtype, "quantize": args.quantize, "kv_cache": args.kv_cache}
        yield exported(folder, folder, **how)


def exported(folder: Path, speaker: Path | None, **how: Any) -> Opened:
    """Loads an export folder; `how` is as `loading.open_folder` takes it."""
    from mvjax.runtimes import folder as folder_lib
    from mvjax.runtimes import frame_bytes, loading

    model: Any = loading.open_folder(folder, **how)
    runtime = folder_lib.runtime(folder)
    computes, _, stored = str(model.dtype).removeprefix("torch.").partition(", ")
    kept = stored.removesuffix(" weights") or getattr(model, "quantize", None)
    values, context = frame_bytes.read(folder), model.config.context
    return Opened(runtime, model, computes, kept, context, values, speaker, kv_cache=model.kv_cache)


def _random(args: argparse.Namespace) -> Iterator[Opened]:
    from mvjax.export import random_model

    chosen = args.runtime or [name for name in RUNTIMES if extras.installed(name)]
    dtype: schema.Dtype = args.dtype or ("bfloat16" if args.random == "7b" else "float32")
    for runtime in chosen:
        model, target = random_model.SIZES[args.random], "mlx" if runtime == "mlx" else "torch"
        if runtime == "jax":
            int8 = args.quantize == "int8"
            yield random_in_jax(model, dtype, int8=int8, kv_cache=args.kv_cache)
            continue
        quantize = args.quantize if runtime == "torch" else None
        mode = {"int8": "q8", "int4": "q4"}.get(args.quantize) if runtime == "mlx" else None
        with tempfile.TemporaryDirectory() as scratch:
            how = {} if mode is None else {"quantization": mode}
            folder = random_model.write(model, target, Path(scratch), dtype=dtype, **how)
            stored = {"quantize": quantize, "kv_cache": args.kv_cache}
            opened = exported(folder, None, dtype=dtype, **stored)
        yield opened


def random_in_jax(
    model: schema.ModelConfig,
    dtype: schema.Dtype,
    *,
    int8: bool,
    kv_cache: interface.KvCache | None = None,
) -> Opened:
    """Returns a model of random weights in JAX; int8 those that training quantizes."""
    from mvjax import tree
    from mvjax.export import random_model
    from mvjax.train import frozen_dtype

    config = dataclasses.replace(model, dtype=dtype)
    leaves = random_model.leaves(config, dtype)
    if int8:
        for path in list(leaves):
            if (axes := frozen_dtype.contracted(path)) is not None:
                codes, scale = random_model.int8(path, leaves[path].shape, axes)
                leaves |= {path: codes, path.removesuffix("kernel") + "scale": scale}
    params = tree.unflatten(leaves)
    return in_jax(config, params, stored="int8" if int8 else None, kv_cache=kv_cache)


def in_jax(
    model: schema.ModelConfig,
    params: Any,
    *,
    stored: str | None = None,
    kv_cache: interface.KvCache | None = None,
) -> Opened:
    """Returns parameters in the JAX runtime."""
    from mvjax.runtimes import frame_bytes
    from mvjax.runtimes.jax import model as jax_model
    from mvjax.weights import kyutai, rules

    values = frame_bytes.count(
        rules.tensor_shapes(kyutai.vis_rules(model), kyutai.sizes(model)),
        layers=model.backbone.layers,
        heads=model.backbone.heads,
        image_layers=len(model.cross_attention_layers),
        tokens=model.siglip.tokens,
    )
    return Opened(
        "jax", jax_model.JaxModel(model, params, kv_cache=kv_cache), model.dtype, stored,
        model.backbone.window, values, shallow=_one_codebook, kv_cache=kv_cache,
    )  # fmt: skip


def _one_codebook(model: Any) -> Any:
    """Returns a `JaxModel` with a depth transformer of one step, on the same weights."""
    other, depth = copy.copy(model), model.weights.depth
    first = depth._replace(
        audio_emb=(), w_in=depth.w_in[:1], blocks=depth.blocks[:1], heads=depth.heads[:1]
    )
    other.config = dataclasses.replace(model.config, codebooks_out=1)
    other.weights = model.weights._replace(depth=first)
    return other
