"""What the quickstart's report claims: accuracies with intervals, and no more than this session did."""

import dataclasses
import json

import numpy as np
import pytest

from mvjax import files
from mvjax.digits import benchmark, page, recipe, stages, voice_check
from mvjax.eval import answering, benchmarks, codec_check, metrics, runner, switching
from mvjax.eval import model as eval_model
from mvjax.eval import results as results_lib
from mvjax.export import model_card
from mvjax.report import html
from mvjax.weights import mimi

NAN = float("nan")
SENTENCE = voice_check.Sentence(
    "it is red",
    {side: (np.full(9, n / 9, np.float32), []) for n, side in enumerate(voice_check.SIDES)},
)
WHOLE = html.Stage("all", 271.0, 1.9)


def _table(text: float, audio: float) -> list[dict]:
    shares = {"text": text, "audio": audio, "blind": 0.1, "shuffled": 0.2, "chance": 0.15}
    return [
        {"kind": kind, "n": n, **shares} for kind, n in (("digit", 48), ("yesno", 48), ("all", 96))
    ]


def _evaluation(table: list[dict]) -> runner.Evaluation:
    *kinds, mean = table
    counts = [row["n"] for row in kinds]
    intervals = {mode: metrics.interval(mean[mode], counts) for mode in benchmarks.MODES}
    return runner.Evaluation([], {}, table, intervals)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> stages.QuickstartResults:
    out = tmp_path_factory.mktemp("quickstart")
    plan = stages.plan(out, short=False)
    plan.run.mkdir()
    losses = {name: 0.5 for name in page._CURVES}
    lines = [json.dumps({"step": step, **losses}) for step in (1, 2)]
    (plan.run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    codec = mimi.open_codec(files.resolve(plan.config.frozen.codec), plan.config.codec)
    exchanges = [
        switching.Exchange("image", "q", "a", (0, 9), (0, 3), (4, 6), 0.2, 0.5),
        switching.Exchange("small talk", "q", "", (9, 12), (9, 10), None, NAN, NAN),
    ]
    return stages.QuickstartResults(
        plan=plan,
        model=eval_model.LoadedModel(recipe.digits(), {}, codec, None),
        evaluation=_evaluation(_table(0.95, 0.8)),
        certificates={},
        speech=stages.SpeechResults(
            examples=[html.ExampleKind("yesno", 0, 0, [])],
            trace=switching.GateTrace(exchanges, np.full((2, 12), 0.1), [], np.zeros(9)),
            codec=codec_check.CodecAccuracy(0.9, 0.8, 0.1, 50, 9),
            answer_accuracy=NAN,
            answer_words=0,
            sentences=[SENTENCE],
        ),
    )


def changed(results: stages.QuickstartResults, table=None, **plan) -> stages.QuickstartResults:
    """The results of another plan, or with another table."""
    evaluation = _evaluation(table or results.evaluation.table)
    plan = dataclasses.replace(results.plan, **plan)
    return dataclasses.replace(results, plan=plan, evaluation=evaluation)


def test_the_whole_page_without_a_number_that_is_none(results):
    text = html.render(page.compose(results, [WHOLE]))
    assert "learned to see digits" in text and "unknown (it is silent) in small talk" in text
    assert ">nan" not in text and " nan" not in text and "yes or no" in text


def test_accuracies_have_the_interval_of_their_questions(results):
    first, *_ = page._tiles(results, WHOLE)
    low, high = metrics.interval(0.95, [96])
    assert first.value == "95.0%"
    assert first.target.startswith(f"95% interval {100 * low:.1f} to {100 * high:.1f};")
    kind, _, mean = page._accuracy(results.evaluation.table)
    assert kind.shares["text"] == html.Share(0.95, metrics.interval(0.95, [48]))
    assert mean.shares["audio"] == html.Share(0.8, metrics.interval(0.8, [48, 48]))
    assert mean.shares["chance"] == html.Share(0.15)
    written = stages.summary(results)["accuracy_interval"]
    assert written["text"] == pytest.approx((low, high))


@pytest.mark.parametrize(("text", "audio"), [(0.95, 0.74), (0.89, 0.8)])
def test_a_run_below_a_target_does_not_claim_to_have_learned(results, text, audio):
    assert "learned" not in page._title(changed(results, _table(text, audio)))


def test_a_short_run_does_not_claim_to_have_learned(results):
    short = changed(results, short=True)
    assert "learned" not in page._title(short)
    assert {tile.met for tile in page._tiles(short, WHOLE)} == {None}


def test_a_continued_run_does_not_claim_its_whole_time(results):
    *_, time, _ = page._tiles(results, WHOLE)
    assert (time.value, time.name, time.met) == ("4 min 31 s", "from start to report", True)
    *_, time, _ = page._tiles(changed(results, continued=True), WHOLE)
    assert "the run began in an earlier one" in time.name and (time.target, time.met) == ("", None)


@pytest.mark.parametrize("short", [False, True])
def test_a_run_is_continued_if_its_records_are_there(tmp_path, short):
    first = stages.plan(tmp_path, short=short)
    (tmp_path / ("data-short" if short else "data")).mkdir()
    assert (first.continued, stages.plan(tmp_path, short=short).continued) == (False, True)
    assert not stages.plan(tmp_path, short=not short).continued


def test_the_cards_of_the_exports_hold_steps_and_results(results, monkeypatch):
    picture = np.zeros((48, 48, 3), np.uint8)
    sample = benchmarks.Sample("0", "yesno", "?", image=lambda: picture)
    streams = eval_model.Streams(np.zeros(100, np.int32), *[np.zeros((8, 100), np.int32)] * 2)
    spoken = {"0": answering.SpokenConversation(streams, 3, 6)}
    evaluation = dataclasses.replace(results.evaluation, samples=[sample] * 2, spoken=spoken)
    written = {}
    monkeypatch.setattr(stages.certificate, "certify", lambda *_, **__: {})
    monkeypatch.setattr(
        stages.export_folder, "export", lambda *args, results: written.update({args[2]: results})
    )
    plan, digits = results.plan, benchmark.DigitsBenchmark()
    asked = results_lib.Asked(digits, plan.config, 400, "", digits.protocol, 1, 288, 64)
    results_lib.write(plan.run / "eval" / "digits.json", evaluation, asked)
    stages.export(results.model, evaluation, plan)
    assert list(written) == list(stages.TARGETS)
    for given in written.values():
        how = {"dtype": None, "quantization": None, "results": given}
        card = model_card.text({"xa": np.zeros(3)}, results.plan.config, "torch", **how)
        assert "400 steps" in card and "| all | 96 | 0.95 | 0.8 |" in card
        assert "unknown" not in card and "No results" not in card
