"""Writing dialogues with a stand-in for the language model that speaks real HTTP."""

import collections
import os
import signal
import subprocess
import sys
import threading

import pytest
import standin_llm

from mvjax.dialogues import endpoint, filters, prompts, store, writer


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    return standin_llm.captions(tmp_path_factory.mktemp("captions"), 3)


def write(server, source, out, *, kinds=("COMB",), per_image=1, **options):
    plans = writer.visual_plans(source, out, kinds, per_image=per_image)
    asked = endpoint.Endpoint(server.url, first_wait=0.01, attempts=3, timeout=20.0)
    options = {"report": lambda line: None, "concurrency": 4} | options
    return writer.write(plans, out, asked, **options)


def by_id(path):
    return {dialogue.id: dialogue for dialogue in store.read(path)}


@pytest.mark.parametrize("suffix", [".jsonl", ".db"])
def test_every_kind_is_written_with_what_it_was_made_from(captions, tmp_path, suffix):
    out = tmp_path / f"d{suffix}"
    with standin_llm.serving() as server:
        summary = write(server, captions, out, kinds=prompts.KINDS)
    made = by_id(out)
    assert (summary.written, summary.dropped, summary.unanswered) == (24, 0, 0)
    assert set(made) == {f"test-0-{n:05d}.{k.lower()}.0" for n in range(3) for k in prompts.KINDS}
    for dialogue in made.values():
        assert 8 <= len(dialogue.turns) <= 16 and len(dialogue.turns) % 2 == 0
        assert [t.speaker for t in dialogue.turns[:3]] == ["user", "assistant", "user"]
        assert len(dialogue.kinds) == len(dialogue.turns) // 2
        assert dialogue.id.startswith(dialogue.caption_id)
        assert dialogue.caption.startswith("On a dark canvas")
        assert (out.parent / dialogue.image).is_file() and dialogue.facts["colour"]
        kind = dialogue.id.split(".")[1].upper()
        assert kind == "COMB" or set(dialogue.kinds) == {kind}
    mixed = [d.kinds for d in made.values() if ".comb." in d.id]
    assert all(kinds[0] == "COMB" for kinds in mixed)
    assert len({kind for kinds in mixed for kind in kinds}) > 3
    assert len({len(d.turns) for d in made.values()}) == 5


def test_unrelated_dialogues_have_no_picture(tmp_path):
    out = tmp_path / "d.jsonl"
    with standin_llm.serving() as server:
        asked = endpoint.Endpoint(server.url)
        summary = writer.write(writer.unrelated_plans(5, seed=3), out, asked)
    made = by_id(out)
    assert summary.written == len(made) == 5
    assert all(d.image is None and d.caption is None for d in made.values())
    assert all(set(d.kinds) == {"UNRELATED"} for d in made.values())


def test_dialogues_do_not_depend_on_how_many_are_made_at_once(captions, tmp_path):
    with standin_llm.serving(delay=0.005) as server:
        write(server, captions, tmp_path / "one.jsonl", per_image=3, concurrency=1)
        alone, server.busiest = server.busiest, 0
        write(server, captions, tmp_path / "many.jsonl", per_image=3, concurrency=5)
        write(server, captions, tmp_path / "other.jsonl", per_image=3, seed=1)
    assert alone == 1 and 3 <= server.busiest <= 5
    one, many, other = (by_id(tmp_path / f"{name}.jsonl") for name in ("one", "many", "other"))
    assert one == many != other and set(one) == set(other)


def test_faults_of_the_server_are_survived_and_change_nothing(captions, tmp_path):
    faults = {3: 429, 10: 500, 11: 503, 17: "drop", 23: "junk"}
    with standin_llm.serving() as server:
        write(server, captions, tmp_path / "calm.jsonl", concurrency=1)
    with standin_llm.serving(faults=faults) as server:
        summary = write(server, captions, tmp_path / "storm.jsonl", concurrency=1)
    assert summary.retries == len(faults)
    assert by_id(tmp_path / "calm.jsonl") == by_id(tmp_path / "storm.jsonl")


def test_what_the_server_fails_on_is_counted_and_tried_again(captions, tmp_path):
    out = tmp_path / "d.jsonl"
    with standin_llm.serving(faults={5: 400}) as server:
        first = write(server, captions, out, concurrency=1)
        second = write(server, captions, out)
    assert (first.written, first.unanswered) == (2, 1)
    said = f'{writer.UNANSWERED}: 400 {{"error": {{"message": "fault 400"}}}}'
    assert first.rejected[said] == 1
    assert (second.written, second.skipped, second.unanswered) == (1, 2, 0)


ONLY_REASONING = (
    b'{"choices": [{"message": {"content": null, "reasoning_content": "They want it short."},'
    b' "finish_reason": "length"}]}'
)


def test_reasoning_alone_is_unanswered_and_a_repaired_server_is_asked_again(captions, tmp_path):
    out, told = tmp_path / "d.jsonl", []
    with standin_llm.serving(faults={"*": ONLY_REASONING}) as server:
        first = write(server, captions, out, report=told.append)
        assert len(server.requests) == 9  # three seeds for the first utterance of each dialogue
        server.faults = {}
        second = write(server, captions, out)
    assert (first.written, first.dropped, first.unanswered) == (0, 0, 3)
    ((reason, count),) = first.rejected.items()
    assert count == 3 and "all tokens went into reasoning: raise --max-tokens" in reason
    assert len(told) == 1 and told[0].endswith(reason.removeprefix(f"{writer.UNANSWERED}: "))
    assert (second.written, second.skipped) == (3, 0)


def test_one_answer_of_reasoning_alone_costs_a_request_not_the_dialogue(captions, tmp_path):
    with standin_llm.serving(faults={3: ONLY_REASONING}) as server:
        summary = write(server, captions, tmp_path / "d.jsonl", concurrency=1)
    assert (summary.written, summary.unanswered) == (3, 0)


def test_reasoning_is_never_written_down(captions, tmp_path):
    def wrap(text, n):
        return f"<think>Secret thought {n}.</think>\n\n{text}"

    with standin_llm.serving(wrap=wrap) as server:
        write(server, captions, tmp_path / "thinking.jsonl", concurrency=1)
        server.wrap = lambda text, n: text
        write(server, captions, tmp_path / "plain.jsonl", concurrency=1)
    assert by_id(tmp_path / "thinking.jsonl") == by_id(tmp_path / "plain.jsonl")


def test_many_reasons_are_capped_and_counted():
    summary = writer.WriteSummary()
    summary.rejected.update(f"reason {n}" for n in range(50))
    assert len(summary.text().splitlines()) == 22 and summary.text().endswith("and 30 more")


def test_a_server_that_answers_nothing_stops_the_run(captions, tmp_path):
    with (
        standin_llm.serving(faults={"*": 500}) as server,
        pytest.raises(
            endpoint.EndpointRefuses, match="none for 10 dialogues in a row; the last.*fault 500"
        ),
    ):
        write(server, captions, tmp_path / "d.jsonl", per_image=4)
    assert not by_id(tmp_path / "d.jsonl")


MESSES = {
    "too long": lambda text: "word " * 121,
    "mentions a role": lambda text: f"As an AI, {text}",
    "refuses": lambda text: "I'm sorry, but I can't assist with that.",
    "cannot be spoken": lambda text: "https://example.org",
    "mentions notes or instructions": lambda text: f"The caption says {text}",
    "says nothing": lambda text: "*nods*",
}


def test_unfit_answers_are_counted_by_reason_and_asked_for_again(captions, tmp_path):
    messes = dict(zip((2, 8, 14, 20, 26, 32), MESSES, strict=True))

    def wrap(text, n):
        return MESSES[messes[n]](text) if n in messes else f"**Answer:** {text}"

    with standin_llm.serving(wrap=wrap) as server:
        summary = write(server, captions, tmp_path / "d.jsonl", concurrency=1)
    assert summary.written == 3
    assert {r: summary.rejected[r] for r in MESSES} == dict.fromkeys(MESSES, 1)
    assert "rejected      1  refuses" in summary.text()
    said = [t.text for d in store.read(tmp_path / "d.jsonl") for t in d.turns]
    assert not any("*" in text or "nswer:" in text for text in said)


def test_hopeless_dialogues_are_dropped_with_reasons_and_not_tried_again(captions, tmp_path):
    out = tmp_path / "d.jsonl"
    with standin_llm.serving(wrap=lambda text, n: "As an AI, no.") as server:
        first = write(server, captions, out, tries=2)
        asked = len(server.requests)
        second = write(server, captions, out, tries=2)
    assert (first.written, first.dropped) == (0, 3)
    assert asked == len(server.requests) == 3 * 2 * 3  # dialogues, tries, times an utterance
    assert first.rejected == {filters.ROLE: 18, filters.TOO_FEW: 6}
    assert second.skipped == 3
    assert (
        '"reasons":["mentions a role","mentions a role"]'
        in (tmp_path / "d.dropped.jsonl").read_text()
    )


def test_more_per_image_adds_and_keeps(captions, tmp_path):
    out = tmp_path / "d.db"
    with standin_llm.serving() as server:
        write(server, captions, out)
        before = by_id(out)
        summary = write(server, captions, out, per_image=2)
    assert (summary.skipped, summary.written) == (3, 3)
    assert before.items() < by_id(out).items()


@pytest.mark.parametrize("suffix", [".jsonl", ".db"])
def test_a_killed_run_loses_at_most_what_was_in_the_making(captions, tmp_path, suffix):
    out, whole = tmp_path / f"d{suffix}", tmp_path / "whole.jsonl"
    running = {}
    killed = threading.Event()

    def wrap(text, n):
        if n == 40:
            os.kill(running["process"].pid, signal.SIGKILL)
            killed.set()
        return text

    with standin_llm.serving(wrap=wrap, delay=0.002) as server:
        argv = ["dialogues", "write", str(captions), "--out", str(out), "--per-image", "3"]
        argv += ["--endpoint", server.url, "--concurrency", "2"]
        running["process"] = subprocess.Popen(
            [sys.executable, "-m", "mvjax", *argv], cwd=os.getcwd(), stdout=subprocess.DEVNULL
        )
        assert running["process"].wait(timeout=120) == -signal.SIGKILL and killed.is_set()
        server.wrap = lambda text, n: text
        survived = by_id(out)
        finished = write(server, captions, out, per_image=3)
        write(server, captions, whole, per_image=3)
    assert survived and 9 - len(survived) == finished.written
    assert by_id(out) == by_id(whole)
    assert survived.items() < by_id(out).items()
    requests = collections.Counter(r["seed"] for r in server.requests)
    assert max(requests.values()) <= 3  # twice, and once more for those in the making


def test_wrong_numbers_are_refused(captions, tmp_path):
    asked = endpoint.Endpoint("http://localhost:1")
    with pytest.raises(ValueError, match="concurrency and tries >= 1, got 0, 5"):
        writer.write([], tmp_path / "d.jsonl", asked, concurrency=0)
