"""Captions of COCO images asked for by Babillage's spoken requests."""

from __future__ import annotations

from collections.abc import Sequence

from mvjax import messages
from mvjax.eval import benchmarks
from mvjax.eval.benchmarks import _babillage, _captions, _public

_SPLITS = {"val": "validation", "test": "test"}


class SpokenCaptions(_captions.Captions):
    """One spoken request an image."""

    modes = ("audio", "text")
    protocol = _babillage.PROTOCOL

    def samples(self, limit: int | None, seed: int) -> Sequence[benchmarks.Sample]:
        """One sample an image: of its requests, one a human caption, the one with the lowest sample_id."""
        images = self.captioned()
        spoken = _babillage.prompts(self.root, "coco", _SPLITS[self.split])
        requests = {p.image_id: p for p in sorted(spoken, key=lambda p: p.sample_id, reverse=True)}
        chosen = [images[n] for n in benchmarks.drawn(len(images), limit, seed)]
        without = [str(image.cocoid) for image in chosen if image.cocoid not in requests]
        if without:
            raise ValueError(
                f"{self.root}/babillage/coco: expected a request for every image of the split, got none for"
                f" {messages.names(without, shown=8)}; {_public.BABILLAGE}"
            )
        paths = self.paths(chosen)
        return self.known(
            [
                benchmarks.Sample(
                    id=f"babillage-coco-{requests[image.cocoid].sample_id}",
                    kind="caption",
                    prompt=requests[image.cocoid].text,
                    truth=image.cocoid,
                    image=_public.image(paths[image.cocoid]),
                    shows=image.cocoid,
                    speech=requests[image.cocoid].speech,
                )
                for image in chosen
            ]
        )
