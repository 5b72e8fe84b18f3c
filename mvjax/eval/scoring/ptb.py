"""The words that caption metrics count: Penn Treebank tokens in lower case, without punctuation.

The tokens equal those of Stanford's PTBTokenizer 3.4.1 with `-preserveLines -lowerCase`, the words those of
pycocoevalcap, which runs it; tests/golden/ptb.json.xz holds its answers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mvjax.eval.scoring import ptb_rules

# pycocoevalcap's list. Its brackets are never found: they are in lower case by then. They stay words.
PUNCTUATION = frozenset(
    ("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";")
)  # fmt: skip
_SPLIT = frozenset(("cannot", "gonna", "gotta", "lemme", "gimme", "wanna"))
_PLAIN = re.compile(
    r"([A-Za-z]+)(?=[ \n])[ \t\u00a0\u2000-\u200a\u3000]*"
)  # most tokens, which need no rules


def words(captions: Sequence[str]) -> list[str]:
    """Each caption's words, joined by spaces.

    All captions of a set are given at once and in order: as in the reference, an abbreviation at the end of a
    caption may depend on how the next one begins.
    """
    return [" ".join(t for t in line if t not in PUNCTUATION) for line in tokens(captions)]


def tokens(captions: Sequence[str]) -> list[list[str]]:
    """All tokens of each caption, in lower case."""
    text = _utf16("\n".join(caption.replace("\n", " ") for caption in captions))
    simple = ptb_rules.simplified(text)
    lines: list[list[str]] = [[]]
    at = 0
    while at < len(text):
        plain = _PLAIN.match(text, at)
        if plain and plain[1].lower() not in _SPLIT:
            lines[-1].append(plain[1].lower())
            at = plain.end()
            continue
        longest, end, write = -1, at, None
        for pattern, how in ptb_rules.RULES:
            match = pattern.match(simple, at)
            if match and match.end() > longest:
                longest, end, write = match.end(), match.end(1), how
        token = write(text[at:end]) if write else text[at:end]
        if token:
            lines[-1].append(token.lower() if token.isascii() else _lower(token))
        if text[end - 1] == "\n":
            lines.append([])
        at = end
    return lines


def _utf16(text: str) -> str:
    """With two surrogates for each character past the BMP: the rules count in UTF-16."""
    if text.isascii() or max(text) <= "\uffff":
        return text
    return re.sub("[^\0-\uffff]", _surrogates, text)


def _surrogates(match: re.Match[str]) -> str:
    point = ord(match[0]) - 0x10000
    return chr(0xD800 + (point >> 10)) + chr(0xDC00 + (point & 0x3FF))


def _lower(token: str) -> str:
    token = token.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return re.sub("Σ", _small_sigma, token).lower()


def _small_sigma(match: re.Match[str]) -> str:
    """As Java's: final if letters come before it in the token, and none after it."""
    before, after = match.string[: match.start()], match.string[match.end() :]
    return "ς" if _has_case(before) and not _has_case(after) else "σ"


def _has_case(text: str) -> bool:
    return text.lower() != text.upper()
