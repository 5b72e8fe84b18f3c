import re

import numpy as np
import pytest

from mvjax.data.records import dataset
from mvjax.dialogues import cleanup, filters, speakable


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
        ("9876543210123456",
         "nine eight seven six five four three two one zero one two three four five six"),
    ],
)  # fmt: skip
def test_numbers_and_symbols_become_words(written, said):
    assert " ".join(speakable.spell(written).split()) == said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("3/4 of the picture", "three quarters of the picture"),
        ("1/2, 2/3rds, 1/8, 5/16", "one half, two thirds, one eighth, five sixteenths"),
        ("½ of it, 1½ cups, 2 3/4, ⅔",
         "one half of it, one and a half cups, two and three quarters, two thirds"),
        ("3/4 km, 1 1/2 km, 1/2 oz",
         "three quarters of a kilometer, one and a half kilometers, one half of an ounce"),
        ("8/10, 1/10, 24/7, 50/50", "eight out of ten, one tenth, twenty-four seven, fifty fifty"),
        ("his/her and/or N/A", "his or her and or not available"),
        ("$1.50, $1, $1.05, $0.99",
         "one dollar fifty, one dollar, one dollar and five cents, ninety-nine cents"),
        ("£1, £0.50, €1, 1€, 5 €", "one pound, fifty pence, one euro, one euro, five euros"),
        ("$5M, $5k, $5-10, US$5, -$5",
         "five million dollars, five thousand dollars, five to ten dollars, US five dollars, "
         "minus five dollars"),
        ("$5/hour, $1,200.50", "five dollars per hour, one thousand two hundred dollars fifty"),
        ("1 km, 2 km, 1.5 km, 0.5 m",
         "one kilometer, two kilometers, one point five kilometers, zero point five meters"),
        ("1 ft, 6 ft, 100 lbs, 1%", "one foot, six feet, one hundred pounds, one percent"),
        ("60 km/h, 1 km/h, 5 m/s, 1 mph",
         "sixty kilometers per hour, one kilometer per hour, five meters per second, one mile per hour"),
        ("5 m², 1 km2, in km/h", "five square meters, one square kilometer, in kilometers per hour"),
        ("-5°C, 1°F, 20°-30°",
         "minus five degrees Celsius, one degree Fahrenheit, twenty degrees to thirty degrees"),
        (".5 miles, 1.50, (-3)", "zero point five miles, one point five zero, (minus three)"),
        ("a 5'10\" man, 6' tall, 5\" wide", "a five foot ten man, six feet tall, five inches wide"),
        ("8:00 PM, 8:30 am, 10:15:30", "eight PM, eight thirty am, ten fifteen and thirty seconds"),
        ("4:3, 2020-01-05, 1995-2004",
         "four to three, January fifth twenty twenty, nineteen ninety-five to two thousand and four"),
        ("the 1900s, 2010s, two 5s", "the nineteen hundreds, twenty tens, two fives"),
        ("the 1,000th, v1.2.3, 1.000.000",
         "the one thousandth, v one point two point three, one million"),
        ("555-123-4567 or 1,2,3",
         "five five five, one two three, four five six seven or one, two, three"),
        ("room No. 7, a 1:10 scale, 20/20", "room number seven, a one to ten scale, twenty twenty"),
        ("No. 5 are red.", "No. five are red."),
        ("#1, 3x, 2000 kg", "number one, three times, two thousand kilograms"),
        ("cafe\u0301 it´s", "café it's"),
    ],
)  # fmt: skip
def test_facts_survive_being_spelled(written, said):
    assert " ".join(speakable.spell(written).split()) == said


@pytest.mark.parametrize(
    "written",
    ["on 9/11/2001", "9/11", "16/9", "3/4/21", "25.12.2020", "10^6", "2**3", "1,5 m", "2020-13-05", "10² m",
     "5 < 6", "¥500", "#cat", "±5", "≈5", "\u2460 and", "5″ pipe", "p/100"],
)  # fmt: skip
def test_what_has_no_certain_reading_is_refused(written):
    turns = [dataset.Turn("user", "What is it?")]
    assert filters.utterance(clean(written), turns, caption="", cut=False) == filters.UNSPEAKABLE


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("3. Two on the left.", "three. Two on the left."),
        ("1. A cat\n2. A dog", "A cat A dog"),
        ("A 5:30 train is leaving.", "A five thirty train is leaving."),
        ("2*3 is six, 5~10, ~20 cats", "two times three is six, five to ten, about twenty cats"),
        ("**3** cats, ~~2 dogs~~, red|blue", "three cats, two dogs, red blue"),
    ],
)  # fmt: skip
def test_markup_takes_no_fact_away(written, said):
    assert clean(written) == said


def test_no_text_ends_the_run_and_none_keeps_a_digit_unless_it_is_refused():
    rng = np.random.default_rng(0)
    parts = [
        *"0123456789" * 3,
        *"./,:;-$€£%°x'\"()*~#+=&@ ",
        "km",
        "s",
        "½",
        "²",
        "No. ",
        "am",
        "st",
    ]
    parts += ["th", "2020-", "k", "/h", "\n", "e\u0301", "№", "\u0663", "9" * 20]
    for _ in range(500):
        said = clean("".join(rng.choice(parts, size=rng.integers(1, 14))))
        spoken = filters.utterance(said, [], caption="", cut=False) is None
        assert not (spoken and re.search(r"\d", said)), said


AROUND = (
    "{} cups",
    "{}% of it",
    "${}",
    "{} km",
    "-{}",
    "~{} of them",
    "({})",
    "{}.",
    "*{}*",
    "{}°",
)


@pytest.mark.parametrize("around", AROUND)
def test_every_number_is_said_whatever_is_around_it(around):
    for number in range(0, 1000, 7):
        said = cleanup.words(clean(around.format(number)))
        assert set(cleanup.words(speakable.spell(str(number)))) <= set(said), said


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
