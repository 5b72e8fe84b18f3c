"""big_vision's own ViT on files that we write, and our encoder on files that it writes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import upstream

from mvjax import tree as tree_lib
from mvjax.config import schema
from mvjax.nn import siglip
from mvjax.weights import big_vision

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

BV = upstream.big_vision()
CONFIG = schema.SiglipConfig(width=20, layers=3, heads=2, hidden=36, patch=4, image_size=24)
PIXELS = np.random.default_rng(0).uniform(-1, 1, (2, 24, 24, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def as_upstream_runs():
    """big_vision promotes ranks and dtypes; ours runs without by the tests beside."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def vit(*, scan: bool):
    return BV.vit.Model(
        width=CONFIG.width,
        depth=CONFIG.layers,
        mlp_dim=CONFIG.hidden,
        num_heads=CONFIG.heads,
        patch_size=(CONFIG.patch, CONFIG.patch),
        pool_type="none",
        scan=scan,
    )


def features(model, params) -> np.ndarray:
    """The encoder's output, one feature a patch."""
    _, out = jax.jit(lambda p, x: model.apply({"params": p}, x))(params, PIXELS)
    return np.asarray(out["encoded"])


def random(tree) -> dict:
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: (rng.standard_normal(x.shape) * 0.3).astype(np.float32), tree)


def ours(params) -> np.ndarray:
    return np.asarray(siglip.Siglip(CONFIG).apply({"params": params}, jnp.asarray(PIXELS)))


@pytest.mark.parametrize("scan", [True, False])
def test_it_loads_and_runs_what_we_save(scan, tmp_path, compare):
    init = siglip.Siglip(CONFIG).init
    params = random(jax.eval_shape(init, jax.random.key(0), jnp.asarray(PIXELS))["params"])
    path = tmp_path / "tower.npz"
    big_vision.save_siglip(path, params)
    model = vit(scan=scan)
    empty = jax.eval_shape(model.init, jax.random.key(0), PIXELS)["params"]
    # `init_params` of the same names and shapes: nothing is kept of them, and nothing may be missing
    loaded = BV.vit.load(random(empty), f"{path}:img", {"scan": scan})
    compare("features", features(model, loaded), ours(params), 1e-5)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_we_load_and_run_what_it_saves(scan, dtype, tmp_path, compare):
    model = vit(scan=scan)
    params = random(jax.eval_shape(model.init, jax.random.key(0), PIXELS)["params"])
    params = jax.tree.map(lambda x: np.asarray(jnp.asarray(x).astype(dtype)), params)
    names, _ = BV.utils.tree_flatten_with_names({"params": {"img": params}})
    np.savez(tmp_path / "theirs.npz", **dict(names))
    loaded = big_vision.load_siglip(tmp_path / "theirs.npz", CONFIG)
    wide = jax.tree.map(lambda x: jnp.asarray(x).astype(jnp.float32), params)
    compare("features", ours(loaded), features(model, wide), 1e-5)
    restored = tree_lib.flatten(BV.utils.load_params(f"{tmp_path}/theirs.npz:img"))
    kernel = np.asarray(restored["embedding/kernel"]).astype(np.float32)
    compare.same("patch kernel", loaded["embedding"]["kernel"], kernel)
