"""What a chat completion says: reasoning is none of it, and without words there is a reason."""

import json

import pytest

from mvjax.dialogues import completion

SAID = "Is it red?"


def body(content, *, finish="stop", usage=None, **message):
    message = {"role": "assistant", "content": content, **message}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


@pytest.mark.parametrize(
    "written",
    [
        f"<think>\nShort. Maybe </b>.\n</think>\n\n{SAID}",
        f"Short, the template began it.</think>{SAID}",
        f"<think>one</think> so <think>two</think>{SAID}",
        f"<THINKING>Short.</THINKING >{SAID}".replace(" >", ">"),
        f"<seed:think>Short.</seed:think>{SAID}",
        f"[THINK]Short.[/THINK]{SAID}",
        f"◁think▷Short.◁/think▷{SAID}",
        f"<|START_THINKING|>Short.<|END_THINKING|><|START_RESPONSE|>{SAID}<|END_RESPONSE|>",
        f"<|channel|>analysis<|message|>Short.<|end|><|start|>assistant<|channel|>final<|message|>{SAID}",
        f"analysisThey want it short.assistantfinal{SAID}",
        [{"type": "thinking", "thinking": [{"text": "Short."}]}, {"type": "text", "text": SAID}],
    ],
)  # fmt: skip
def test_reasoning_is_dropped_to_its_end(written):
    assert completion.parse(body(written)).text.strip() == SAID


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (body("<think>They want", finish="length"), "all tokens went into reasoning: raise --max"),
        (body("<|channel|>analysis<|message|>They"), "reasoning without an answer"),
        (body("<think>Short.</think>\n"), "reasoning without an answer"),
        (body(None, finish="length", reasoning_content="They"), "all tokens went into reasoning"),
        (body("", finish="length", reasoning="They"), "all tokens went into reasoning"),
        (body(None, refusal="I will not."), "refused: I will not."),
        (body(None), "no content, finish_reason 'stop'"),
        (body("", finish="content_filter"), "no content, finish_reason 'content_filter'"),
    ],
)
def test_reasoning_without_an_end_is_no_answer(said, reason):
    with pytest.raises(completion.NoAnswer, match=reason):
        completion.parse(said)


@pytest.mark.parametrize(
    "usage", [None, {}, {"completion_tokens": None}, [], {"completion_tokens": "?"}]
)
def test_usage_does_not_matter(usage):
    assert completion.parse(body(SAID, usage=usage)) == completion.ChatAnswer(SAID, False, 0)


def test_usage_is_counted_where_it_is_told():
    assert completion.parse(body(SAID, usage={"completion_tokens": 7})).tokens == 7


def test_a_model_may_choose_to_say_nothing():
    assert completion.parse(body("")).text == ""


@pytest.mark.parametrize("finish", ["error", "abort"])
def test_a_generation_that_broke_off_is_damaged(finish):
    with pytest.raises(completion.DamagedAnswer, match=finish):
        completion.parse(body(SAID, finish=finish))


def test_cut_answers_are_marked():
    cuts = {
        f: completion.parse(body(SAID, finish=f)).cut for f in ("length", "content_filter", None)
    }
    assert cuts == {"length": True, "content_filter": True, None: False}
