"""Evaluation of a small model: the same answers whatever the batch and the devices; kept when killed."""

import dataclasses
import json
import os

import closeness
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_speaker
from small_speaker import exchange

from mvjax.data import images
from mvjax.dialogues import hibari_tts, tts
from mvjax.eval import answering, benchmarks, discovery, generation, journal, runner

ABOUT = {"about": "test"}
CAPITALS = """
from mvjax.eval import benchmarks

class Capitals(benchmarks.Benchmark):
    name = "capitals"
    modes = ("text",)
    protocol = benchmarks.PromptProtocol(max_tokens=8)

    def samples(self, limit, seed):
        rows = [("spain", "madrid"), ("peru", "lima"), ("kenya", "nairobi"), ("japan", "tokyo")]
        return [
            benchmarks.Sample(place, "capital", f"what is the capital of {place}", truth=name)
            for place, name in (rows[i] for i in benchmarks.drawn(len(rows), limit, seed))
        ]

    def score(self, sample, said):
        return float(sample.truth in said)

    def chance(self, kind):
        return 0.25
"""


def said(evaluation: runner.Evaluation) -> dict[str, list[str]]:
    return {mode: [a.said for a in answers] for mode, answers in evaluation.answers.items()}


@pytest.fixture(scope="module")
def noise():
    return small_speaker.Noise()


@pytest.fixture(scope="module")
def samples(noise):
    return noise.samples(None, 3)


@pytest.fixture(scope="module")
def written(noise, samples):
    modes = ["text", "blind", "shuffled"]
    return runner.evaluate(small_speaker.loaded(), noise, samples, modes, batch_size=3)


@pytest.mark.slow
def test_written_answers_do_not_depend_on_the_batch_or_the_devices(noise, samples, written):
    for model, size in ((small_speaker.loaded(), 1), (small_speaker.on_mesh(data=4, fsdp=2), 64)):
        other = runner.evaluate(model, noise, samples, ["text"], batch_size=size)
        assert said(other)["text"] == said(written)["text"]
        for name, layers in other.gates.items():
            np.testing.assert_allclose(layers, written.gates[name], atol=2e-5)


def test_the_cores_of_a_cpu_share_a_batch(noise, samples, written, monkeypatch):
    parts = []
    real = generation.generate.generate_text
    monkeypatch.setattr(generation, "_ROWS_OF_A_CORE", 3)
    monkeypatch.setattr(generation, "_cores", lambda model: 2)
    monkeypatch.setattr(
        generation.generate,
        "generate_text",
        lambda *args, **how: parts.append(len(args[2])) or real(*args, **how),
    )
    other = runner.evaluate(small_speaker.loaded(), noise, samples, ["text"], batch_size=6)
    assert said(other)["text"] == said(written)["text"] and set(parts) == {3}
    assert len(parts) % 2 == 0


def test_as_many_cores_share_a_batch_as_jax_may_use(monkeypatch):
    monkeypatch.setenv("PJRT_NPROC", "3")
    assert generation._cores(small_speaker.loaded()) == 3
    assert generation._cores(small_speaker.on_mesh(data=8)) == 1
    monkeypatch.delenv("PJRT_NPROC")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS
    assert generation._cores(small_speaker.loaded()) == os.cpu_count()


def test_images_are_seen_where_they_are_shown(written):
    texts = said(written)
    assert len({*map(tuple, texts.values())}) == 3  # the modes differ
    assert list(written.gates) == ["image"] and len(written.gates["image"]) == 3
    assert all(0 < gate < 1 for gate in written.gates["image"])


def test_blind_rows_of_a_cpu_take_the_program_of_those_with_images(noise, samples, written):
    before = generation.generate.generate_text._cache_size()
    model = small_speaker.loaded()
    runner.evaluate(model, noise, samples, ["text", "blind"], batch_size=3)
    assert generation.generate.generate_text._cache_size() == before
    alone = runner.evaluate(
        model, noise, samples, ["blind"], batch_size=3
    )  # its own, without images
    assert generation.generate.generate_text._cache_size() > before
    assert said(alone)["blind"] == said(written)["blind"]


def test_the_table_and_its_intervals(noise, samples, written):
    *kinds, total = written.table
    assert [(row["kind"], row["n"]) for row in kinds] == [("short", 5), ("long", 4)]
    scores = [noise.score(None, text) for text in said(written)["text"]]
    assert total["text"] == pytest.approx(np.mean(scores)) and total["chance"] is None
    low, high = written.intervals["text"]
    assert low <= total["text"] <= high and low < high


def test_images_are_loaded_when_they_are_asked(noise, samples):
    model, seen = small_speaker.loaded(), []
    noise.loaded.clear()
    runner.evaluate(
        model,
        noise,
        samples[:6],
        ["text"],
        batch_size=2,
        say=lambda text: seen.append(len(noise.loaded)),
    )
    assert 2 <= seen[0] <= 4 and seen[-1] == 6  # those of the next batch meanwhile


@pytest.mark.parametrize("lines", [0, 1, 3, 4, 8, 9])
def test_an_evaluation_that_was_killed_ends_as_if_it_had_not_been(noise, samples, tmp_path, lines):
    model, path = small_speaker.loaded(), tmp_path / "noise.samples.jsonl"

    def run(*, fresh=False):
        with journal.Journal(path, ABOUT, fresh=fresh) as log:
            return runner.evaluate(model, noise, samples, ["text"], batch_size=3, log=log)

    def untimed():
        parsed = map(json.loads, path.read_text().splitlines())
        return [{**line, "seconds": None} for line in parsed]

    want, kept = run(), untimed()
    text = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(text[:lines]) + (text[lines][:25] if lines < len(text) else b""))
    got = run()
    assert untimed() == kept
    assert (got.table, got.intervals, got.gates) == (want.table, want.intervals, want.gates)


def test_a_first_look_is_part_of_the_whole(noise, tmp_path, monkeypatch):
    model, path = small_speaker.loaded(), tmp_path / "noise.samples.jsonl"
    asked = []
    real = answering.Answerer.answer
    monkeypatch.setattr(
        answering.Answerer,
        "answer",
        lambda self, batch, *how: asked.append(len(batch)) or real(self, batch, *how),
    )
    for limit in (3, None):
        with journal.Journal(path, ABOUT) as log:
            runner.evaluate(model, noise, noise.samples(limit, 3), ["text"], batch_size=3, log=log)
    assert sum(asked) == len(small_speaker.QUESTIONS)


def test_choices_are_scored_by_their_likelihood_per_token(noise):
    model = small_speaker.loaded()
    choices = ("red", "the digit is seven", "at the top left")
    asked = [dataclasses.replace(noise.sample(i, 3), choices=choices[: 3 - i]) for i in range(2)]
    found = runner.evaluate(model, noise, asked, ["text"], batch_size=1)
    answerer = answering.Answerer(model, noise.protocol)

    @jax.jit
    def forward(ids, pixels):
        return model.model.apply({"params": model.params}, ids, pixels, depth_codebooks=0)

    for sample, answer in zip(asked, found.answers["text"], strict=True):
        prepared = answerer.prepare(sample, spoken=False)
        picture = images.normalize(images.resize_square(sample.image(), 48))
        want = []
        for choice in prepared.choices:
            ids = np.full((1, 1, 32), -1, np.int32)
            ids[0, 0, : len(prepared.tokens) + len(choice)] = [*prepared.tokens, *choice]
            text_logits = forward(jnp.asarray(ids), jnp.asarray(picture[None])).text_logits
            at = len(prepared.tokens) + np.arange(len(choice))
            want.append(float(np.mean(np.asarray(jax.nn.log_softmax(text_logits[0]))[at, choice])))
        assert answer.said == sample.choices[int(np.argmax(want))]
        inputs = answerer.load([prepared], [sample.image], 1)
        (got,) = answerer.answer([prepared], inputs, 1)
        closeness.assert_close(got.log_likelihoods, np.array(want))


def test_adding_a_benchmark_takes_one_file(tmp_path):
    path = tmp_path / "capitals.py"
    path.write_text(CAPITALS)
    capitals = discovery.find(str(path), option="--benchmark")(tmp_path)
    samples = capitals.samples(3, 1)
    model = small_speaker.loaded()
    found = runner.evaluate(model, capitals, samples, ["text"], batch_size=3)
    *_, total = found.table
    assert (total["n"], total["chance"]) == (3, 0.25) and 0 <= total["text"] <= 1
    assert not found.gates and len(said(found)["text"]) == 3


def test_modes_that_a_benchmark_lacks_are_refused(noise, samples):
    class Written(small_speaker.Noise):
        modes = ("text",)

    with pytest.raises(ValueError, match="noise: expected modes among text, got blind, audio"):
        runner.check_modes(Written(), ["blind", "text", "audio"])


def test_samples_without_ids_of_their_own_are_refused(noise, samples):
    model = small_speaker.loaded()
    for asked, fact in (([], "got none"), ([*samples[:2], samples[0]], "more than once: q0")):
        with pytest.raises(ValueError, match=f"expected samples with ids of their own, .*{fact}"):
            runner.evaluate(model, noise, asked, ["text"])


@pytest.mark.slow
def test_spoken_answers_do_not_depend_on_the_batch_or_the_devices(noise):
    """Also 64 at a time, more than there are samples; some conversations go on from earlier turns."""
    before = ([], [exchange("off-topic")], [exchange("image", spoken=True)])
    asked = [dataclasses.replace(noise.sample(i, 3), before=before[i % 3]) for i in range(9)]
    model, modes = small_speaker.loaded(), ["audio"]
    want = runner.evaluate(model, noise, asked, modes, batch_size=64, keep_spoken=9)
    assert set(want.gates) <= {"image", "off-topic", "silence"} and "silence" in want.gates
    others = (
        (model, 1),
        (model, 7),
        (small_speaker.on_mesh(data=8), 64),
        (small_speaker.on_mesh(data=2, fsdp=2, tensor=2), 7),
    )
    for other, size in others:
        got = runner.evaluate(other, noise, asked, modes, batch_size=size, keep_spoken=9)
        assert said(got) == said(want)
        for name, conversation in want.spoken.items():
            for ours, theirs in zip(conversation.streams, got.spoken[name].streams, strict=True):
                np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["espeakng_loader", "hibari"])
def test_asked_twice_a_checkpoint_answers_alike_whatever_was_synthesized_between(noise, module):
    pytest.importorskip(module)
    voices = hibari_tts.Hibari() if module == "hibari" else tts.Espeak()
    lines = [
        tts.TtsLine(text, voices.assistant, n) for n, text in enumerate(small_speaker.QUESTIONS[:3])
    ]

    def speech(n):
        return lambda: voices.speak([lines[n]])[0].samples

    asked = [dataclasses.replace(noise.sample(n, 3), speech=speech(n)) for n in range(3)]
    model, modes = small_speaker.loaded(), ["audio"]
    first = runner.evaluate(model, noise, asked, modes, batch_size=3, keep_spoken=3)
    voices.speak(lines[::-1])
    voices.speak([tts.TtsLine("hello again", voices.users[3], 9)])
    again = runner.evaluate(model, noise, asked, modes, batch_size=3, keep_spoken=3)
    assert again.answers == first.answers and again.gates == first.gates
    for name, conversation in first.spoken.items():
        for one, other in zip(conversation.streams, again.spoken[name].streams, strict=True):
            np.testing.assert_array_equal(one, other)


def test_only_the_last_row_of_a_batch_is_copied_to_fill_it(noise, samples, monkeypatch):
    asked = []

    def write(self, prompts, lengths, images, *, max_tokens):
        asked.append(lengths.tolist())
        assert len(images) == len(prompts) == 4
        ids = np.full((4, max_tokens), -1, np.int32)
        return generation.WrittenAnswers(ids, np.zeros((4, prompts.shape[1] + max_tokens, 3)))

    monkeypatch.setattr(generation.Generator, "write", write)
    same = [dataclasses.replace(samples[0], id=str(i)) for i in range(6)]
    runner.evaluate(small_speaker.loaded(), noise, same, ["text"], batch_size=4)
    assert [len(row) for row in asked] == [4, 4] and len({n for row in asked for n in row}) == 1


def test_a_mode_is_one_of_the_protocol():
    assert set(small_speaker.Noise.modes) == set(benchmarks.MODES)
