"""Kyutai's TTS with a tiny random model in upstream's own classes: only the weights are not real."""

import warnings

import numpy as np
import pytest

from mvjax import files, types
from mvjax.data.speech import spoken
from mvjax.dialogues import kyutai_tts, tts
from mvjax.digits import frozen_models

pytestmark = pytest.mark.parity

LINES = ("no it is red", "red")
PADDING = {"initial_padding": 2, "max_padding": 3}
DELAY = 2  # frames from text to audio


@pytest.fixture(scope="module")
def torch():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pytest.importorskip("torch")
        pytest.importorskip("moshi.models.tts")
    threads = found.get_num_threads()
    found.set_num_threads(1)  # tiny products wait for each other otherwise
    yield found
    found.set_num_threads(threads)


def build(torch, *, speakers: bool, distilled: bool):
    """A `TTSModel` of 4 codebooks, with a voice as embedding (`speakers`) or as a recording."""
    import mimi_twin
    import sentencepiece
    from moshi.conditioners import base, tensors, text
    from moshi.models import lm
    from moshi.models import tts as moshi_tts

    torch.manual_seed(0)
    width, own = 24, {"output_dim": 24, "device": "cpu"}
    conditions = {"control": text.LUTConditioner(2, "noop", ["ok"], dim=5, **own)}
    if distilled:
        conditions["cfg"] = text.LUTConditioner(3, "noop", ["1.0", "2.0"], dim=5, **own)
    fused = {"sum": list(conditions), "cross": [], "prepend": []}
    if speakers:
        conditions["speaker_wavs"] = tensors.TensorConditioner(dim=7, **own)
        fused["cross"] = ["speaker_wavs"]
    tokenizer = sentencepiece.SentencePieceProcessor(
        model_file=str(files.resolve(frozen_models.FROZEN.tokenizer))
    )
    model = lm.LMModel(
        delays=[0, 0, 1, 1, 1], n_q=4, dep_q=4, card=16, text_card=tokenizer.vocab_size(),
        dim=width, num_heads=3, num_layers=2, hidden_scale=2, norm="rms_norm_f32", gating="silu",
        positional_embedding="rope", max_period=10_000, context=40, causal=True,
        cross_attention=speakers, depformer_dim=16, depformer_num_heads=2, depformer_num_layers=1,
        depformer_multi_linear=True, depformer_weights_per_step=True, depformer_pos_emb="none",
        condition_provider=base.ConditionProvider(conditions), fuser=base.ConditionFuser(fused),
    ).eval()  # fmt: skip
    mimi = mimi_twin.assemble().eval()
    for name, codebook in mimi.named_buffers():
        if name.endswith("embedding_sum"):  # zero, where no training has filled it
            codebook.normal_()
    mimi.set_num_codebooks(4)
    ids = moshi_tts.TokenIds(tokenizer.vocab_size() + 1)
    return moshi_tts.TTSModel(
        lm=model, mimi=mimi, tokenizer=tokenizer, voice_suffix="", voice_repo="none", n_q=4,
        machine=moshi_tts.StateMachine(token_ids=ids, **PADDING), delay_steps=DELAY,
    )  # fmt: skip


@pytest.fixture
def voices(torch, tmp_path):
    """Two embeddings, and a recording of 6 s at the toy codec's 12 Hz."""
    from safetensors.torch import save_file

    paths = [tmp_path / f"{name}.safetensors" for name in ("one", "two")]
    for n, path in enumerate(paths):
        save_file({"speaker_wavs": torch.randn(1, 7, 3) + n}, path)
    return [str(path) for path in paths]


def lines(voices, seed=1):
    return [tts.TtsLine(text, voice, seed) for text, voice in zip(LINES, voices, strict=True)]


def watch(model):
    """Keeps what the model's own `generate` was given and returned."""
    seen, generate = {}, model.generate

    def watched(entries, attributes, **kwargs):
        seen["voices"] = [a.tensor["speaker_wavs"].tensor for a in attributes if a.tensor]
        seen["result"] = generate(entries, attributes, **kwargs)
        return seen["result"]

    model.generate = watched
    return seen


def frames_of(model, result, n):
    """How long a line sounds; upstream stops a frame early for the acoustic delay."""
    return min(result.end_steps[n] + model.final_padding, len(result.frames) - DELAY)


@pytest.mark.parametrize("distilled", [False, True])
def test_words_are_timed_by_the_steps_that_took_them_up_and_the_codec_says_them(
    torch, voices, distilled
):
    model = build(torch, speakers=True, distilled=distilled)
    seen = watch(model)
    said = kyutai_tts.synthesize(model, lines(voices))
    result = seen["result"]
    assert model.cfg_coef == (1.0 if distilled else 2.0)
    for n, one in enumerate(said):
        assert [w.text for w in one.words] == LINES[n].split()
        fed = [out for _, out in result.logged_text_tokens[n]]
        taken = [i for i, out in enumerate(fed) if out == model.machine.token_ids.new_word]
        assert [round(w.start) for w in one.words] == taken  # the toy codec has 1 frame a second
        ends = [*taken[1:], result.end_steps[n]]
        assert [round(w.end) for w in one.words] == ends
        assert len(one.samples) == frames_of(model, result, n) * types.SAMPLE_RATE
    codes = torch.cat(result.frames[DELAY:], dim=-1)[:, 1:]
    for n, one in enumerate(said):  # each line alone
        with torch.no_grad(), model.mimi.streaming(1):
            frames = codes[n : n + 1, :, : frames_of(model, result, n)].split(1, dim=-1)
            sound = torch.cat([model.mimi.decode(f) for f in frames], dim=-1).clamp(-1, 1)
        wanted = spoken.resample(sound[0].numpy(), 12)[0]
        np.testing.assert_allclose(one.samples, wanted, atol=1e-5)


def test_one_seed_one_sound_in_the_voices_asked_for(torch, voices):
    from safetensors.torch import load_file

    model = build(torch, speakers=True, distilled=True)
    seen = watch(model)
    first, again, other = (
        kyutai_tts.synthesize(model, lines(voices, seed=seed)[1:]) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first[0].samples, again[0].samples)
    assert first[0].words == again[0].words
    assert not np.array_equal(first[0].samples[:99], other[0].samples[:99])
    (told,) = seen["voices"]
    wanted = load_file(voices[1])["speaker_wavs"].transpose(1, 2)
    assert told.shape[1] == 5 * wanted.shape[1]  # room for five speakers
    assert torch.equal(told[:, : wanted.shape[1]], wanted)


def test_a_recorded_voice_is_continued_and_cut_off(torch, monkeypatch):
    model = build(torch, speakers=False, distilled=False)
    prefix = torch.randint(0, 16, (5, 4))
    prefix[0] = -1
    monkeypatch.setattr(type(model), "get_prefix", lambda self, path: prefix)
    seen = watch(model)
    said = kyutai_tts.synthesize(model, lines([__file__, __file__]))
    for n, one in enumerate(said):
        assert [w.text for w in one.words] == LINES[n].split()
        assert one.words[0].start >= 0
        frames = frames_of(model, seen["result"], n) - prefix.shape[1]
        assert len(one.samples) == frames * types.SAMPLE_RATE


def test_a_line_without_end_is_refused(torch, voices, monkeypatch):
    model = build(torch, speakers=True, distilled=True)
    monkeypatch.setattr(kyutai_tts, "_LONGEST", 6.0)
    with pytest.raises(ValueError, match="expected 'no it is red' to end within 6 s"):
        kyutai_tts.synthesize(model, lines(voices))


def test_without_the_package_it_says_what_is_missing(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "moshi.models", None)
    kyutai_tts._load.cache_clear()
    with pytest.raises(ModuleNotFoundError, match="needs PyTorch and the package `moshi`"):
        kyutai_tts.Kyutai().speak([tts.TtsLine("hello", "v", 1)])
