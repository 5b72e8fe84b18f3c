"""VQAv2 accuracy with the official normalization (`vqaEval.py` of GT-Vision-Lab/VQA), quirks kept.

A leave-one-out mean: against nine of the ten human answers an answer scores min(1, matches / 3). Answers are
normalized only where the human answers differ. The quirks: the text is lower-cased after punctuation, so that
contractions with a capital are never restored; a comma between digits anywhere makes all punctuation vanish
instead of becoming a space; at most 32 full stops are removed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# Meant is "no digit before", but the lookbehind is mistyped: it forbids "<=" and a digit there.
_FULL_STOP = re.compile(r"(?!<=\d)\.(?!\d)")
_FULL_STOPS = 32  # `re.UNICODE` stands where the count belongs
_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_ARTICLES = ("a", "an", "the")
# Of these an answer may lack the apostrophe ...
_LACKS_ONE = (
    "ain't", "aren't", "can't", "could've", "couldn't", "didn't", "doesn't", "don't", "hadn't",
    "hasn't", "haven't", "he'd", "he's", "how'd", "how'll", "how's", "isn't", "it'd", "it'll",
    "ma'am", "might've", "mightn't", "must've", "mustn't", "needn't", "not've", "o'clock",
    "oughtn't", "shan't", "should've", "shouldn't", "somebody'll", "somebody's", "someone'd",
    "someone'll", "someone's", "something'd", "something'll", "that's", "there'd", "there're",
    "there's", "they'd", "they'll", "they're", "they've", "'twas", "wasn't", "we've", "weren't",
    "what'll", "what're", "what's", "what've", "when's", "where'd", "where's", "where've", "who'd",
    "who'll", "who's", "who've", "why'll", "why're", "why's", "won't", "would've", "wouldn't",
    "y'all", "you'd", "you'll", "you're", "you've",
)  # fmt: skip
# ... and of these the first or the last one.
_LACKS_EITHER = (
    "couldn't've", "hadn't've", "he'd've", "it'd've", "mightn't've", "'ow's'at", "she'd've",
    "shouldn't've", "somebody'd've", "someone'd've", "something'd've", "there'd've", "they'd've",
    "we'd've", "who'd've", "wouldn't've", "y'all'll", "y'all'd've", "you'd've",
)  # fmt: skip
_CONTRACTIONS = (
    {full.replace("'", ""): full for full in _LACKS_ONE}
    | {full.replace("'", "", 1): full for full in _LACKS_EITHER}
    | {"".join(full.rsplit("'", 1)): full for full in _LACKS_EITHER}
    | {"'ows'at": "'ow's'at", "y'alld've": "y'all'd've", "somebody'd": "somebodyd"}
)


def accuracy(said: str, answers: Sequence[str]) -> float:
    """VQA accuracy, 0 to 1, of an answer against the human ones (ten in VQAv2)."""
    said, answers = _one_line(said), [_one_line(answer) for answer in answers]
    if len(set(answers)) > 1:
        said, answers = normalize(said), [normalize(answer) for answer in answers]
    matches = [answer == said for answer in answers]
    return sum(min(1.0, (sum(matches) - own) / 3) for own in matches) / len(matches)


def normalize(text: str) -> str:
    """Without punctuation and articles, in lower case, small numbers as digits, contractions restored."""
    numeric = _COMMA_IN_NUMBER.search(text) is not None
    bare = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        bare = bare.replace(mark, "" if numeric or beside_space else " ")
    bare = _FULL_STOP.sub("", bare, count=_FULL_STOPS)
    words = (_NUMBERS.get(word, word) for word in bare.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
