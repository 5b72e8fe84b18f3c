"""Which packages each extra of `pip install 'mvjax[EXTRA]'` brings, and what to install for a missing one."""

from __future__ import annotations

import importlib.util

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
    "serve": ("rustymimi",),
    "candle": ("gguf",),
    "tpu": ("libtpu",),
    "hub": ("huggingface_hub",),
    "data": ("pyarrow",),
    "beam": ("apache-beam",),
    "align": ("whisper-timestamped",),
    "moshi": ("einops", "sphn", "tqdm"),
}  # fmt: skip
# Import names that are not the package's name with underscores.
_MODULES = {
    "pillow": "PIL", "pyyaml": "yaml", "orbax-checkpoint": "orbax", "scikit-learn": "sklearn",
}  # fmt: skip


class MissingPackages(ModuleNotFoundError):
    """Modules of extras that are not installed; the text says which extras bring them."""


def require(*modules: str) -> None:
    """Checks that modules can be imported, without importing them.

    Raises:
      MissingPackages: naming all that are missing.
    """
    missing = [module for module in modules if not _is_installed(module)]
    if missing:
        raise MissingPackages(_remedy(missing))


def explain(error: ModuleNotFoundError) -> str | None:
    """Returns "needs MODULE: pip install 'mvjax[EXTRA]'" for a module of an extra, else None."""
    if isinstance(error, MissingPackages):
        return str(error)
    module = (error.name or "").split(".")[0]
    return _remedy([module]) if module in _extras() else None


def _remedy(modules: list[str]) -> str:
    extras = ",".join(dict.fromkeys(_extras()[module] for module in modules))
    return f"needs {' and '.join(modules)}: pip install 'mvjax{f'[{extras}]' if extras else ''}'"


def _extras() -> dict[str, str]:
    """{import name: extra}."""
    return {
        _MODULES.get(package, package.replace("-", "_")): extra
        for extra, packages in PACKAGES.items()
        for package in packages
    }


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
