"""Answers of one batch: loads images and sound, runs the model, reads text, choices and gates off."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mvjax.data import images as images_lib
from mvjax.eval import asking, benchmarks, generation
from mvjax.eval import model as eval_model

SILENCE = "silence"  # the class of frames in which the assistant does not talk
_LOADERS = 8  # threads that decode images

Gates = dict[str, list[float]]  # {class of places: mean gate activation of each layer}


class SpokenConversation(NamedTuple):
    """A finished spoken conversation, frame by frame."""

    streams: eval_model.Streams
    start: int  # the frame in which the scored question begins
    end: int  # the first frame after it


class Inputs(NamedTuple):
    """What the rows that this process gives of a batch need, read and encoded."""

    images: generation.Images
    # of spoken conversations
    user_codes: list[np.ndarray]
    assistant_codes: list[np.ndarray]  # UNGENERATED where the model chooses


class Answer(NamedTuple):
    """What the model did with one sample."""

    said: str
    choice: int | None  # of the sample's choices; None: there are none
    gates: Gates | None  # None: no image was in view
    trace: list[float] | None  # the same of each token or frame of the answer, the mean over layers
    log_likelihoods: list[float] | None  # of the choices, per token
    spoken: SpokenConversation | None


class Answerer:
    """Puts samples to a model by a protocol."""

    def __init__(self, model: eval_model.LoadedModel, protocol: benchmarks.PromptProtocol) -> None:
        self._model, self._protocol = model, protocol
        self._generator = generation.Generator(model)

    def prepare(self, sample: benchmarks.Sample, *, spoken: bool) -> asking.Written | asking.Spoken:
        """Returns a sample as it is asked."""
        if spoken:
            return asking.spoken(sample, self._protocol)
        return asking.written(sample, self._protocol, self._model.tokenizer)

    def load(
        self,
        batch: Sequence[asking.Written | asking.Spoken],
        images: Sequence[benchmarks.LoadImage | None],
        rows: int,
    ) -> Inputs:
        """Loads the images of a batch and encodes its speech, for `answer`; in any thread."""
        filled = self._filled(len(batch), rows)
        mine = [filled[i] for i in self._generator.rows(len(filled))]
        spoken = [asked for i in mine if isinstance(asked := batch[i], asking.Spoken)]
        user = self._generator.encode([one.user for one in spoken])
        return Inputs(self._images(images, mine), user, self._forced_audio(spoken))

    def answer(
        self, batch: Sequence[asking.Written | asking.Spoken], inputs: Inputs, rows: int
    ) -> list[Answer]:
        """Answers samples of one key; a batch of fewer than `rows` is filled up with copies of its last."""
        filled, images = [batch[i] for i in self._filled(len(batch), rows)], inputs.images
        spoken = [asked for asked in filled if isinstance(asked, asking.Spoken)]
        written = [asked for asked in filled if isinstance(asked, asking.Written)]
        if spoken:
            answers = self._spoken(spoken, inputs)
        elif written[0].choices:
            answers = self._choices(written, images)
        else:
            answers = self._written(written, images)
        return answers[: len(batch)]

    def _written(self, asked: Sequence[asking.Written], images: generation.Images) -> list[Answer]:
        mine = [asked[i] for i in self._generator.rows(len(asked))]
        ids, gates = self._generator.write(
            np.stack([_padded(one.tokens, one.size) for one in mine]),
            np.array([len(one.tokens) for one in mine], np.int32),
            images,
            max_tokens=self._protocol.max_tokens,
        )
        answers = []
        for one, row, its_gates in zip(asked, ids, gates, strict=True):
            stops = np.flatnonzero(row < 0)
            last = len(one.tokens) + (int(stops[0]) if len(stops) else len(row))
            spans = [*one.spans, (one.topic, len(one.tokens), last)]
            by_class = {topic: _places(spans, topic) for topic in ("image", "off-topic")}
            answers.append(
                Answer(
                    said=self._model.decode_text(row),
                    choice=None,
                    gates=None if images is None else _gates(its_gates, by_class),
                    trace=None if images is None else _trace(its_gates[len(one.tokens) : last]),
                    log_likelihoods=None,
                    spoken=None,
                )
            )
        return answers

    def _choices(self, asked: Sequence[asking.Written], images: generation.Images) -> list[Answer]:
        mine = [asked[i] for i in self._generator.rows(len(asked))]
        lengths = np.array([len(one.tokens) for one in mine], np.int32)
        longest = asked[0].longest
        most = max(len(one.choices) for one in asked)
        scores = np.full((len(asked), most), -np.inf)
        gates = np.zeros((len(asked), 0, 0))
        for k in range(most):
            # who has fewer choices scores its last one again
            given = [one.choices[min(k, len(one.choices) - 1)] for one in mine]
            ids = [
                _padded([*one.tokens, *choice], one.size + longest)
                for one, choice in zip(mine, given, strict=True)
            ]
            counts = np.array([len(choice) for choice in given], np.int32)
            total, gates = self._generator.likelihoods(
                np.stack(ids), lengths, counts, images, longest=longest
            )
            for row, one in enumerate(asked):
                if k < len(one.choices):
                    scores[row, k] = total[row] / len(one.choices[k])
        answers = []
        for one, row, its_gates in zip(asked, scores, gates, strict=True):
            # of the place that predicts the answer, which all choices share
            spans = [*one.spans, (one.topic, len(one.tokens), len(one.tokens) + 1)]
            by_class = {topic: _places(spans, topic) for topic in ("image", "off-topic")}
            own = row[: len(one.choices)]
            answers.append(
                Answer(
                    said="",
                    choice=int(np.argmax(own)),
                    gates=None if images is None else _gates(its_gates, by_class),
                    trace=None,
                    log_likelihoods=[round(float(x), 5) for x in own],
                    spoken=None,
                )
            )
        return answers

    def _spoken(self, asked: Sequence[asking.Spoken], inputs: Inputs) -> list[Answer]:
        config, tokenizer = self._model.config.model, self._model.tokenizer
        images, mine = inputs.images, self._generator.rows(len(asked))
        text = [asking.forced_text(asked[i], config, tokenizer) for i in mine]
        out = self._generator.converse(
            np.stack(inputs.user_codes),
            images,
            forced_text=np.stack(text),
            forced_audio=np.stack(inputs.assistant_codes),
        )
        answers = []
        for one, ids, audio, heard, gates in zip(asked, *out, strict=True):
            first = one.start if self._protocol.answer_from == "question start" else one.end
            classes = self._classes(one, ids)
            streams = eval_model.Streams(ids, audio, heard)
            answers.append(
                Answer(
                    said=self._model.decode_text(ids[first : one.last]),
                    choice=None,
                    gates=None if images is None else _gates(gates, classes),
                    trace=None if images is None else _trace(gates[one.start : one.last]),
                    log_likelihoods=None,
                    spoken=SpokenConversation(streams, one.start, one.end),
                )
            )
        return answers

    def _forced_audio(self, asked: Sequence[asking.Spoken]) -> list[np.ndarray]:
        given = iter(self._generator.encode([one.assistant for one in asked if one.forced]))
        codebooks = self._model.config.model.codebooks_out
        return [
            asking.forced_audio(one, next(given))
            if one.forced
            else np.full((codebooks, one.size), asking.FREE, np.int32)
            for one in asked
        ]

    def _classes(self, one: asking.Spoken, ids: np.ndarray) -> dict[str, list[int]]:
        """The frames in which the assistant talks, from its first word to its last, by topic; the others."""
        words = [frame for _, frame in self._model.timed_words(ids[: one.last])]
        classes: dict[str, list[int]] = {"image": [], "off-topic": []}
        for topic, first, last in one.spans:
            inside = [frame for frame in words if first <= frame < last]
            if inside:
                classes[topic] += range(inside[0], inside[-1] + 1)
        talks = {frame for frames in classes.values() for frame in frames}
        return classes | {SILENCE: [frame for frame in range(one.last) if frame not in talks]}

    def _images(
        self, loads: Sequence[benchmarks.LoadImage | None], mine: Sequence[int]
    ) -> generation.Images:
        """Loads the images of these samples of a batch; None if it has none."""
        size = self._model.config.model.siglip.image_size
        present = {i: load for i in mine if (load := loads[i]) is not None}
        if not present:
            return None
        assert len(present) == len(set(mine)), "rows with and without an image are in one batch"
        with concurrent.futures.ThreadPoolExecutor(_LOADERS) as pool:
            loaded = pool.map(lambda load: images_lib.resize_square(load(), size), present.values())
            found = dict(zip(present, loaded, strict=True))
        return np.stack([found[i] for i in mine])

    def _filled(self, count: int, rows: int) -> list[int]:
        """Which sample of a batch is in each of its rows, as many as the devices share evenly."""
        rows = -(-rows // self._generator.shards) * self._generator.shards
        return [min(row, count - 1) for row in range(rows)]


def _padded(tokens: Sequence[int], size: int) -> np.ndarray:
    row = np.full(size, -1, np.int32)
    row[: len(tokens)] = tokens
    return row


def _places(spans: Sequence[asking.Span], topic: str) -> list[int]:
    return [i for its_topic, first, last in spans if its_topic == topic for i in range(first, last)]


def _gates(gates: np.ndarray, classes: dict[str, list[int]]) -> Gates:
    """Means over the places of each class that has any; `gates` are [places, L]."""
    return {
        name: [round(float(x), 5) for x in gates[places].mean(axis=0)]
        for name, places in classes.items()
        if places
    }


def _trace(gates: np.ndarray) -> list[float]:
    return [round(float(x), 4) for x in gates.mean(axis=1)]
