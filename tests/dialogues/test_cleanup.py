import numpy as np
import pytest

from mvjax.dialogues import cleanup, speakable


def clean(text, seed=0):
    return cleanup.clean(text, np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ('**User:** "What is that?"', "What is that?"),
        ("Question: Answer: Is that a cat? 😀", "Is that a cat?"),
        ("Speaker 1 (curious): Is it red?", "Is it red?"),
        ("Answer (smiling): Yes!", "Yes!"),
        ("*smiles warmly* It is a *very* big dog.", "It is a very big dog."),
        ("It's big (laughs).", "It's big."),
        ("[points] There, on the left.", "There, on the left."),
        ("- first\n- second\n1. third", "first second third"),
        ("# A title\nIt has `code` and __bold__ words", "A title It has code and bold words"),
        ("See [the link](http://a.b/c) there", "See the link there"),
        ("A cap (green) lies -- or hangs -- there; look…", "A cap, green, lies, or hangs, there, look."),
        ("It's a “PAN” cap, and 'tis 'PAN' again", "It's a PAN cap, and tis PAN again"),
        ("What is it?\nAssistant: It is a cat.", "What is it?"),
        ("Really?!?", "Really?"),
        ("<b>Bold</b> ```x = 1``` move", "Bold move"),
        ("", ""),
        ("***", ""),
    ],
)  # fmt: skip
def test_markup_directions_and_speakers_go(written, said):
    assert clean(written) == said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("3 cats and 1,200 dogs", "three cats and one thousand two hundred dogs"),
        ("25% of 3.5kg", "twenty-five percent of three point five kilograms"),
        ("built in 1995 or 2004", "built in nineteen ninety-five or two thousand and four"),
        ("at 10:30 or 9:05 or 8:00", "at ten thirty or nine oh five or eight o'clock"),
        ("the '90s and the 1920s", "the nineties and the nineteen twenties"),
        ("the 2nd, 21st & 3rd", "the second, twenty-first and third"),
        ("$12.50, €3 million, £7", "twelve dollars fifty, three million euros, seven pounds"),
        ("2 x 4 or 5-6", "two by four or five to six"),
        ("flight A380, bus 007", "flight A three hundred and eighty, bus zero zero seven"),
        ("e.g. tea, coffee, etc.", "for example tea, coffee, and so on"),
        ("20°C @ noon", "twenty degrees Celsius at noon"),
        ("9876543210123456", "nine eight seven six five four three two one zero one two three four five six"),
    ],
)  # fmt: skip
def test_numbers_and_symbols_become_words(written, said):
    assert " ".join(speakable.spell(written).split()) == said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("The image description doesn't mention a dog.", "The image doesn't show a dog."),
        ("Its colour is not specified.", "Its colour is not visible."),
        ("There's no mention of a hat.", "There's no sign of a hat."),
    ],
)
def test_talk_about_a_description_becomes_talk_about_a_picture(written, said):
    assert clean(written) == said


def test_stock_phrases_are_thinned_not_banned():
    kept = [clean("Well, it is red, isn't it?", seed) for seed in range(400)]
    starts = np.mean([text.startswith("Well") for text in kept])
    ends = np.mean([text.endswith("isn't it?") for text in kept])
    assert abs(starts - 0.2) < 0.06 and abs(ends - 0.2) < 0.06
    assert "It is red." in kept and "Well, it is red." in kept
    assert clean("Well, yes.", 3) == clean("Well, yes.", 3)


def test_echo_of_the_question_and_second_questions_go():
    assert cleanup.without_echo("Is it red? Yes it is.", "is it red") == "Yes it is."
    assert cleanup.without_echo("Red? Yes.", "is it red") == "Red? Yes."
    assert cleanup.first_question("What is it? And where?") == "What is it?"
    assert cleanup.first_question("Tell me.") == "Tell me."


def test_a_cut_answer_keeps_its_whole_sentences():
    assert cleanup.whole_sentences("It is red. It has a large and") == "It is red."
    assert cleanup.whole_sentences("It has a large and") == ""
