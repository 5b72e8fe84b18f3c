"""TallyQA, the test split (38,589 counting questions): written questions, exact match.

    ROOT/tallyqa/test.json                                   tallyqa.zip of github.com/manoja328/tallyqa
    ROOT/coco/val2014/, ROOT/coco/train2014/                 cocodataset.org
    ROOT/visual-genome/VG_100K/, .../VG_100K_2/              visualgenome.org

The answer is all that the model writes until it ends its turn; an answer of one number word up to twenty
counts as the number, as in big_vision. The kinds are "simple" and "complex"; the last row is the mean over
all questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mvjax.data.ingest import items, tallyqa, templates
from mvjax.eval import benchmarks
from mvjax.eval.benchmarks import _public
from mvjax.eval.scoring import exact

_GET = "unpack tallyqa.zip of github.com/manoja328/tallyqa into ROOT/tallyqa"
_IMAGES = (
    f"{_public.COCO_IMAGES}, and VG_100K and VG_100K_2 of visualgenome.org into ROOT/visual-genome"
)


class TallyQa(benchmarks.Benchmark):
    """`truth` is the number, as text."""

    name = "tallyqa"

    def samples(self, limit: int | None, seed: int) -> Sequence[benchmarks.Sample]:
        """One sample a question."""
        source = _public.folder(self.root, "tallyqa", get=_GET)
        folders = [source.parent / "coco", source.parent / "visual-genome"]
        with _public.reading(source, get=_GET) as skips:
            questions = list(tallyqa.read(source, split="test", images=folders, skips=skips))
        paths = {item.id: _path(item, source.parent / "visual-genome") for item in questions}
        chosen = [questions[n] for n in benchmarks.drawn(len(questions), limit, seed)]
        _public.check_images([paths[item.id] for item in chosen], get=_IMAGES)
        return [
            benchmarks.Sample(
                id=item.id,
                kind=item.kinds[-1],
                prompt=item.turns[0].text,
                truth=item.facts["answers"],
                image=_public.image(paths[item.id]),
                shows=str(item.image),
            )
            for item in chosen
        ]

    def score(self, sample: Any, said: str) -> float:
        """Exact match of numbers."""
        return exact.number(templates.tidy(said), sample.truth)


def _path(item: items.Item, genome: Path) -> Path:
    """The file of a question's image; one of Visual Genome that is missing is missing there."""
    path = Path(str(item.image))
    ours = path.parent.name.startswith("VG_") and not path.is_file()
    return genome / path.parent.name / path.name if ours else path
