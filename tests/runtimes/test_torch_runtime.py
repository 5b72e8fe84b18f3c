"""What is PyTorch's own: the step that a GPU captures, precisions, and a step that never grows."""

import gc
import pathlib
import threading

import closeness
import exported
import numpy as np
import pytest
import toy

from mvjax.runtimes import interface

torch = pytest.importorskip("torch")

from torch.utils import _python_dispatch as dispatch  # noqa: E402

from mvjax.runtimes.torch import engine, linears  # noqa: E402
from mvjax.runtimes.torch import model as torch_model  # noqa: E402

FRAMES = 12  # more than twice the context
PIXELS, USER = exported.inputs(FRAMES)
HOT = interface.Sampling(temperature=2.0, top_k=5, repetition_penalty=1.5, pad_multiplier=1.0,
                         repetition_penalty_context=3)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    return exported.write(exported.TOY, "torch", tmp_path_factory.mktemp("export"))[1]


class Launches(dispatch.TorchDispatchMode):
    """Notes every operation and the shapes that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.noted = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        shapes = [tuple(x.shape) for x in args if isinstance(x, torch.Tensor)]
        self.noted.append((str(func), shapes))
        return func(*args, **(kwargs or {}))


class Captured(torch_model.TorchModel):
    """Steps as on a GPU, by a stand-in for `cuda_graph`: the same tensors come back, filled again."""

    def engine(self, rows, *, probes):
        self.launches, self.captures = [], 0
        return engine.Engine(self, rows, probes=probes, capture=self.capture)

    def capture(self, compute):
        self.captures += 1
        outputs = compute()

        def replay():
            with Launches() as launches:
                new = compute()
            self.launches.append(launches.noted)
            outputs.text.copy_(new.text)
            for name, kept in (outputs.probes or {}).items():
                kept.copy_(new.probes[name])
            return outputs

        return replay


def talk(model, *, size=2):
    """Two conversations that see, swap and drop images, sample, join and leave, past the context."""
    one, other = model.encode_image(PIXELS), model.encode_image(-PIXELS)
    slots, said = model.slots(size, probes=True), []
    slots.warm_up()
    slots.join(one, text_sampling=HOT, audio_sampling=HOT, seed=1)
    for s, codes in enumerate(USER.T):
        if s == 3 and size > 1:
            slots.join(None, seed=2)
        if s in (5, 8):
            slots.show(0, other if s == 5 else None)
        taken = range(slots.size - slots.free)
        said.append(slots.step({slot: interface.Turn(codes) for slot in taken}))
    return said


@pytest.mark.parametrize("size", [1, 2])
def test_what_a_gpu_captures_is_one_program_fed_by_its_buffers(size, folder):
    """The very function that is captured, called here: no input is a constant of it, none is waited for."""
    captured = Captured(folder)
    for one, other in zip(
        talk(captured, size=size), talk(torch_model.TorchModel(folder), size=size)
    ):
        assert one.keys() == other.keys()
        for slot, frame in one.items():
            assert frame.text_token == other[slot].text_token
            assert frame.gate == pytest.approx(other[slot].gate, abs=1e-6)
            np.testing.assert_array_equal(frame.audio_tokens, other[slot].audio_tokens)
            for name in ("text_logits", "audio_logits", "hidden"):
                pair = getattr(frame.probes, name), getattr(other[slot].probes, name)
                closeness.assert_close(*pair, closeness.COMPOSED, where=name)
    programs = {str(noted) for noted in captured.launches}
    assert len(captured.launches) == FRAMES + 2 and captured.captures == 3 - size
    assert len(programs) == captured.captures  # with an image and, alone, without one
    waits = ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal.default")
    assert not [op for noted in captured.launches for op, _ in noted if any(w in op for w in waits)]


def test_a_long_conversation_takes_no_more_time_or_memory(folder):
    model = torch_model.TorchModel(folder)
    session = model.session(model.encode_image(PIXELS), text_sampling=HOT, audio_sampling=HOT)

    def step(frames):
        for s in range(frames):
            session.step(USER[:, s % FRAMES])
        with Launches() as launches:
            session.step(USER[:, 0])
        held = sum(x.nbytes for x in gc.get_objects() if issubclass(type(x), torch.Tensor))
        return launches.noted, held

    early, late = step(3 * exported.TOY.backbone.window), step(700)  # nearly a minute
    assert early[0] == late[0]
    assert early[1] == late[1]


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> pathlib.Path:
    """Widths that every kernel takes."""
    where = tmp_path_factory.mktemp("wide")
    return exported.write(toy.QUANTIZABLE, "torch", where, params=toy.quantizable_params())[1]


# Mean error of the logits over their mean magnitude: about 1.5 to 2 times what was found.
BOUNDS = {("bfloat16", None): 0.016, ("float32", "int8"): 0.03, ("bfloat16", "int8"): 0.04,
          ("bfloat16", "int4"): 0.3}  # fmt: skip


@pytest.mark.parametrize("how", BOUNDS, ids=str)
@pytest.mark.parametrize("size", [1, 3])
def test_precisions_stay_near_float32(how, size, wide):
    pixels, user = exported.inputs(8, toy.QUANTIZABLE)
    dtype, quantize = how

    def forced(**precision):
        model = torch_model.TorchModel(wide, **precision)
        slots = model.slots(size, probes=True)
        slot = slots.join(model.encode_image(pixels))
        frames = [
            slots.step({slot: interface.Turn(codes, 1, np.array([2, 3, 4]))})[slot]
            for codes in user.T
        ]
        return model, np.concatenate(
            [exported.stacked(frames, n).ravel() for n in ("text_logits", "audio_logits")]
        )

    _, exact = forced(dtype="float32")
    model, found = forced(dtype=dtype, quantize=quantize)
    assert model.dtype == (f"{dtype}, {quantize} weights" if quantize else dtype)
    error = np.abs(found - exact).mean() / np.abs(exact).mean()
    assert 1e-4 < error < BOUNDS[how]


def test_bfloat16_is_packed_where_onednn_can(monkeypatch):
    """Not without AVX-512, where it raises an error: `make other-processor` has none."""
    cpu = torch.device("cpu")
    for can in (True, False):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda can=can: can)
        assert linears.can_pack(cpu, torch.bfloat16) == can
        assert linears.can_pack(cpu, torch.float32)


@pytest.mark.parametrize("how", ["int8", "int4"])
def test_quantized_layers_hold_their_weights(how):
    weight = torch.from_numpy(np.random.default_rng(0).standard_normal((64, 128), np.float32))
    bias = torch.arange(64.0)
    layer = linears.quantized(weight, bias, how, torch.device("cpu"))
    assert layer is not None
    found = layer(torch.eye(128)).T - bias[:, None]
    step = weight.abs().amax(1, keepdim=True) / 127  # half a step, and bfloat16 within
    if how == "int4":
        groups = weight.unflatten(1, (-1, linears.INT4_GROUP))
        step = ((groups.amax(2) - groups.amin(2)) / 15).repeat_interleave(linears.INT4_GROUP, 1)
    assert ((found - weight).abs() <= 0.5 * step + 0.02 * weight.abs().max()).all()
    assert linears.quantized(weight[:, :30], None, how, torch.device("cpu")) is None


def test_activations_are_rounded_as_q8_0_kernels_do():
    """By hand: a value and its half, a block of zeros, and one whose outlier takes all but it to zero."""
    x = torch.zeros(2, 96)
    x[0, :4] = torch.tensor([127.0, -2.5, 0.5, 0.49])  # d = 1: halves go away from zero
    x[0, 64:68] = torch.tensor([-254e3, 999.0, -1000.0, 3001.0])  # d = 2000
    x[1, 0] = 1e-3  # d = 7.87e-6, which float16 has as 7.87 with its last digits lost
    rounded = linears.rounded_to_q8_0(x)
    assert rounded[0, :4].tolist() == [127, -3, 1, 0] and not rounded[:, 32:64].any()
    assert rounded[0, 64:68].tolist() == [-254e3, 0, -2000, 4000]
    assert rounded[1, 0] == 127 * torch.tensor(1e-3 / 127).half().float() != x[1, 0]
    assert rounded.dtype == x.dtype and rounded.bfloat16().shape == x.shape


def test_only_q8_0_files_have_rounded_activations(folder):
    with pytest.raises(ValueError, match="its weights are not q8_0"):
        torch_model.TorchModel(folder, round_activations=True)


def test_int8_takes_the_widths_that_the_cpus_kernel_reads_whole():
    cpu = torch.device("cpu")
    taken = [w for w in range(4, 100, 4) if linears.quantized(torch.ones(3, w), None, "int8", cpu)]
    assert taken == [16, 32, 48, 64, 80, 96]
    for width in taken:
        layer = linears.Int8(torch.ones(3, width), None, cpu)
        np.testing.assert_allclose(layer(torch.ones(2, width)), width, rtol=0.01)


@pytest.mark.parametrize("bytes_, threads", [(32_000_000, 1), (0, 2)])
def test_a_small_model_computes_on_one_core_and_leaves_torch_its_threads(
    folder, monkeypatch, bytes_, threads
):
    monkeypatch.setattr(torch_model, "_ONE_CORE_BYTES", bytes_)
    model, before, seen = torch_model.TorchModel(folder), torch.get_num_threads(), []
    frame = model.frame
    monkeypatch.setattr(
        model, "frame", lambda *a, **k: (seen.append(torch.get_num_threads()), frame(*a, **k))[1]
    )
    torch.set_num_threads(2)
    try:
        session = model.session(model.encode_image(PIXELS))
        session.step(USER[:, 0])
        assert seen == [threads] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_threads_that_overlap_leave_torch_its_threads(folder):
    """The second begins while the first is inside, and ends after it."""
    model, before, found = torch_model.TorchModel(folder), torch.get_num_threads(), []
    inside, may_end = threading.Event(), threading.Event()

    def second():
        with model.threads():
            inside.set()
            may_end.wait(10)

    other = threading.Thread(target=second)
    torch.set_num_threads(2)
    try:
        with model.threads():
            other.start()
            assert inside.wait(10) and torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        may_end.set()
        other.join()
        fresh = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        fresh.start()
        fresh.join()
        assert found == [2] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
