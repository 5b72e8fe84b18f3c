"""What people say about the digits world: question and answer wordings, and small talk.

Placeholders: {name} is a bare value ("seven"). {A}, {X}, {Y} are values as said in a sentence ("a
seven", "red", "at the top left"): {A} and {X} the asked one, {Y} the true one. {scene} is "a red
seven at the top left".
"""

from __future__ import annotations

QUESTIONS = {
    "digit": (
        "what digit is this", "which digit do you see", "what number is it",
        "which number is in the picture", "tell me the digit", "what is the number here",
        "can you read the digit", "name the number please",
    ),
    "colour": (
        "what colour is it", "which colour is the digit", "what colour do you see",
        "tell me the colour", "which colour does the number have", "in what colour is it drawn",
        "name the colour please", "what is its colour",
    ),
    "place": (
        "where is it", "where is the digit", "where do you see the number", "in which place is it",
        "tell me where it is", "where is the number in the picture", "where was the digit drawn",
        "name the place please",
    ),
    "describe": (
        "what do you see", "describe the picture", "tell me about the picture",
        "what is in the picture", "what can you see here", "describe what you see please",
        "what does the picture show", "tell me everything you see",
    ),
}  # fmt: skip

YESNO = {
    "digit": (
        "is it {A}", "do you see {A}", "is this {A}", "is the digit {A}", "is the number {A}",
        "would you say it is {A}",
    ),
    "colour": (
        "is it {A}", "is the digit {A}", "is the number {A}", "is its colour {A}",
        "is it drawn in {A}", "would you say it is {A}",
    ),
    "place": (
        "is it {A}", "is the digit {A}", "is the number {A}", "do you see it {A}",
        "is it drawn {A}", "would you say it is {A}",
    ),
}  # fmt: skip

MISLEADING = {
    "digit": (
        "why is the digit {A}", "why is it {A}", "how come it is {A}", "why did they draw {A}",
        "tell me why it is {A}", "what makes it {A}",
    ),
    "colour": (
        "why is the digit {A}", "why is it {A}", "how come it is {A}",
        "why did they draw it in {A}", "tell me why it is {A}", "what makes it {A}",
    ),
    "place": (
        "why is the digit {A}", "why is it {A}", "how come it is {A}", "why did they draw it {A}",
        "tell me why it is {A}", "what puts it {A}",
    ),
}  # fmt: skip

ANSWERS = {
    "digit": (
        "the digit is {name}", "the number is {name}", "this is the number {name}",
        "i see the digit {name}",
    ),
    "colour": (
        "the colour is {name}", "its colour is {name}", "it has the colour {name}",
        "i see the colour {name}",
    ),
    "place": ("the place is {Y}", "its place is {Y}", "you find it {Y}", "i see it {Y}"),
    "describe": ("i see {scene}", "there is {scene}", "the picture shows {scene}"),
    # The fact before the verdict, which then follows from what was asked and said.
    "yes": ("it is {Y} so yes", "i see it is {Y} so yes", "i think it is {Y} so yes"),
    "no": ("it is {Y} so no", "i see it is {Y} so no", "i think it is {Y} so no"),
    "misleading": ("it is not {X} it is {Y}", "that is not {X} it is {Y}", "it is not {X} but {Y}"),
}  # fmt: skip

GREETINGS = (
    "hello", "hello how can i help you", "hi what would you like to know",
    "good day ask me something",
)  # fmt: skip

TOLD = (
    "i see {scene}", "my picture shows {scene}", "there is {scene}", "i have {scene}",
    "look here is {scene}", "my picture has {scene}",
)  # fmt: skip
ACKNOWLEDGE = ("okay", "i see", "all right", "okay i see")

ECHO = (
    "please repeat {words}", "repeat after me {words}", "say after me {words}",
    "can you say {words}", "please say {words}", "now say {words}",
)  # fmt: skip

COUNT_ON = ("what comes after {a}", "which number comes after {a}", "count on from {a}")
COUNT_BACK = ("what comes before {a}", "which number comes before {a}", "count back from {a}")

OPPOSITES = (
    ("big", "small"), ("hot", "cold"), ("day", "night"), ("old", "young"), ("fast", "slow"),
    ("happy", "sad"),
)  # fmt: skip
OPPOSITE_QUESTIONS = (
    "what is the opposite of {a}", "tell me the opposite of {a}", "name the opposite of {a} please",
)  # fmt: skip

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
NEXT_DAY = ("which day comes after {a}", "what day follows {a}", "tell me the day after {a}")

# (questions, answers): any answer fits any question of its group.
CHAT = (
    (
        ("hello", "hi", "good day", "hello nice to meet you"),
        ("hello nice to meet you", "hi how can i help you"),
    ),
    (
        ("how are you", "how are you today", "how do you feel", "are you well"),
        ("i am very well thank you", "i feel fine thank you"),
    ),
    (("what is your name", "who are you", "tell me your name"), ("my name is moshi", "i am moshi")),
    (
        ("thank you", "thank you very much", "thanks for your help"),
        ("you are welcome", "i am happy to help"),
    ),
    (
        ("goodbye", "see you soon", "i have to go now"),
        ("goodbye see you soon", "goodbye have a nice day"),
    ),
    (("do you like music", "are you fond of music"), ("yes i like music very much",)),
    (("which animal says moo", "who says moo"), ("a cow says moo",)),
    (("which animal says meow", "who says meow"), ("a cat says meow",)),
    (("how many legs has a dog", "tell me how many legs a dog has"), ("a dog has four legs",)),
    (("how many days has a week", "how long is a week"), ("a week has seven days",)),
    (("where do fish live", "tell me where fish live"), ("fish live in water",)),
    (("where do birds live", "tell me where birds live"), ("birds live in trees",)),
    (("what do bees make", "tell me what bees make"), ("bees make honey",)),
    (("when does the sun rise", "tell me when the sun rises"), ("the sun rises in the morning",)),
    (("when do we sleep", "tell me when we sleep"), ("we sleep at night",)),
    (("is ice cold", "tell me is ice cold"), ("yes ice is very cold",)),
    (("is fire cold", "tell me is fire cold"), ("no fire is very hot",)),
)  # fmt: skip
