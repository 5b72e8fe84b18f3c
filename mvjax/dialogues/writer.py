"""Writes dialogues: a language model plays both roles, many at a time, into a store that resumes."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from mvjax.data.records import dataset
from mvjax.dialogues import captions, cleanup, endpoint, filters, prompts, store, topics

PAIRS = (4, 8)  # question-answer pairs, both included: 8 to 16 utterances
_ASK_AGAIN = 3  # times an utterance is asked for
_GIVE_UP = 10  # dialogues in a row that the endpoint may fail on; more if more are made at a time
_REPORT = 10.0  # seconds between lines of progress

UNANSWERED = "endpoint failed"


@dataclasses.dataclass(frozen=True)
class DialoguePlan:
    """One dialogue to be written; everything drawn for it follows from `id` and the run's seed."""

    id: str
    kind: str
    notes: str  # the caption, or a topic
    caption: captions.Caption | None = None
    image: str | None = None


@dataclasses.dataclass
class WriteSummary:
    """What a run did.

    Attributes:
      written: dialogues.
      skipped: dialogues that an earlier run had finished.
      dropped: dialogues that were given up, and will not be tried again.
      unanswered: dialogues that the endpoint failed on; the next run tries them again.
      rejected: how often an utterance or a dialogue was rejected, by reason.
      retries: requests that were repeated.
      tokens: that the model wrote.
    """

    written: int = 0
    skipped: int = 0
    dropped: int = 0
    unanswered: int = 0
    rejected: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    retries: int = 0
    tokens: int = 0

    def text(self) -> str:
        """A few lines for people."""
        lines = [
            f"{self.written} written, {self.skipped} there before, {self.dropped} dropped,"
            f" {self.unanswered} unanswered; {self.retries} requests repeated, {self.tokens} tokens"
        ]
        lines += [f"  rejected {n:6d}  {reason}" for reason, n in self.rejected.most_common()]
        return "\n".join(lines)


def visual_plans(
    source: Path, out: Path, kinds: Sequence[str], *, per_image: int = 1
) -> Iterator[DialoguePlan]:
    """`per_image` dialogues of every kind about every caption; raising it later adds dialogues.

    Raises:
      ValueError: as `captions.read`, and if there would be no dialogue.
    """
    if per_image < 1 or not kinds:
        raise ValueError(f"dialogues: expected at least one an image, got {per_image} of {kinds}")
    for caption in captions.read(source):
        image = captions.picture(caption, source=source, out=out)
        for kind in kinds:
            for n in range(per_image):
                name = f"{caption.id}.{kind.lower()}.{n}"
                yield DialoguePlan(name, kind, caption.caption, caption, image)


def unrelated_plans(count: int, *, seed: int) -> Iterator[DialoguePlan]:
    """Dialogues without a picture, about topics of ours."""
    for n in range(count):
        name = f"unrelated-{seed}-{n:06d}"
        yield DialoguePlan(name, prompts.UNRELATED.name, topics.draw(_rng(seed, name, "topic")))


def write(
    plans: Iterable[DialoguePlan],
    out: Path,
    asked: endpoint.Endpoint,
    *,
    concurrency: int = 32,
    tries: int = 5,
    seed: int = 0,
    report: Callable[[str], None] = print,
) -> WriteSummary:
    """Writes the dialogues that `out` does not hold yet, `concurrency` at a time.

    Args:
      plans: read lazily, in order.
      out: as `store.opened`.
      asked: the language model.
      concurrency: dialogues in the making, and connections.
      tries: how often a dialogue is begun before it is dropped (the reference's 5).
      seed: of lengths, instructions and requests.
      report: gets a line of progress now and then.

    Raises:
      ValueError: if the endpoint refuses every request, or answers none of the first ones.
    """
    if concurrency < 1 or tries < 1:
        raise ValueError(f"write: expected concurrency and tries >= 1, got {concurrency}, {tries}")
    with store.opened(out) as kept:
        run = _Run(kept, asked, tries=tries, seed=seed, report=report)
        asyncio.run(run.all(plans, concurrency))
    return run.summary


class _Run:
    """One run: workers that take plans, play them and keep them."""

    def __init__(self, kept: store.DialogueStore, asked: endpoint.Endpoint, *, tries, seed, report):
        self.summary = WriteSummary()
        self._kept, self._asked = kept, asked
        self._tries, self._seed = tries, seed
        self._report, self._began, self._reported = report, time.monotonic(), time.monotonic()
        self._failures, self._most_failures = 0, 0  # in a row

    async def all(self, plans: Iterable[DialoguePlan], concurrency: int) -> None:
        done = self._kept.done()
        left = iter(plans)
        self._most_failures = max(_GIVE_UP, concurrency)

        async def work(client: endpoint.Client) -> None:
            for plan in left:  # shared: a plan goes to whoever asks first
                if plan.id in done:
                    self.summary.skipped += 1
                else:
                    await self._one(plan, client)
                self._show(client)

        async with endpoint.Client(self._asked, connections=concurrency) as client:
            workers = [asyncio.create_task(work(client)) for _ in range(concurrency)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
                self.summary.retries = client.retries

    async def _one(self, plan: DialoguePlan, client: endpoint.Client) -> None:
        """Plays a plan until it comes out well, or `tries` times."""
        reasons = []
        for attempt in range(self._tries):
            try:
                made, reason = await self._play(plan, attempt, client)
            except endpoint.Unanswered as failure:
                self._unanswered(str(failure))
                return
            if made is not None:
                self._kept.add(made)
                self.summary.written += 1
                self._failures = 0
                return
            reasons.append(reason)
        self._kept.add(store.DroppedDialogue(plan.id, tuple(reasons)))
        self.summary.dropped += 1

    async def _play(
        self, plan: DialoguePlan, attempt: int, client: endpoint.Client
    ) -> tuple[store.WrittenDialogue | None, str]:
        """A dialogue, or why it is unfit."""
        rng = _rng(self._seed, plan.id, attempt)
        utterances = 2 * int(rng.integers(PAIRS[0], PAIRS[1] + 1))
        schedule = prompts.schedule(plan.kind, utterances, rng)
        turns: list[dataset.Turn] = []
        reason = ""
        while len(turns) < utterances:
            kind = schedule[len(turns)]
            text, reason = await self._utterance(plan, kind, turns, attempt, client)
            if reason:
                break
            turns.append(dataset.Turn("assistant" if len(turns) % 2 else "user", text))
        turns = turns[: len(turns) // 2 * 2]  # the assistant has the last word
        unfit = filters.dialogue(turns, pictured=plan.caption is not None)
        if unfit:
            self.summary.rejected[unfit] += 1
            return None, reason or unfit
        return store.WrittenDialogue(
            id=plan.id,
            turns=tuple(turns),
            kinds=tuple(schedule[n].name for n in range(0, len(turns), 2)),
            caption_id=plan.caption.id if plan.caption else None,
            caption=plan.caption.caption if plan.caption else None,
            image=plan.image,
            facts=plan.caption.facts if plan.caption else None,
            model=self._asked.model,
            seed=self._seed,
        ), ""

    async def _utterance(
        self,
        plan: DialoguePlan,
        kind: prompts.DialogueKind,
        turns: list[dataset.Turn],
        attempt: int,
        client,
    ) -> tuple[str, str]:
        """The next turn's text, or the reason why every answer was unfit."""
        chat = prompts.messages(kind, plan.notes, turns)
        caption = plan.notes if kind.pictured else ""
        reason = ""
        for again in range(_ASK_AGAIN):
            rng = _rng(self._seed, plan.id, attempt, len(turns), again)
            answer = await client.ask(chat, seed=int(rng.integers(2**31)))
            self.summary.tokens += answer.tokens
            text, cut = _said(answer, kind, turns, rng)
            reason = filters.utterance(text, turns, caption=caption, cut=cut) or ""
            if not reason:
                return text, ""
            self.summary.rejected[reason] += 1
        return "", reason

    def _unanswered(self, failure: str) -> None:
        self.summary.unanswered += 1
        self.summary.rejected[UNANSWERED] += 1
        self._failures += 1
        if self._failures >= self._most_failures:
            raise endpoint.Hopeless(
                f"{self._asked.completions}: expected answers from model {self._asked.model!r}, got none for"
                f" {self._failures} dialogues in a row; the last failure: {failure}; is the server up, and"
                " its context long enough? Run again to continue"
            )

    def _show(self, client: endpoint.Client) -> None:
        now = time.monotonic()
        if now - self._reported < _REPORT:
            return
        self._reported = now
        seconds, done = now - self._began, self.summary
        self._report(
            f"dialogues: {done.written} written ({done.written / seconds:.2f}/s, "
            f"{done.tokens / seconds:.0f} tokens/s), {done.skipped} there before, {done.dropped} dropped, "
            f"{done.unanswered} unanswered, {client.retries} requests repeated"
        )


def _said(
    answer: endpoint.ChatAnswer, kind: prompts.DialogueKind, turns: Sequence[dataset.Turn], rng
) -> tuple[str, bool]:
    """The cleaned words of an answer, and whether not even one sentence of them is whole."""
    text = cleanup.clean(answer.text, rng)
    if answer.cut:
        text = cleanup.whole_sentences(text)
        return text, not text
    if turns and len(turns) % 2:
        text = cleanup.without_echo(text, turns[-1].text)
    elif not turns and kind.name == prompts.COMB:
        text = cleanup.first_question(text)
    return text, False


def _rng(*key: object) -> np.random.Generator:
    """Draws that follow from the key alone, on every machine."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))
