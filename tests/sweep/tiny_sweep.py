"""An experiment of tiny trials in a folder: frozen files, records, a benchmark, EXP.py that reads them."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import toy
from toy_records import make_config

EXPERIMENT = '''"""Which tiny model?"""
import dataclasses, json
from pathlib import Path
from mvjax.config import study as study_lib, text

HERE = Path(__file__).parent
BASE = text.from_json(json.loads((HERE / "base.json").read_text()))

def sweep():
    xa = dataclasses.replace(BASE.model.cross_attention, gate=None)
    return {"gate": BASE, "none": dataclasses.replace(
        BASE, model=dataclasses.replace(BASE.model, cross_attention=xa))}

def study():
    asked = study_lib.Asked(str(HERE / "asked.py"), ("text",))
    return study_lib.Study("Tiny", "which?", benchmarks=(asked,), baseline="gate")
'''
BENCHMARK = """
import functools
import numpy as np
from mvjax.eval import benchmarks

class Asked(benchmarks.Benchmark):
    name, modes = "asked", ("text",)

    def samples(self, limit, seed):
        return [benchmarks.Sample(str(i), "any", "what digit is this", truth=i, shows=i,
            image=functools.partial(np.full, (16, 16, 3), 40 * i, np.uint8)) for i in range(3)]

    def score(self, sample, said):
        return sum(map(ord, said)) % 97 / 96
"""


def make(folder: Path, *, steps: int = 24) -> Path:
    """Writes everything that the experiment needs; returns its path."""
    from mvjax.digits import frozen_models
    from mvjax.weights import big_vision, kyutai

    folder.mkdir(parents=True)
    config = make_config(folder / "records", frozen_models.FROZEN.codec)
    config.data.prepare(folder / "records")
    sizes = config.model
    model = dataclasses.replace(
        toy.MODEL,
        siglip=dataclasses.replace(toy.MODEL.siglip, image_size=16, patch=8),
        text_vocab=204,
        audio_vocab=sizes.audio_vocab,
        codebooks_out=sizes.codebooks_out,
        delays=sizes.delays,
    )
    params = toy.params(model)
    frozen = dataclasses.replace(
        frozen_models.FROZEN,
        moshi=str(folder / "moshi.safetensors"),
        siglip=str(folder / "siglip.npz"),
    )
    kyutai.save_moshi(Path(frozen.moshi), params, model)
    big_vision.save_siglip(Path(frozen.siglip), params["image"]["encoder"])
    run = dataclasses.replace(
        config,
        frozen=frozen,
        model=model,
        codec=frozen_models.CODEC,
        data=dataclasses.replace(config.data, prepare=None),
        optim=dataclasses.replace(config.optim, learning_rate=1e-2, warmup_steps=2),
        train=dataclasses.replace(
            config.train, steps=steps, log_every=1, checkpoint_every=4, remat="none"
        ),
    )
    write(folder, run)
    return folder / "experiment.py"


def write(folder: Path, run) -> None:
    """Writes the experiment, its config and its benchmark."""
    from mvjax.config import text

    (folder / "base.json").write_text(json.dumps(text.to_json(run)))
    (folder / "asked.py").write_text(BENCHMARK)
    (folder / "experiment.py").write_text(EXPERIMENT)


def environment(first: Path | None = None) -> dict[str, str]:
    """Quick compilation, one device, and packages of `first` before all others."""
    path = [*([str(first)] if first else []), *sys.path]
    return {
        **os.environ,
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
