"""Who `mvjax serve` and `mvjax talk` speak as: an export in its runtime, or a run in JAX."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mvjax import files, run_folder
from mvjax.commands import arguments, extras

if TYPE_CHECKING:
    from mvjax.config import schema, talking
    from mvjax.runtimes import loading
    from mvjax.train import load


class Opened(NamedTuple):
    """A speaker, with the runtime and the precision that it computes in, for people."""

    speaker: loading.Speaker
    runtime: str
    dtype: str


def add(arg) -> None:
    """Adds DIR, --runtime, --dtype, --quantize and --kv-cache."""
    arg("folder", type=arguments.served, metavar="DIR",
        help="written by `mvjax export` (PyTorch or MLX), or a run folder, RUN[@STEP] (JAX)")  # fmt: skip
    arg("--runtime", choices=("jax",), help="run an export for PyTorch in JAX")
    arg("--dtype", choices=("float32", "bfloat16"),
        help="what the runtime computes in; default: the run's, or what suits an export here")  # fmt: skip
    arg("--quantize", choices=("int8", "int4"), help="weights of a torch or candle folder")
    kv_cache(arg)


def kv_cache(arg, more: str = "") -> None:
    """Adds --kv-cache; `more` is said of it."""
    arg("--kv-cache", choices=("int8",),
        help="store keys and values of past frames so, in half the memory of bfloat16; default: as the"
        f" runtime computes{more}")  # fmt: skip


def talk(args: argparse.Namespace) -> talking.TalkConfig:
    """Returns how to talk to DIR unless told otherwise."""
    folder: Path = args.folder.folder
    if run_folder.is_run(folder):
        extras.require("jax")
        from mvjax.train import load

        return load.read_config(folder).talk
    from mvjax.runtimes import loading

    return loading.read_talk(folder)


def open_speaker(args: argparse.Namespace, *, minutes: float) -> Opened:
    """Loads DIR with its codec and tokenizer, for conversations of so many minutes.

    Raises:
      ValueError, ModuleNotFoundError: as `loading.open_folder`, `loading.open_speaker`, `load.trained`.
    """
    folder, step = args.folder
    if run_folder.is_run(folder):
        return _run(args, minutes)
    if step is not None:
        raise ValueError(f"{args.folder}: expected a run folder before @{step}, got {folder}")
    from mvjax.runtimes import folder as folder_lib
    from mvjax.runtimes import loading

    if args.runtime == "jax":
        runtime, model, dtype = "jax", *_in_jax(args)
    else:
        model: Any = loading.open_folder(
            folder, dtype=args.dtype, quantize=args.quantize, kv_cache=args.kv_cache
        )
        runtime, dtype = folder_lib.runtime(folder), model.dtype
    speaker = loading.open_speaker(folder, model=model, minutes=minutes)
    return Opened(speaker, runtime, _precision(dtype, args))


def _in_jax(args: argparse.Namespace) -> tuple[Any, str]:
    """Loads an export in the JAX runtime; returns the model and its dtype."""
    extras.require("jax")
    if args.quantize:
        raise ValueError(
            f"--quantize {args.quantize}: PyTorch quantizes an export's weights, JAX does not; leave out"
            " --quantize or --runtime jax"
        )
    from mvjax.runtimes.jax import exported

    model = exported.open_model(args.folder.folder, dtype=args.dtype, kv_cache=args.kv_cache)
    return model, model.config.dtype


def _run(args: argparse.Namespace, minutes: float) -> Opened:
    trained, model = trained_run(args)
    from mvjax.data import tokenizers
    from mvjax.runtimes import loading
    from mvjax.runtimes.jax import model as jax_model
    from mvjax.weights import codecs

    config = trained.config
    speaker = loading.Speaker(
        model=jax_model.JaxModel(model, trained.params, kv_cache=args.kv_cache),
        codec=codecs.open_codec(
            files.resolve(config.frozen.codec), sizes=config.codec, minutes=minutes
        ),
        tokenizer=tokenizers.load(config),
        name=args.folder.folder.resolve().name,
        certificate=None,
        talk=config.talk,
    )
    return Opened(speaker, "jax", _precision(model.dtype, args))


def _precision(dtype: str, args: argparse.Namespace) -> str:
    return f"{dtype}, {args.kv_cache} KV cache" if args.kv_cache else dtype


def trained_run(args: argparse.Namespace) -> tuple[load.TrainedRun, schema.ModelConfig]:
    """Loads a run folder; returns it, and its model in the precision of --dtype.

    Raises:
      ValueError: for --quantize, and as `load.trained`.
    """
    extras.require("jax")
    if args.quantize:
        raise ValueError(
            f"--quantize {args.quantize}: expected an export folder, got the run {args.folder}; run"
            " `mvjax export` first"
        )
    from mvjax.train import load

    trained = load.trained(*args.folder)
    model = trained.config.model
    return trained, dataclasses.replace(model, dtype=args.dtype or model.dtype)
