"""Runs kyuteye_pt and our session, both whole in float64, and saves their logits to the file argv[1].

A script of its own, because what it replaces holds for a whole process: float32, which both write out
where they upcast (norms, RoPE, softmax), means float64 in it.
"""

import dataclasses
import sys
import tempfile
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

FRAMES = 60


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    jnp.float32 = jnp.float64
    update = jax.lax.dynamic_update_slice  # wants indices of one type
    jax.lax.dynamic_update_slice = lambda x, part, at: update(
        x, part, [jnp.asarray(i, jnp.int64) for i in at]
    )
    warnings.simplefilter("ignore")

    import exported
    import test_kyuteye_pt as parity
    import torch
    import toy
    import upstream

    from mvjax.data import images

    class Double(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is torch.Tensor.float:
                return args[0].double()
            kwargs = {name: _wide(value) for name, value in (kwargs or {}).items()}
            return func(*map(_wide, args), **kwargs)

    def _wide(value):
        return torch.float64 if value is torch.float32 else value

    config = upstream.like("kyuteye_pt")
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), toy.params(config))
    gen, embedder = parity.build(config, params, Path(tempfile.mkdtemp()))
    torch.set_default_dtype(torch.float64)
    for module in (gen.lm_model.double(), embedder.double()):
        for part in module.modules():
            vars(part).update(
                {n: torch.float64 for n, v in vars(part).items() if v is torch.float32}
            )
    pixels = images.normalize(upstream.image())[None].astype(np.float64)
    user = upstream.user_codes(FRAMES)
    with Double(), torch.no_grad():
        tokens = embedder(torch.tensor(pixels).permute(0, 3, 1, 2))["cross_attention_src"]
        theirs = parity.converse(gen, gen.precompte_ca_kv(tokens), user)
    wide = dataclasses.replace(config, dtype="float64")
    ours = parity.talk(wide, jax.tree.map(lambda x: x.astype(np.float64), params), user, pixels)
    arrays = {}
    for name in ("text_logits", "audio_logits"):
        arrays[f"ours {name}"] = exported.stacked(ours, name)
        arrays[f"theirs {name}"] = getattr(theirs, name)
    assert all(array.dtype == np.float64 for array in arrays.values())
    np.savez(sys.argv[1], **arrays)


if __name__ == "__main__":
    main()
