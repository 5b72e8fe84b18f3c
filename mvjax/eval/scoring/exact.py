"""Exact match of short answers: big_vision's of OCR-VQA and TallyQA, and one of ours without punctuation."""

from __future__ import annotations

_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10", "eleven": "11", "twelve": "12",
    "thirteen": "13", "fourteen": "14", "fifteen": "15", "sixteen": "16", "seventeen": "17",
    "eighteen": "18", "nineteen": "19", "twenty": "20",
}  # fmt: skip


def any_case(said: str, answer: str) -> float:
    """1 if the texts are equal but for case, else 0 (big_vision's `vqa.py`, as for OCR-VQA)."""
    return float(said.lower() == answer.lower())


def letters_and_digits(said: str, answer: str) -> float:
    """Ours: 1 if the texts have the same letters and digits, else 0. Speech has no punctuation."""
    return float(_letters_and_digits(said) == _letters_and_digits(answer))


def number(said: str, answer: str) -> float:
    """1 if the texts are equal once an answer of one number word up to twenty is a number (`tallyqa.py`)."""
    return float(_NUMBERS.get(said.lower(), said) == _NUMBERS.get(answer.lower(), answer))


def _letters_and_digits(text: str) -> str:
    return "".join(char for char in text.lower() if char.isalnum())
