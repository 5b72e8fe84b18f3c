"""A benchmark asked while a run trains."""

import jax
import pytest
import toy

from mvjax.commands import training
from mvjax.digits import benchmark, recipe
from mvjax.eval import during_training, metrics, runner
from mvjax.train import callbacks


def test_the_current_adapters_answer_and_their_accuracies_are_metrics(monkeypatch):
    asked = []

    def evaluate(model, benchmark, questions, modes):
        asked.append((model.params, modes))
        kinds = dict.fromkeys(question.kind for question in questions)
        right = {"digit": 1.0}
        rows = [{"kind": kind, "n": 2, "text": right.get(kind, 0.5)} for kind in kinds]
        table = [*rows, {"kind": metrics.ALL, "n": len(questions), "text": 0.25}]
        return runner.Evaluation(questions, {}, None, table, {})

    monkeypatch.setattr(runner, "evaluate", evaluate)
    called = during_training.callback(
        recipe.digits(), benchmark=benchmark.DigitsBenchmark(), every=20, limit=12
    )
    assert called.every == 20 and called.name == "digits benchmark"
    frozen = {"backbone": {"kernel": 1}}
    state = callbacks.ModelState({"xa": {"kernel": 2}}, None, frozen)
    found = called.run(20, state)
    assert found["digits_accuracy"] == 0.25 and found["digits_accuracy/digit"] == 1
    assert found["digits_accuracy/colour"] == 0.5
    averaged = called.run(40, state._replace(ema={"xa": {"kernel": 3}}))
    assert averaged == found
    weights = [params["xa"]["kernel"] for params, modes in asked if modes == ["text"]]
    assert weights == [2, 3] and asked[0][0]["backbone"] == frozen["backbone"]


def test_several_processes_are_refused(monkeypatch):
    run, asked = toy.planned(), benchmark.DigitsBenchmark()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(
        ValueError, match="expected a run of one process, got 2; .* --benchmark digits"
    ):
        during_training.callback(run, benchmark=asked, every=20)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("digits", "--evaluate digits: expected NAME:N"),
        ("digits:0", "--evaluate digits:0: expected NAME:N"),
        ("digit:100", "--evaluate: unknown 'digit'; did you mean 'digits'?"),
    ],
)
def test_the_option_of_the_command(text, message):
    with pytest.raises(ValueError) as error:
        training._evaluation(text)
    assert message in str(error.value)
