"""Upstream's servers on folders that we export: their way of parsing, loading, and of passing the image."""

import asyncio
import dataclasses
import io
import queue
import re
import shlex
import sys
import types

import exported
import numpy as np
import pytest
import upstream
import yaml
from PIL import Image

from mvjax import scopes
from mvjax.data import images
from mvjax.export import agreement, runtime_configs, serving
from mvjax.runtimes.jax import model as jax_model
from mvjax.weights import file_names

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

PT, MLX = upstream.kyuteye_pt(), upstream.kyuteye_mlx()
SERVERS = upstream.servers()
torch, mx = pytest.importorskip("torch"), pytest.importorskip("mlx.core")
FRAMES = 14
SCOPES = [scopes.Scope(), scopes.Scope(start=3), scopes.Scope(start=3, frames=5)]


def ours(config, params, user):
    pixels = images.normalize(upstream.image())[None]
    return agreement.talk(jax_model.JaxModel(config, params), pixels, user)


def picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(upstream.image()).save(file, "png")
    return file.getvalue()


class Codec:
    """Stands for Mimi: the codes are those of the test."""

    sample_rate, frame_rate = 24_000, 12.5

    def __init__(self, user):
        self.user, self.frames = user, 0

    def encode(self, chunk):
        assert chunk.shape == (1, 1, 1920)
        codes = self.user[:, self.frames % self.user.shape[1]]
        self.frames += 1
        return torch.tensor(codes).long()[None, :, None]

    def decode(self, codes):
        return torch.zeros(1, 1, 1920)

    def streaming_forever(self, batch):
        pass

    def reset_streaming(self):
        self.frames = 0


class Socket:
    """A client: shows a picture, speaks every frame, and hangs up when all are answered."""

    def __init__(self, codec):
        self.codec = codec

    async def prepare(self, request):
        pass

    async def receive(self):
        return types.SimpleNamespace(data=bytearray(b"\x08" + picture()))

    async def send_bytes(self, message):
        pass

    async def __aiter__(self):
        kinds = SERVERS.pt.aiohttp.WSMsgType
        yield types.SimpleNamespace(type=kinds.BINARY, data=b"\x01" + b"x" * FRAMES)
        for _ in range(6000):
            if self.codec.frames >= FRAMES:
                break
            await asyncio.sleep(0.01)


class Opus:
    """Reader and writer in one: a frame of silence a byte."""

    def __init__(self, rate):
        self.waiting = 0

    def append_bytes(self, payload):
        self.waiting += len(payload)

    def read_pcm(self):
        count, self.waiting = self.waiting, 0
        return np.zeros(1920 * count, np.float32)

    def append_pcm(self, pcm):
        pass

    def read_bytes(self):
        return b""


def torch_server(folder, config, codec, monkeypatch):
    """Returns the handler of the server that `server moshika-vis.yaml` starts inside the folder."""
    apps = []
    monkeypatch.chdir(folder)
    monkeypatch.setattr(SERVERS.pt, "get_mimi", lambda path, device: codec)
    spm = types.SimpleNamespace(id_to_piece=str)
    monkeypatch.setattr(SERVERS.pt.sentencepiece, "SentencePieceProcessor", lambda path: spm)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(SERVERS.pt.web, "run_app", lambda app, **_: apps.append(app))
    monkeypatch.setattr(SERVERS.pt.sphn, "OpusStreamWriter", Opus)
    monkeypatch.setattr(SERVERS.pt.sphn, "OpusStreamReader", Opus)
    monkeypatch.setattr(SERVERS.pt.web, "WebSocketResponse", lambda **_: Socket(codec))
    # torchvision's part: decoding, resizing as Pillow does, scaling to [-1, 1]
    monkeypatch.setattr(SERVERS.pt, "decode_image", lambda data, mode: bytes(data.tolist()))
    monkeypatch.setattr(SERVERS.pt, "get_minimal_transforms", lambda size: lambda x: (x, size))

    def normalized(decoded):
        data, size = decoded
        small = Image.open(io.BytesIO(data)).resize((size, size), resample=3)
        return torch.tensor(images.normalize(np.asarray(small))).permute(2, 0, 1)

    embedding = PT.loaders.ImageProjection
    monkeypatch.setattr(embedding, "to_tensor_and_normalize", property(lambda _: normalized))
    PT.cross_attention.SharedModuleType._instances.clear()
    with upstream.siglip_of(PT, config.siglip):
        SERVERS.pt.start_server(
            file_names.TORCH_CONFIG, static=".", device="cpu", dtype="float32", ssl=False
        )
    routes = [r for r in apps[0].router.routes() if r.resource.canonical == "/api/chat"]
    return next(r.handler for r in routes if r.method == "GET")


@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_kyuteye_pt_converses_as_trained(scope, tmp_path, monkeypatch, compare):
    """`server moshika-vis.yaml` and the URL that the card gives; without it, what the notes say."""
    config = upstream.like("kyuteye_pt", scope=scope)
    params = upstream.params(config)
    _, folder = exported.write(config, "torch", tmp_path, params=params)
    user, logits = upstream.user_codes(FRAMES), []

    def greedy(x, *_):
        logits.append(x.reshape(-1).numpy().copy())
        return x.argmax(-1)

    monkeypatch.setattr(PT.moshivis, "sample_token", greedy)
    codec = Codec(user)
    handler = torch_server(folder, config, codec, monkeypatch)
    (url,) = re.findall(r"/api/chat\?(\S+)", serving.text(config, "torch", None))
    said = ours(config, params, user)

    def ask(query):
        logits.clear()
        request = types.SimpleNamespace(rel_url=types.SimpleNamespace(query=query))
        with torch.no_grad():
            asyncio.run(handler(request))
        assert codec.frames == FRAMES
        return np.stack(logits[::9])

    heard = ask({"image_resolution": "28"})
    if scope.start:  # as the notes tell
        assert (
            np.abs(
                heard[: scope.start] - exported.stacked(said, "text_logits")[: scope.start]
            ).max()
            > 1e-2
        )
    query = dict(part.split("=") for part in url.split("&"))
    assert query["image_resolution"] == "28"
    compare("text logits", exported.stacked(said, "text_logits"), ask(query), 1e-4)
    audio = np.stack([x for i, x in enumerate(logits) if i % 9]).reshape(FRAMES, 8, -1)
    compare("audio logits", exported.stacked(said, "audio_logits"), audio, 1e-4)
    # and what it has if not told: 448 pixels
    if not scope.start:
        assert SERVERS.pt.ServerState.__init__.__defaults__[-2:] == (448, 0)


class Recorder:
    """Greedy, and keeps the logits."""

    kept: list = []

    def __init__(self, temp, top_p):
        del temp, top_p

    def __call__(self, logits):
        self.kept.append(np.array(logits).reshape(-1))
        return mx.argmax(logits, axis=-1), logits


class Exact:
    """Image features that the server does not round."""

    def __init__(self, embedder):
        self.embedder = embedder

    def __call__(self, image):
        features = self.embedder(image)
        return types.SimpleNamespace(astype=lambda _: features)


@pytest.mark.parametrize("scope", SCOPES[:2], ids=str)
def test_kyuteye_mlx_converses_as_trained(scope, tmp_path, monkeypatch, compare):
    """The card's command, through its parser, its loaders and its loop."""
    config = upstream.like("kyuteye_mlx", scope=scope)
    params = upstream.params(config)
    _, folder = exported.write(config, "mlx", tmp_path, params=params)
    card = serving.text(config, "mlx", None).replace("\\\n", " ")
    (command,) = re.findall(r"kyuteye_mlx server (.*)", card)
    monkeypatch.setattr(sys, "argv", ["server", *shlex.split(command)])
    args = SERVERS.mlx.get_args_for_main()
    assert (args.img_size, args.quantized) == (28, None)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(SERVERS.mlx.models, "config_siglip", lambda: built_in(config))
    monkeypatch.setattr(SERVERS.mlx.utils, "Sampler", Recorder)
    monkeypatch.setattr(
        SERVERS.mlx, "get_tokenizer", lambda _: types.SimpleNamespace(id_to_piece=str)
    )
    load = SERVERS.mlx.get_embedder
    monkeypatch.setattr(SERVERS.mlx, "get_embedder", lambda args: Exact(load(args)))

    def keep(self, k, v):
        self.keys, self.values, self.is_set = k, v, True

    monkeypatch.setattr(MLX.kv_cache.XACache, "set", keep)
    MLX.cross_attention.SharedModuleType._instances.clear()
    user = upstream.user_codes(FRAMES)
    kinds = SERVERS.mlx.ModelInput

    class Client:
        """Shows a picture, then speaks, then interrupts, as a terminal does."""

        def __init__(self):
            self.given = iter(
                [(kinds.IMAGE, picture()), *((kinds.AUDIO, c[:, None]) for c in user.T)]
            )

        def get(self):
            found = next(self.given, None)
            if found is None:
                raise KeyboardInterrupt
            if found[0] == kinds.IMAGE:
                Recorder.kept.clear()  # of the warm-up
            return found

    answers = queue.Queue()
    answers.put_nowait = answers.put
    SERVERS.mlx.model_server(Client(), answers, args)
    said = ours(config, params, user)
    logits = Recorder.kept
    compare("text logits", exported.stacked(said, "text_logits"), np.stack(logits[::9]), 1e-4)
    audio = np.stack([x for i, x in enumerate(logits) if i % 9]).reshape(FRAMES, 8, -1)
    compare("audio logits", exported.stacked(said, "audio_logits"), audio, 1e-4)


def built_in(config):
    """The sizes of the toy in place of those in kyuteye_mlx's source, which are all that it reads."""
    sizes, release = runtime_configs.mlx_config(config), MLX.models.config_v0_1()
    names = ("d_model", "num_heads", "num_layers", "dim_feedforward", "context", "img_emb_dim")
    transformer = {name: sizes["transformer"][name] for name in names}
    depth = {name: sizes["depformer"]["transformer"][name] for name in names[:4]}
    depformer = release.depformer
    return dataclasses.replace(
        release,
        transformer=dataclasses.replace(release.transformer, **transformer),
        depformer=dataclasses.replace(
            depformer, transformer=dataclasses.replace(depformer.transformer, **depth)
        ),
    )


def test_what_our_tables_say_of_the_servers_stands_in_their_source():
    """Numbers that `server_matrix.py`, `deviations.py` and the docs repeat; kyuteye_rs is not compiled."""
    root = upstream.checkout(upstream.MOSHIVIS)
    facts = {
        "kyuteye_rs/moshi-backend/src/stream_both.rs": (
            "image_resolution.unwrap_or(224)", "xa_start.unwrap_or(0)", "from_secs(360)",
            "text_temperature.unwrap_or(0.8)", "audio_topk.unwrap_or(250)",
        ),
        "kyuteye_rs/moshi-backend/src/image_embedder.rs": (
            "Siglip224", "Siglip448", "Siglip896", "self.patch_size * 10",
        ),
        "kyuteye_rs/moshi-core/src/lm.rs": ("max_seq_len: 4096", "context: 3000"),
        "kyuteye_rs/moshi-core/src/lm_generate_multistream.rs": ("codebook == 0 || codebook == 8",),
        "kyuteye_pt/kyuteye/server.py": (
            "image_size: int = 448", "text_token not in (0, 3)", "torch.cuda.synchronize()",
            '"_pt.safetensors"', ">= self.xa_start",
        ),
        "kyuteye_mlx/kyuteye_mlx/local_web.py": (
            '"--xa-start", type=int, default=16', '"--img_size", type=int, default=448',
            '"--steps", default=4000', "max_steps=args.steps + 5", "text_token not in (0, 3)",
            'if "q8" in args.moshi_weights',
        ),
        "client/src/pages/Conversation/hooks/useModelParams.ts": (
            "DEFAULT_GATE_DELAY = 16", "DEFAULT_IMAGE_RESOLUTION = 448",
            "params?.gateDelay || DEFAULT_GATE_DELAY",
        ),
    }  # fmt: skip
    for path, sentences in facts.items():
        text = (root / path).read_text()
        for sentence in sentences:
            assert sentence in text, (path, sentence)
    release = yaml.safe_load((root / "kyuteye_pt/configs/moshika-vis.yaml").read_text())
    assert release["xa_start"] == "start"  # with which its server compares a number
