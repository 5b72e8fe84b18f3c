"""The card's section on serving: the command, and what the client's URL has to say, for one export."""

from __future__ import annotations

from mvjax.config import schema
from mvjax.export import server_matrix, targets
from mvjax.weights import file_names

_ADDRESS = {
    "torch": "ws://HOST:8088",
    "candle": "wss://HOST:8008",
}  # as the commands below start them


def path(model: schema.ModelConfig) -> str:
    """Returns what a client asks of kyuteye_pt's and kyuteye_rs's server: what no file tells them."""
    start, size = model.cross_attention.scope.start, model.siglip.image_size
    return f"/api/chat?xa_start={start}&image_resolution={size}"


def text(
    model: schema.ModelConfig,
    target: targets.Target,
    quantization: targets.Quantization | None,
) -> str:
    """Returns how upstream's server is started for this model, and reached, if it can run it."""
    if server_matrix.runs_only_here(model, target):
        return _ONLY_HERE.format(upstream=targets.UPSTREAM[target])
    start, size = model.cross_attention.scope.start, model.siglip.image_size
    match target:
        case "torch":
            use = _TORCH
        case "mlx":
            use = _MLX.format(
                file=targets.weight_file(target, quantization),
                codec=file_names.CODEC,
                spm=file_names.TOKENIZER,
                start=start + 1 if start else 0,  # it counts the frame, then compares
                size=size,
            )
        case "candle":
            use = _CANDLE.format(suffix="" if quantization is None else "-q8")
    url = "" if target == "mlx" else _URL.format(url=f"{_ADDRESS[target]}{path(model)}")
    if target == "candle":
        url += _CANDLE_SIZE
    return f"{use}{url}\n\n{_MORE}"


_ONLY_HERE = "Not by {upstream}'s server: the next section says why."

_TORCH = """By kyuteye_pt's server, inside this folder (`MOSHIVIS` is a checkout of kyutai-labs/moshivis):

    uv run --project $MOSHIVIS/kyuteye_pt server moshika-vis.yaml --port 8088 --ssl False --static DIR

It needs CUDA. DIR is the web client, or any folder if you have another. `--dtype float32` keeps it from
rounding the weights. Without a repository in `hf_repo` it opens `model_pt.safetensors`, a link to
`model.safetensors` (made again by `ln -s model.safetensors model_pt.safetensors`). After an upload (`hf
upload OWNER/NAME . --exclude model_pt.safetensors`) set `hf_repo: OWNER/NAME`; then no link is needed."""

_MLX = """By kyuteye_mlx's server, inside this folder, where it opens `siglip448.config` (`MOSHIVIS` is a
checkout of kyutai-labs/moshivis; "q8" or "q4" in the path of the weights tells it the quantization):

    uv run --project $MOSHIVIS/kyuteye_mlx server --moshi-weights {file} \\
        --mimi-weights {codec} --tokenizer {spm} \\
        --xa-start {start} --img_size {size}

It takes both from the command line only, whatever the web client shows. After an upload (`hf upload
OWNER/NAME .`): `--hf-repo OWNER/NAME`, and `-q 8` or `-q 4`, in place of the files."""

_CANDLE = """By kyuteye_rs's server, inside this folder (`MOSHIVIS` is a checkout of kyutai-labs/moshivis):

    openssl req -x509 -nodes -days 365 -newkey rsa:2048 -keyout key.pem -out cert.pem
    cargo run --manifest-path $MOSHIVIS/kyuteye_rs/Cargo.toml --features cuda --bin moshi-backend -r -- \\
        --config config-moshika-vis{suffix}.json standalone --vis

The certificates must be there. After an upload (`hf upload OWNER/NAME .`) set `hf_repo` to OWNER/NAME; files
that are not there are fetched."""

_URL = """

The client's URL says from which frame on the model sees, and the size of the image in pixels:

    {url}

The web client sends values of its own: those of its settings "gating delay" (16 unless set, and again after a
reload if set to 0) and "image resolution" (448)."""

_CANDLE_SIZE = """
A client that leaves `image_resolution` out gets 224 pixels, whatever the model was trained with."""

_MORE = """All that this takes, and what each server sets itself: "Serve with upstream's servers" in
`docs/weights-and-export.md` of mvjax."""
