"""Computes the image features of a run's datasets with the frozen SigLIP encoder, on all local devices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mvjax import files, tree
from mvjax.config import schema
from mvjax.data import image_features, mixture
from mvjax.data.records import publishing
from mvjax.nn import siglip
from mvjax.train import gradients, sharding
from mvjax.weights import frozen_files

BATCH = 16  # images per device


def make(
    run: schema.Config,
    *,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> dict[str, image_features.FeatureIndex | None]:
    """Computes features that are missing or out of date; returns {dataset: their index, None if up to date}.

    `progress` is called with a dataset, its images done so far, and its images in all.
    """
    mixture.ensure_records(run.data)
    with publishing.published(files.output(run.data.root)) as root:
        return _make(run, root, progress)


def _make(
    run: schema.Config, root: Path, progress: Callable[[str, int, int], None]
) -> dict[str, image_features.FeatureIndex | None]:
    made_with = image_features.made_with(run.frozen, run.model)
    names = [source.name for source in (*run.data.speech, *run.data.speechless)]
    datasets = {name: root / name for name in names}
    made: dict[str, image_features.FeatureIndex | None] = dict.fromkeys(datasets)
    encode = None
    for name, path in datasets.items():
        if image_features.fresh(path, made_with):
            continue
        encode = encode or encoder(run)
        made[name] = image_features.write(
            path,
            encode,
            made_with,
            batch=BATCH * jax.local_device_count(),
            limits=run.data.limits,
            progress=functools.partial(progress, name),
        )
    return made


def encoder(run: schema.Config) -> image_features.Encode:
    """Returns the frozen encoder as a function of 8-bit images, sharded by rows over the local devices."""
    mesh = sharding.make_mesh(schema.MeshConfig(), jax.local_devices())
    leaves = frozen_files.open_siglip(run.frozen.siglip, run.model.siglip)
    weights = tree.unflatten({path: np.asarray(leaf[()]) for path, leaf in leaves.items()})
    params = jax.device_put(weights, sharding.replicated(mesh))
    model = siglip.Siglip(run.model.siglip, run.model.dtype)

    def apply(params: dict, images: Array) -> Any:
        return model.apply({"params": params}, gradients.pixels(images))

    placed = (sharding.replicated(mesh), sharding.rows(mesh))
    compiled = jax.jit(apply, in_shardings=placed, out_shardings=sharding.rows(mesh))

    def encode(images: np.ndarray) -> np.ndarray:
        return np.asarray(compiled(params, jnp.asarray(images)))

    return encode
