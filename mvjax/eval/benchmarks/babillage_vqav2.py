"""Babillage's spoken VQAv2, the validation split (214,354 questions): spoken questions, VQA accuracy.

    ROOT/babillage/vqav2/validation-*.parquet                kyutai/Babillage of huggingface.co
    ROOT/vqav2/, ROOT/coco/val2014/                          as for `vqav2`

A row's sample_id is VQAv2's question id. The answer is all that the model writes from the end of the
question to the end of the tail, normalized as the official evaluator does. With text prompts the transcript
is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mvjax import messages
from mvjax.eval import benchmarks
from mvjax.eval.benchmarks import _babillage, _public, vqav2
from mvjax.eval.scoring import vqa


class BabillageVqav2(benchmarks.Benchmark):
    """`truth` are the ten human answers."""

    name = "babillage_vqav2"
    metric = "VQA accuracy"
    modes = ("audio", "text")
    protocol = _babillage.PROTOCOL

    def samples(self, limit: int | None, seed: int) -> Sequence[benchmarks.Sample]:
        """One sample a question."""
        spoken = _babillage.prompts(self.root, "vqav2", "validation")
        annotations = {question.question_id: (question, a) for question, a in vqav2.read(self.root)}
        unknown = [str(p.sample_id) for p in spoken if p.sample_id not in annotations]
        if unknown:
            raise ValueError(
                f"{self.root}/babillage/vqav2: expected questions of VQAv2's validation split, got"
                f" {messages.names(unknown, shown=8)}; {_public.VQAV2}"
            )
        chosen = [spoken[n] for n in benchmarks.drawn(len(spoken), limit, seed)]
        answered = [(prompt, *annotations[prompt.sample_id]) for prompt in chosen]
        paths = vqav2.image_paths(self.root, [question.image_id for _, question, _ in answered])
        return [
            benchmarks.Sample(
                id=f"babillage-vqav2-{prompt.sample_id}",
                kind=annotation.answer_type,
                prompt=prompt.text,
                truth=[given.answer for given in annotation.answers],
                image=_public.image(paths[question.image_id]),
                shows=question.image_id,
                speech=prompt.speech,
            )
            for prompt, question, annotation in answered
        ]

    def score(self, sample: Any, said: str) -> float:
        """VQA accuracy."""
        return vqa.accuracy(said, sample.truth)
