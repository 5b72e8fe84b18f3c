"""Numbers, symbols and abbreviations as the English words that are said for them.

What has no certain reading keeps its sign (a date such as 9/11/2001, 10^6), for which `filters` rejects the
utterance: a fact is said right or not at all.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

import num2words

_MAX_DIGITS = 15  # longer numbers are read digit by digit
_UNSAID = "^"  # stays, so that the utterance is rejected

_PLAIN = str.maketrans(
    {
        "’": "'", "‘": "'", "ʼ": "'", "´": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"',
        "–": "-", "—": " - ", "−": "-", "‑": "-", "…": "...", "\u00a0": " ", "\u202f": " ", "×": "x",
        "№": "#",
    }
)  # fmt: skip
_SYMBOLS = (
    ("&", " and "), ("%", " percent "), ("°C", " degrees Celsius "), ("°F", " degrees Fahrenheit "),
    ("°", " degrees "), ("@", " at "), ("=", " equals "), ("+", " plus "), ("€", " euros "),
    ("£", " pounds "), ("$", " dollars "), ("™", ""), ("®", ""), ("©", ""),
)  # fmt: skip
_ABBREVIATIONS = {
    r"e\.\s?g\.,?": "for example", r"i\.\s?e\.,?": "that is", r"etc\.?": "and so on", r"vs\.?": "versus",
    r"approx\.": "about", r"Mr\.": "Mister", r"Mrs\.": "Missus", r"Dr\.": "Doctor",
    r"w/o": "without", r"w/": "with ", r"and/or": "and or",
    r"[Nn]/[Aa]": "not available", r"24/7": "twenty-four seven", r"50/50": "fifty fifty",
    r"20/20": "twenty twenty",
}  # fmt: skip
_UNITS = {
    "km": "kilometer", "cm": "centimeter", "mm": "millimeter", "m": "meter", "mi": "mile", "ft": "foot",
    "yd": "yard", "kg": "kilogram", "mg": "milligram", "g": "gram", "lbs": "pound", "lb": "pound",
    "oz": "ounce", "ml": "milliliter", "mL": "milliliter", "l": "liter", "L": "liter", "hrs": "hour",
    "hr": "hour", "h": "hour", "min": "minute", "sec": "second", "mph": "mile per hour", "px": "pixel",
    "°C": "degree Celsius", "°F": "degree Fahrenheit", "°": "degree", "%": "percent", "kW": "kilowatt",
    "W": "watt", "V": "volt", "GB": "gigabyte", "MB": "megabyte", "TB": "terabyte",
}  # fmt: skip
_PER = _UNITS | {"s": "second"}  # after a slash
_CURRENCIES = {"$": ("dollar", "cent"), "€": ("euro", "cent"), "£": ("pound", "penny")}
_SCALES = {
    "k": "thousand",
    "K": "thousand",
    "m": "million",
    "M": "million",
    "B": "billion",
    "bn": "billion",
}
_PLURALS = {"foot": "feet", "percent": "percent", "penny": "pence"}
_PARTS = (*range(2, 10), 12, 16, 32)  # denominators of fractions; of these, others are scores:
_SCORES = (10, 20, 25, 50, 100, 1000)

_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_UNIT = "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True))
_ANY = "|".join(sorted(map(re.escape, _PER), key=len, reverse=True))


def spell(text: str) -> str:
    """Text whose every word can be read aloud as it is written, where that is possible."""
    text = unicodedata.normalize("NFC", text).translate(_PLAIN)
    for pattern, words in _ABBREVIATIONS.items():
        text = re.sub(rf"(?<!\w){pattern}(?!\w)", words, text)
    for pattern, say in _RULES:
        text = pattern.sub(say, text)
    for symbol, words in _SYMBOLS:
        text = text.replace(symbol, words)
    return "".join(c for c in text if c == _UNSAID or unicodedata.category(c) not in _DROPPED)


_DROPPED = ("So", "Sk", "Cs", "Co", "Cn", "Cf", "Mn")  # emojis, invisible characters, loose accents


def _cardinal(number: str) -> str:
    """The words of a plain number, "12,000.5" or "007" included."""
    whole, _, rest = number.replace(",", "").partition(".")
    if len(whole) > _MAX_DIGITS or (len(whole) > 1 and whole.startswith("0")):
        said = _digits(whole)
    else:
        said = _words(int(whole))
    return f"{said} point {_digits(rest)}" if rest else said


def _words(number: int, form: str = "cardinal") -> str:
    return num2words.num2words(number, to=form).replace(",", "")


def _digits(text: str) -> str:
    return " ".join(_words(int(d)) for d in text)


def _plural(noun: str) -> str:
    """The plural of a unit or number word; of "mile per hour", that of its first word."""
    head, space, rest = noun.partition(" ")
    if head in _PLURALS:
        return f"{_PLURALS[head]}{space}{rest}"
    if head.endswith("y"):
        return f"{head[:-1]}ies{space}{rest}"
    return f"{head}{'es' if head.endswith(('x', 'ch')) else 's'}{space}{rest}"


def _count(number: str, noun: str) -> str:
    return f"{_cardinal(number)} {noun if number == '1' else _plural(noun)}"


def _clock(match: re.Match) -> str:
    hour, minute, second, half = int(match[1]), int(match[2]), match[3], match[4]
    said = _words(hour)
    if minute:
        said += f" {'oh ' if minute < 10 else ''}{_words(minute)}"
    elif not half and not second:
        said += " o'clock"
    return said + (f" and {_count(str(int(second)), 'second')}" if second else "")


def _date(match: re.Match) -> str:
    month, day = int(match[2]), int(match[3])
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return match[0].replace("-", _UNSAID)
    return f"{_MONTHS[month - 1]} {_words(day, 'ordinal')} {_words(int(match[1]), 'year')}"


_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip


def _numbers(match: re.Match) -> str:
    """Plural of a number: "the 90s", "two 5s"."""
    number = int(match[1])
    words = _words(number, "year" if 1000 < number < 2100 else "cardinal")
    *before, last = words.removeprefix("one ").split(" ")
    *tens, last = last.split("-")
    return " ".join([*before, "-".join([*tens, _plural(last)])])


def _money(match: re.Match) -> str:
    """A price; "$5-10" is a range, "$5/hour" a rate."""
    symbol = match["before"] or match["after"]
    unit, cent = _CURRENCIES[symbol]
    number, scale = match["number"] or match["number2"], match["scale"]
    most, per = match["most"], f" per {match['per']}" if match["per"] else ""
    if most:
        number = most
    whole, _, cents = number.replace(",", "").partition(".")
    if scale:
        scale = scale.strip()
        said = f"{_cardinal(number)} {_SCALES.get(scale, scale)} {_plural(unit)}"
    elif len(cents) != 2:
        said = _count(number, unit)
    elif not int(cents):
        said = _count(whole, unit)
    elif not int(whole):
        said = _count(str(int(cents)), cent)
    elif int(cents) < 10:
        said = f"{_count(whole, unit)} and {_count(str(int(cents)), cent)}"
    else:
        said = f"{_count(whole, unit)} {_words(int(cents))}"
    return f"{_cardinal(match['number'])} to {said}{per}" if most else f"{said}{per}"


def _fraction(match: re.Match) -> str:
    whole, top, bottom = match[1], int(match[2]), int(match[3])
    unit = _UNITS[match[4]] if match[4] else ""
    if not 0 < top <= bottom or bottom not in (*_PARTS, *_SCORES):
        return match[0]
    if top == bottom or (bottom in _SCORES and top > 1):
        return match[0] if whole or unit else f"{_words(top)} out of {_words(bottom)}"
    part = {2: "half", 4: "quarter"}.get(bottom) or _words(bottom, "ordinal")
    part = ("halves" if bottom == 2 else f"{part}s") if top > 1 else part
    if whole:
        article = "an" if part.startswith("eigh") else "a"
        said = f"{_cardinal(whole)} and {article if top == 1 else _words(top)} {part}"
        return f"{said} {_plural(unit)}" if unit else said
    article = "an" if unit.startswith(("o", "hour")) else "a"
    return f"{_words(top)} {part}" + (f" of {article} {unit}" if unit else "")


def _measure(match: re.Match) -> str:
    """A number with a unit, such as 5 m² or 60 km/h."""
    power = {"²": "square ", "2": "square ", "³": "cubic ", "3": "cubic "}.get(match[3], "")
    unit = _UNITS[match[2]] if match[1] == "1" else _plural(_UNITS[match[2]])
    return f"{_cardinal(match[1])} {power}{unit}" + (f" per {_PER[match[4]]}" if match[4] else "")


def _slash(match: re.Match) -> str:
    first, second = match.groups()
    if first in _UNITS and second in _PER:
        return f"{_plural(_UNITS[first])} per {_PER[second]}"
    return f"{first} or {second}"


def _commas(match: re.Match) -> str:
    """Digits with commas: a number, or a list; "1,5" may be either."""
    if re.fullmatch(_NUMBER, match[0]):
        return match[0]
    groups = match[0].split(",")
    listed = len(groups) > 2 and all(len(group) < 3 for group in groups)
    return ", ".join(groups) if listed else match[0].replace(",", _UNSAID)


def _points(match: re.Match) -> str:
    """Digits with several points: thousands, a date, or a version."""
    groups = match[0].split(".")
    if len(groups[0]) < 4 and all(len(group) == 3 for group in groups[1:]):
        return _cardinal("".join(groups))
    if len(groups) == 3 and len(groups[-1]) in (2, 4):
        return match[0].replace(".", _UNSAID)
    return f" {' point '.join(map(_cardinal, groups))}"


_SCALE = r"\s(?:thousand|million|billion|trillion)|(?:k|K|m|M|B|bn)"
_RULES: tuple[tuple[re.Pattern, Callable[[re.Match], str] | str], ...] = (
    (re.compile(r"(\d?)([¼-¾⅐-⅞])"), lambda m: f"{m[1]} {_plain_fraction(m[2])}"),
    (re.compile(r"(?<![^\s(])(?<!\d )-(?=[$€£]?\.?\d)"), "minus "),
    (re.compile(r"(?<![\w.,])\.(?=\d)"), "0."),
    (re.compile(r"#\s?(?=\d)"), "number "),
    (re.compile(r"(?<=\w )([\"']?)No\.\s?(?=\d)"), r"\1number "),  # begins a sentence: an answer
    (re.compile(r"(?<=[A-Za-z])(?=[$€£]\d)"), " "),
    (
        re.compile(
            rf"(?:(?P<before>[$€£])\s?(?P<number>{_NUMBER})(?:\s?-\s?[$€£]?(?P<most>{_NUMBER}))?"
            rf"|(?P<number2>{_NUMBER})\s?(?P<after>[$€£])(?!\s?\d))"
            rf"(?P<scale>{_SCALE})?(?![\d,]*\d)(?:/(?P<per>[A-Za-z]+))?"
        ),
        _money,
    ),
    (re.compile(r"\b(\d{4})-(\d\d)-(\d\d)\b"), _date),
    (re.compile(r"\b\d+(?:-\d+){2,}\b"), lambda m: ", ".join(map(_digits, m[0].split("-")))),
    (re.compile(r"(?<![\d,.])\d+(?:,\d+)+(?:\.\d+)?"), _commas),
    (re.compile(r"(?<![\d.])\d+(?:\.\d+){2,}"), _points),
    (
        re.compile(
            rf"(?<![\d/.,])(?:(\d+)[ -])?(\d+)/(\d+)(?:rds?|ths?|nds?)?(?![\d/])(?:\s?({_UNIT})(?!\w))?"
        ),
        _fraction,
    ),
    (re.compile(r"(?<=[\d°%])\s?-\s?(?=\d)"), " to "),
    (
        re.compile(
            r"\b([01]?\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?\b(?!\s(?:scale|ratio))(?=\s?([ap]\.?m\b)?)",
            re.I,
        ),
        _clock,
    ),
    (re.compile(r"(?<=\d):(?=\d)"), " to "),
    (
        re.compile(r"\b(\d+)['′]\s?(\d{1,2})(?:[\"″]|'')"),
        lambda m: f"{_words(int(m[1]))} foot {_words(int(m[2]))}",
    ),
    (
        re.compile(rf"({_NUMBER})([\"″'′])(?=\s(?:tall|long|wide|high|deep|thick|across|by|x)\b)"),
        lambda m: _count(m[1], "inch" if m[2] in '"″' else "foot"),
    ),
    (
        re.compile(r"\b(\d{1,3}(?:,\d{3})+|\d{1,9})(?:st|nd|rd|th)\b"),
        lambda m: _words(int(m[1].replace(",", "")), "ordinal"),
    ),
    (re.compile(rf"({_NUMBER})\s?({_UNIT})([²³23])?(?:/({_ANY}))?(?!\w)"), _measure),
    (re.compile(r"'?\b(\d{1,9}(?=s)|\d{1,8}0(?='s))'?s\b"), _numbers),
    (re.compile(r"(?<=\d)\s?x\s?(?=\d)"), " by "),
    (re.compile(r"(?<=\d)x\b"), " times"),
    (re.compile(r"([A-Za-z.]+)\s?/\s?([A-Za-z]+)"), _slash),
    (
        re.compile(r"(?<![\d.,])(1[1-9]\d\d|20\d\d)(?![\d%]|[.,]\d)\b"),
        lambda m: _words(int(m[1]), "year"),
    ),
    (re.compile(r"(?<=[A-Za-z])(?=\d)|(?<=\d)(?=[A-Za-z])"), " "),
    (re.compile(_NUMBER), lambda m: _cardinal(m[0])),
)


def _plain_fraction(sign: str) -> str:
    return unicodedata.normalize("NFKC", sign).replace("⁄", "/")
