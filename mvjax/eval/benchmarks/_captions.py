"""Captions of COCO images in Karpathy's splits, scored by CIDEr against all human captions of the split."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from mvjax.data.ingest import coco, templates
from mvjax.eval import benchmarks, metrics
from mvjax.eval.benchmarks import _public
from mvjax.eval.scoring import cider, ptb

REQUEST = templates.CAPTION_REQUESTS[0]


class Captions(benchmarks.Benchmark):
    """A subclass draws the samples; `truth` of each is the image's id.

    The document frequencies of CIDEr are those of the whole split, also with a limit: so a limited score
    estimates the full one, and its interval is a bootstrap over the images.
    """

    metric = "CIDEr"
    split: ClassVar[Literal["val", "test"]]

    def score(self, sample: Any, said: str) -> None:
        """None: CIDEr takes all answers."""

    def summary(self, answers: Sequence[metrics.ScoredAnswer]) -> metrics.Summary:
        """CIDEr (papers print it times 100, as our tables do) of each kind, and overall."""
        words = ptb.words([answer.said for answer in answers])
        ids = [self._image_ids[answer.id] for answer in answers]
        references = [self._references[n] for n in ids]
        found = cider.scores(words, references, corpus=list(self._references.values()))
        scored = [dataclasses.replace(a, score=s) for a, s in zip(answers, found, strict=True)]
        return self.summarized(scored)

    def summarized(self, scored: Sequence[metrics.ScoredAnswer]) -> metrics.Summary:
        """Means of the images' scores."""
        return metrics.summary(scored, overall=self.overall, at_most_one=False)

    def captioned(self) -> list[coco.CaptionedImage]:
        """Reads the split."""
        source = _public.folder(self.root, "coco", get=_public.KARPATHY)
        with _public.reading(source, get=_public.KARPATHY) as skips:
            self._images = list(coco.captioned(source, split=self.split, skips=skips))
            for image in self._images:
                if not any(sentence.raw.strip() for sentence in image.sentences):
                    skips.add(f"image {image.cocoid}", "missing captions", image.filename)
        return self._images

    def known(self, samples: Sequence[benchmarks.Sample]) -> Sequence[benchmarks.Sample]:
        """Remembers which images samples show, for `summary`, and returns them."""
        self._image_ids: Mapping[str, int] = {sample.id: sample.truth for sample in samples}
        return samples

    def paths(self, images: Sequence[coco.CaptionedImage]) -> dict[int, Path]:
        """The files of images, by id; raises FileNotFoundError if some are missing."""
        assert self.root is not None
        found = {i.cocoid: self.root / "coco" / i.filepath / i.filename for i in images}
        _public.check_images(found.values(), get=_public.COCO_IMAGES)
        return found

    @functools.cached_property
    def _references(self) -> dict[int, list[str]]:
        """Each image's captions as words, tokenized all at once, as pycocoevalcap does."""
        raw = [(i.cocoid, s.raw) for i in self._images for s in i.sentences if s.raw.strip()]
        references: dict[int, list[str]] = {}
        for (cocoid, _), words in zip(raw, ptb.words([text for _, text in raw]), strict=True):
            references.setdefault(cocoid, []).append(words)
        return references


class WrittenCaptions(Captions):
    """One written request an image."""

    def samples(self, limit: int | None, seed: int) -> Sequence[benchmarks.Sample]:
        """One sample an image."""
        images = self.captioned()
        chosen = [images[n] for n in benchmarks.drawn(len(images), limit, seed)]
        paths = self.paths(chosen)
        return self.known(
            [
                benchmarks.Sample(
                    id=f"coco-{image.cocoid}",
                    kind="caption",
                    prompt=REQUEST,
                    truth=image.cocoid,
                    image=_public.image(paths[image.cocoid]),
                    shows=image.cocoid,
                )
                for image in chosen
            ]
        )
