"""Cleans up what a language model wrote so that it can be spoken: no markup, stage directions or names.

Also drops stock phrases, and turns mentions of a description into mentions of a picture, as the reference
does (section 8); the lists are ours.
"""

from __future__ import annotations

import re

import numpy as np

from mvjax.dialogues import speakable

_STOCK = 0.8  # chance that a stock phrase is dropped: the reference's default

_ROLE = (
    r"(?:user|assistant|human|ai|bot|moshi(?:vis)?|speaker|person|friend|teacher|pupil|student|question|answer|"
    r"response|reply|you|me|q|a)"
)
_PREFIX = re.compile(rf"^\W*{_ROLE}(?:\s?[0-9AB](?!:\d))?\s?(?:\([^)]*\)\s?)?[:>]+[\s*_\"]*", re.I)
_NEXT_SPEAKER = re.compile(rf"\n\s*[*_\"]*{_ROLE}(?:\s?[0-9AB](?!:\d))?\s?[*_]*:.*", re.I | re.S)
_ACTION = (
    r"(?:(?:\w+ly )?(?:smil|laugh|chuckl|giggl|grin|nod|sigh|paus|point|shrug|gestur|frown|squint|wink|lean|"
    r"look|think|tilt|clear|rais|gasp|whisper|gaz|scratch|shak|wav|pretend|glanc)\w*)"
)
_DIRECTION = re.compile(
    rf"\*+\s?{_ACTION}\b[^*]*\*+|[\[(]\s?{_ACTION}\b[^\])]*[\])]|\[[^\]]*\]", re.I
)
_MARKUP = (
    (re.compile(r"```.*?(```|$)", re.S), " "),
    (re.compile(r"!?\[([^\]]*)\]\([^)]*\)"), r"\1"),  # links and pictures: their text
    (re.compile(r"^\s*(?:#{1,6}|>|[-*+•])\s+", re.M), ""),  # headings, quotations, lists
    (re.compile(r"</?[A-Za-z][^<>\n]*>"), " "),
    # signs between numbers are facts, not emphasis
    (re.compile(r"(?<=\d)\s?\*\s?(?=\d)"), " times "),
    (re.compile(r"(?<=\d)\*\*(?=\d)"), "^"),
    (re.compile(r"(?<=\d)\s?~\s?(?=\d)"), " to "),
    (re.compile(r"(?<!~)~(?=\s?[$€£]?\d)"), "about "),
    (re.compile(r"\|+"), " "),
    (re.compile(r"(?<!\w)_+|_+(?!\w)|[*`~]+"), ""),
)
_NUMBERED = re.compile(r"^\s*\d{1,2}[.)]\s+", re.M)
_LISTED = re.compile(r"^\s*(?:[-*+•]|\d{1,2}[.)])\s+", re.M)
_THING = "(image|picture|photo|scene)"
_SEEN = tuple(
    (re.compile(rf"\b{pattern}\b", re.I), words)
    for pattern, words in (
        (r"(image|picture|photo)(?: description| caption)", r"\1"),
        (rf"{_THING} (?:does not|doesn't) (?:mention|specify|say|describe|state)", r"\1 doesn't show"),
        (rf"{_THING} (?:mentions|specifies|describes|states)", r"\1 shows"),
        (r"(is|are)(?: not|n't) (?:mentioned|specified|described|stated)", r"\1 not visible"),
        (r"(is|are) (?:mentioned|specified|described|stated)", r"\1 visible"),
        (r"no mention of", "no sign of"),
    )
)  # fmt: skip
_STOCK_START = re.compile(
    r"^(?:wow|well|ah|oh|certainly|sure|absolutely|of course|indeed|great question|"
    r"good question)(?: there)?[,!.]+\s+",
    re.I,
)
_STOCK_END = re.compile(r", (?:isn't it|right|don't you think|wouldn't you say)\?$", re.I)
_TIDY = (
    (re.compile(r"\s*\(\s*"), ", "),
    (re.compile(r"\s*\)(?=[.,;!?]|$)"), ""),
    (re.compile(r"\s*\)\s*"), ", "),
    (re.compile(r"\.{2,}"), "."),
    (re.compile(r"\s+-+\s+|\s*;\s*|\s*:\s+|:(?=\w)"), ", "),
    (re.compile(r"(?<!\w)'([^']{1,60})'(?!\w)"), r"\1"),
    (re.compile(r'"|(?<!\w)\'(?=\w)(?!(?:s|em|til|cause)\b)|:$'), ""),
    (re.compile(r"\s+"), " "),
    (re.compile(r"\s+([.,!?])"), r"\1"),
    (re.compile(r",(?:\s*,)+"), ","),
    (re.compile(r",\s*([.!?])"), r"\1"),
    (re.compile(r"([!?])[!?.]+"), r"\1"),
)


def clean(text: str, rng: np.random.Generator) -> str:
    """An utterance as it would be spoken, or ""; `rng` decides which stock phrases stay."""
    text = _NEXT_SPEAKER.sub("", text.replace("\r", "").strip())
    while _PREFIX.match(text):
        text = _PREFIX.sub("", text, count=1)
    text = _DIRECTION.sub(" ", _MARKUP[1][0].sub(_MARKUP[1][1], text))
    if len(_LISTED.findall(text)) > 1:  # alone, "3. On the left" answers how many there are
        text = _NUMBERED.sub("", text)
    for pattern, words in _MARKUP:
        text = pattern.sub(words, text)
    text = speakable.spell(text)
    for pattern, words in _TIDY:
        text = pattern.sub(words, text)
    text = text.strip(" ,-*_")
    for pattern, words in _SEEN:
        text = pattern.sub(words, text)
    drop_start, drop_end = rng.random(2) < _STOCK
    if drop_start and (shorter := _STOCK_START.sub("", text)) != text:
        text = shorter[:1].upper() + shorter[1:]
    return _STOCK_END.sub(".", text) if drop_end else text


def without_echo(answer: str, question: str) -> str:
    """Drops a first sentence of an answer that only repeats the question."""
    head, mark, rest = answer.partition("?")
    if mark and rest.strip() and words(head) == words(question):
        return rest.strip()
    return answer


def first_question(text: str) -> str:
    """The text up to its first question mark, if it has one."""
    head, mark, _ = text.partition("?")
    return head + mark


def whole_sentences(text: str) -> str:
    """The text up to the end of its last whole sentence; empty if it has none."""
    ends = [m.end() for m in re.finditer(r"[.!?](?=\s|$)", text)]
    return text[: ends[-1]] if ends else ""


def words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower())
