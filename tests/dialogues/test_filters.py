import pytest

from mvjax.data.records import dataset
from mvjax.dialogues import filters

CAPTION = (
    "A white horse stands in the middle of a wide green field under a cloudy sky near an old barn."
)


def turns(*texts):
    return [dataset.Turn("assistant" if n % 2 else "user", text) for n, text in enumerate(texts)]


def why(text, *before, cut=False):
    return filters.utterance(text, turns(*before), caption=CAPTION, cut=cut)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", filters.EMPTY),
        ("?!", filters.EMPTY),
        (" ".join(f"word{'s' * n}" for n in range(61)), filters.TOO_LONG),
        ("As an AI, I wonder what it is", filters.ROLE),
        ("What does the other speaker see", filters.ROLE),
        ("What does the caption say?", filters.LEAKS),
        ("According to the text, what is it?", filters.LEAKS),
        ("I was told there is a horse, where is it?", filters.LEAKS),
        ("I'm sorry, but I can't assist with that.", filters.REFUSES),
        ("I am unable to view images.", filters.REFUSES),
        ("See www.horses.org for more", filters.UNSPEAKABLE),
        ("それは馬ですか", filters.UNSPEAKABLE),
        ("Is it {x}?", filters.UNSPEAKABLE),
        ("Is it in the middle of a wide green field under a cloudy sky?", filters.QUOTES),
    ],
)
def test_unfit_utterances_have_a_reason(text, reason):
    assert why(text) == reason


@pytest.mark.parametrize(
    "text",
    [
        "What's that in the middle of the field?",
        "I can't see a dog here. Can you?",
        "I'm sorry, where is the café?",
        "Could you give me a description?",
        "Is it twenty-one, or two?",
    ],
)
def test_fit_utterances_pass(text):
    assert why(text) is None


def test_an_assistant_may_describe_at_length_and_in_the_captions_words():
    assert why(CAPTION, "What do you see?") is None
    assert why(" ".join(["neigh"] * 61), "What does it say?") is None
    assert why(" ".join(["neigh"] * 121), "What does it say?") == filters.TOO_LONG


def test_cut_off_and_repeated_utterances():
    assert why("It is", cut=True) == filters.CUT_OFF
    assert why("Is it white?", "is it white", "Yes.") == filters.REPEATS
    assert why("is it white", "Is it white?") == filters.REPEATS  # the assistant as a parrot
    assert why("Yes, it is.", "Is it white?", "Yes it is!", "A horse?") is None
    long = "Yes, I can see a white horse there."
    assert why(long, "Is it white?", long, "A horse?") == filters.REPEATS


def test_dialogues_need_turns_and_questions():
    asking, telling = turns(*["Is it?", "Yes."] * 4), turns(*["Nice.", "Yes."] * 4)
    assert filters.dialogue(asking, pictured=True) is None
    assert filters.dialogue(asking[:6], pictured=True) == filters.TOO_FEW
    assert filters.dialogue(telling, pictured=True) == filters.NO_QUESTIONS
    assert filters.dialogue(telling, pictured=False) is None
    assert filters.dialogue(turns(*["tell me where", "here"] * 4), pictured=True) is None
