"""How questions about several digits are worded; the words, and the answers, are those of `digits.wordings`.

Placeholders: {name} is a bare value ("seven"), {A} and {Y} are values as said in a sentence ("a seven",
"red", "at the top left"), {R} refers to a digit ("the seven", "the red digit", "the number at the top
left"). "digits" and "numbers" are spelled by the tokenizer; all other words are whole tokens.
"""

from __future__ import annotations

REFER = {
    "digit": ("the {name}",),
    "colour": ("the {name} digit", "the {name} number"),
    "place": ("the digit {Y}", "the number {Y}"),
}  # fmt: skip

DIGIT = {  # by what refers to it; a digit is not asked for by itself
    "digit": (),
    "colour": (
        "what digit is {name}", "which number is {name}", "tell me the {name} digit",
        "name the {name} number please",
    ),
    "place": (
        "what digit is {Y}", "which digit do you see {Y}", "what is the number {Y}",
        "tell me the digit {Y}",
    ),
}  # fmt: skip
COLOUR = (
    "what colour is {R}", "which colour has {R}", "tell me the colour of {R}",
    "what is the colour of {R}",
)  # fmt: skip
PLACE = ("where is {R}", "where do you see {R}", "tell me where {R} is", "in which place is {R}")
YESNO = ("is {R} {A}", "would you say {R} is {A}")
MISLEADING = ("why is {R} {A}", "how come {R} is {A}", "tell me why {R} is {A}")
BESIDE = (
    "which digit is {side} of {R}", "what number is {side} of {R}", "what do you see {side} of {R}",
    "tell me the digit {side} of {R}",
)  # fmt: skip
COUNT = (
    "how many digits do you see", "how many numbers are there", "how many digits are in the picture",
    "count the digits please",
)  # fmt: skip
SUM = (
    "what do the digits make", "what do all the numbers make", "tell me what they all make",
    "what number do they make",
)  # fmt: skip

NUMBER = ("the number is {name}", "this is the number {name}")  # answers to COUNT and SUM
