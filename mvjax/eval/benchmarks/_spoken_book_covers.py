"""OCR-VQA's questions as Babillage speaks them, joined with the published answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mvjax.data.ingest import items
from mvjax.eval import benchmarks
from mvjax.eval.benchmarks import _babillage, _book_covers, _public

_SPLITS = {"val": "validation", "test": "test"}


class SpokenBookCovers(_book_covers.BookCovers):
    """Spoken questions."""

    modes = ("audio", "text")
    protocol = _babillage.PROTOCOL

    def samples(self, limit: int | None, seed: int) -> Sequence[benchmarks.Sample]:
        """One sample a spoken question."""
        spoken = _babillage.prompts(self.root, "ocrvqa", _SPLITS[self.split])
        covers: dict[str, list[items.Item]] = {}
        for item in self.questions():
            covers.setdefault(str(item.facts["image_id"]), []).append(item)
        joined = [(prompt, published(prompt, covers)) for prompt in spoken]
        chosen = [joined[n] for n in benchmarks.drawn(len(joined), limit, seed)]
        _public.check_images((_book_covers.cover(i) for _, i in chosen), get=_public.OCR_VQA)
        return self.known(
            [
                benchmarks.Sample(
                    id=f"babillage-ocrvqa-{prompt.image_id}-{prompt.sample_id}",
                    kind="exact match",
                    prompt=prompt.text,
                    truth=item.facts["answers"],
                    image=_public.image(_book_covers.cover(item)),
                    shows=item.facts["image_id"],
                    speech=prompt.speech,
                )
                for prompt, item in chosen
            ]
        )


def published(prompt: _babillage.Prompt, covers: Mapping[str, Sequence[items.Item]]) -> items.Item:
    """The published question of the cover that a spoken one is most like.

    The likeness is the share of common words of the questions (Jaccard), plus the share of the published
    answer's words that the spoken answer has. Raises ValueError if the cover has no question.
    """
    cover = covers.get(str(prompt.image_id)) or covers.get(f"{prompt.image_id:010d}")
    if not cover:
        raise ValueError(
            f"babillage/ocrvqa: sample {prompt.sample_id}: expected a cover of OCR-VQA's split, got"
            f" {prompt.image_id}; {_public.OCR_VQA}"
        )
    asked, answered = _words(prompt.text), _words(prompt.answer)

    def likeness(item: items.Item) -> float:
        question, answer = (_words(turn.text) for turn in item.turns)
        common = len(question & asked) / max(1, len(question | asked))
        return common + len(answer & answered) / max(1, len(answer))

    return max(cover, key=likeness)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))
