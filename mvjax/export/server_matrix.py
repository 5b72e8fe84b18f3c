"""Rows of the compatibility matrix on what upstream's servers set themselves, whatever a file says.

Sources: `kyuteye/server.py` of kyuteye_pt, `local_web.py` and `models/lm.py` of kyuteye_mlx, and
`standalone.rs`, `stream_both.rs` and `image_embedder.rs` of kyuteye_rs's moshi-backend.
"""

from __future__ import annotations

import operator

from mvjax import scopes
from mvjax.config import schema
from mvjax.export import choice

Model = schema.ModelConfig

# image sizes, in pixels, for which kyuteye_pt and kyuteye_rs have an encoder
IMAGE_SIZES = (224, 448, 896)
_RELEASE = schema.ModelConfig()
# what is built into the source of all runtimes, and of all but kyuteye_pt
_ENCODER = operator.attrgetter(
    "siglip.width", "siglip.layers", "siglip.heads", "siglip.hidden", "siglip.patch"
)
_BUILT_IN = (
    "backbone.width", "backbone.layers", "backbone.heads", "backbone.hidden", "backbone.context",
    "backbone.rope_base", "depformer.width", "depformer.layers", "depformer.heads",
    "depformer.hidden", "codebooks_out", "text_vocab", "audio_vocab",
)  # fmt: skip
_SIZES = operator.attrgetter(*_BUILT_IN, "codebooks")


def builds_encoder(model: Model) -> bool:
    """Whether the image encoder is So400m/14, which all servers build."""
    return _ENCODER(model) == _ENCODER(_RELEASE)


def runs_only_here(model: Model, target: str) -> bool:
    """Whether a target's server is built for other models than this one."""
    return any(_ONLY_OURS in row.nearly.get(target, "") and row.made_by(model) for row in ROWS)


def has_release_sizes(model: Model) -> bool:
    """Whether backbone and depth transformer have the sizes of Kyutai's models."""
    return _SIZES(model) == _SIZES(_RELEASE)


def _encoder(model: Model) -> tuple[bool, int]:
    return builds_encoder(model), model.siglip.image_size


def _users(model: Model) -> int:
    return model.codebooks - 1 - model.codebooks_out


_SCOPE = ("cross_attention.scope",)
_FROM_URL = "shows the image from the start unless the client's URL says xa_start=FRAME"
_NO_END = choice.of("mlx", "candle", reason="the start of vision can be set, its end cannot")
_IMAGE = ("siglip.image_size",)
_PADDING = ("text_pad", "text_epad")
_ONLY_OURS = "so this model runs in mvjax's own runtimes only"
_TORCH_SIZE = "resizes images to 448 pixels unless the client's URL says image_resolution=SIZE"
_MLX_SIZE = "resizes images to 448 pixels unless it is started with --img_size SIZE"
_CANDLE_SIZE = "resizes images to 224 pixels unless the client's URL says image_resolution=SIZE"

ROWS: tuple[choice.DesignChoice, ...] = (
    choice.DesignChoice(
        "scope: all frames (release)", _SCOPE, lambda m: m.cross_attention.scope == scopes.Scope()
    ),
    choice.DesignChoice(
        "scope: from a frame on", _SCOPE,
        lambda m: m.cross_attention.scope.start > 0 and m.cross_attention.scope.frames is None,
        nearly={
            "torch": _FROM_URL,
            "mlx": "reads no scope from a file: start the server with --xa-start FRAME + 1",
            "candle": _FROM_URL,
        },
    ),
    choice.DesignChoice(
        "scope: so many frames", _SCOPE, lambda m: m.cross_attention.scope.frames is not None,
        _NO_END, "retrain with frames=None, or export to torch", {"torch": _FROM_URL},
    ),
    choice.DesignChoice(
        "image encoder: So400m/14 at 448 (release)", _IMAGE,
        lambda m: _encoder(m) == (True, 448), nearly={"candle": _CANDLE_SIZE},
    ),
    choice.DesignChoice(
        "image encoder: So400m/14 at 224", _IMAGE, lambda m: _encoder(m) == (True, 224),
        nearly={"torch": _TORCH_SIZE, "mlx": _MLX_SIZE},
    ),
    choice.DesignChoice(
        "image encoder: So400m/14 at 896", _IMAGE, lambda m: _encoder(m) == (True, 896),
        nearly={"torch": _TORCH_SIZE, "mlx": _MLX_SIZE, "candle": _CANDLE_SIZE},
    ),
    choice.DesignChoice(
        "image encoder: So400m/14 at another size", _IMAGE,
        lambda m: _encoder(m)[0] and m.siglip.image_size not in IMAGE_SIZES,
        choice.of("torch", "candle", reason="its encoders are for 224, 448 and 896 pixels"),
        "retrain with one of these, or export to mlx", {"mlx": _MLX_SIZE},
    ),
    choice.DesignChoice(
        "image encoder: another", ("siglip",), lambda m: not _encoder(m)[0],
        nearly=choice.everywhere(f"builds SigLIP So400m/14, {_ONLY_OURS}"),
    ),
    choice.DesignChoice("sizes: the release's", _BUILT_IN, has_release_sizes),
    choice.DesignChoice(
        "sizes: others", _BUILT_IN, lambda m: not has_release_sizes(m),
        nearly=choice.of("mlx", "candle", reason=f"has the release's sizes in its source, {_ONLY_OURS}"),
    ),
    choice.DesignChoice(
        "codebooks: 8 of the user (release)", ("delays", "codebooks_out"), lambda m: _users(m) == 8
    ),
    choice.DesignChoice(
        "codebooks: another number of the user", ("delays", "codebooks_out"),
        lambda m: _users(m) != 8, nearly=choice.everywhere(f"takes 8 from its codec, {_ONLY_OURS}"),
    ),
    choice.DesignChoice(
        "padding ids: 3 and 0 (release)", _PADDING, lambda m: {m.text_pad, m.text_epad} == {0, 3}
    ),
    choice.DesignChoice(
        "padding ids: others", _PADDING, lambda m: {m.text_pad, m.text_epad} != {0, 3},
        nearly=choice.of("torch", "mlx", reason="shows every text token but 0 and 3 as text"),
    ),
)  # fmt: skip
