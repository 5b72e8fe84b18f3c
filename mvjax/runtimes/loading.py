"""Opens an export folder with the runtime that reads its layout."""

from __future__ import annotations

from pathlib import Path

from mvjax.runtimes import folder as folder_lib
from mvjax.runtimes import interface


def open_folder(folder: Path) -> interface.Model:
    """Loads a folder that `mvjax export` wrote: PyTorch runs the torch and candle layouts, MLX its own.

    Raises:
      ValueError: if the folder has no such layout, or its files do not fit each other.
      ModuleNotFoundError: if a package of the runtime is not installed, with the remedy.
    """
    layout = folder_lib.layout(folder)
    extras = {"torch": "torch", "mlx": "mlx", "candle": "torch,candle"}[layout]
    try:
        if layout == "mlx":
            from mvjax.runtimes.mlx import model as mlx_model

            return mlx_model.MlxModel(folder)
        from mvjax.runtimes.torch import model as torch_model

        return torch_model.TorchModel(folder)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{folder}: its runtime needs {error.name!r}: pip install 'mvjax[{extras}]'"
        ) from error
