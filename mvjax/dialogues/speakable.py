"""Numbers, symbols and abbreviations as the English words that are said for them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

import num2words

_MAX_DIGITS = 15  # longer numbers are read digit by digit

_PLAIN = str.maketrans(
    {
        "’": "'", "‘": "'", "ʼ": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"',
        "–": "-", "—": " - ", "−": "-", "‑": "-", "…": "...", "\u00a0": " ", "×": "x",
    }
)  # fmt: skip
_SYMBOLS = (
    ("&", " and "), ("%", " percent "), ("°C", " degrees Celsius "), ("°F", " degrees Fahrenheit "),
    ("°", " degrees "), ("@", " at "), ("=", " equals "), ("+", " plus "), ("€", " euros "),
    ("£", " pounds "), ("$", " dollars "), ("½", " a half "), ("¼", " a quarter "),
    ("¾", " three quarters "), ("™", ""), ("®", ""), ("©", ""), ("#", " number "), ("/", " or "),
)  # fmt: skip
_ABBREVIATIONS = {
    r"e\.\s?g\.,?": "for example", r"i\.\s?e\.,?": "that is", r"etc\.?": "and so on", r"vs\.?": "versus",
    r"approx\.": "about", r"Mr\.": "Mister", r"Mrs\.": "Missus", r"Dr\.": "Doctor",
    r"No\. ?(?=\d)": "number ", r"w/o": "without", r"w/": "with ",
}  # fmt: skip
_UNITS = {
    "km/h": "kilometres an hour", "mph": "miles an hour", "km": "kilometres", "cm": "centimetres",
    "mm": "millimetres", "m": "metres", "kg": "kilograms", "g": "grams", "ft": "feet", "px": "pixels",
}  # fmt: skip
_CURRENCIES = {"$": "dollars", "€": "euros", "£": "pounds"}

_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"


def spell(text: str) -> str:
    """Text whose every word can be read aloud as it is written, where that is possible."""
    text = text.translate(_PLAIN)
    for pattern, words in _ABBREVIATIONS.items():
        text = re.sub(rf"(?<!\w){pattern}(?!\w)", words, text)
    for pattern, say in _RULES:
        text = pattern.sub(say, text)
    for symbol, words in _SYMBOLS:
        text = text.replace(symbol, words)
    return "".join(c for c in text if unicodedata.category(c) not in _DROPPED)


_DROPPED = ("So", "Sk", "Cs", "Co", "Cn", "Cf", "Mn")  # emojis, invisible characters, loose accents


def _cardinal(number: str) -> str:
    """The words of a plain number, "12,000.5" or "007" included."""
    digits = number.replace(",", "")
    whole = digits.split(".")[0]
    if len(whole) > _MAX_DIGITS or (len(whole) > 1 and whole.startswith("0")):
        return " ".join("point" if d == "." else _words(int(d)) for d in digits)
    return _words(float(digits) if "." in digits else int(digits))


def _words(number: int | float, form: str = "cardinal") -> str:
    return num2words.num2words(number, to=form).replace(",", "")


def _clock(match: re.Match) -> str:
    hour, minute = int(match[1]), int(match[2])
    if minute == 0:
        return f"{_words(hour)} o'clock"
    return f"{_words(hour)} {'oh ' if minute < 10 else ''}{_words(minute)}"


def _decade(match: re.Match) -> str:
    years = int(match[1])
    return _words(years, "year" if years > 99 else "cardinal").removesuffix("y") + "ies"


def _money(match: re.Match) -> str:
    whole, _, cents = match[2].partition(".")
    if len(cents) == 2 and not match[3]:
        rest = f" {_words(int(cents))}" if int(cents) else ""
        return f"{_cardinal(whole)} {_CURRENCIES[match[1]]}{rest}"
    return f"{_cardinal(match[2])}{match[3] or ''} {_CURRENCIES[match[1]]}"


_RULES: tuple[tuple[re.Pattern, Callable[[re.Match], str] | str], ...] = (
    (re.compile(r"\b([01]?\d|2[0-3]):([0-5]\d)\b"), _clock),
    (re.compile(rf"([$€£])\s?({_NUMBER})(\s(?:thousand|million|billion))?"), _money),
    (re.compile(r"'?\b((?:1[1-9]|20)?[2-9]0)'?s\b"), _decade),
    (re.compile(r"\b(\d{1,9})(?:st|nd|rd|th)\b"), lambda m: _words(int(m[1]), "ordinal")),
    (
        re.compile(rf"({_NUMBER})\s?({'|'.join(_UNITS)})\b"),
        lambda m: f"{_cardinal(m[1])} {_UNITS[m[2]]}",
    ),
    (re.compile(r"(?<=\d)\s?x\s?(?=\d)"), " by "),
    (re.compile(r"(?<=\d)\s?-\s?(?=\d)"), " to "),
    (
        re.compile(r"(?<![\d.,])(1[1-9]\d\d|20\d\d)(?![\d%]|[.,]\d)\b"),
        lambda m: _words(int(m[1]), "year"),
    ),
    (re.compile(r"(?<=[A-Za-z])(?=\d)|(?<=\d)(?=[A-Za-z])"), " "),
    (re.compile(_NUMBER), lambda m: _cardinal(m[0])),
)
