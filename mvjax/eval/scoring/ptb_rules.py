r"""The rules of the PTB tokenizer: what each kind of token looks like, and how it is written.

A rule is a pattern and a way to write what its group 1 matched; what the pattern wants after the group
belongs to the next token. Of all rules the one that matches most characters holds, text after the group
included; of equally long ones the first. So every pattern has to match as much as it can: alternatives stand
in the order that does.

The behavior is that of Stanford's PTBTokenizer 3.4.1 (CoreNLP's `PTBLexer.flex`) with its default options,
compared by `tools/record_scores.py`; the patterns are ours. Its letters are those of Unicode 6.0.
"""

from __future__ import annotations

import re
from collections.abc import Callable

Rule = tuple[re.Pattern[str], Callable[[str], str] | None]  # None: as it is; "" is no token

# Combining marks and the like that stand in words, as the tokenizer answers for each code point of the BMP.
_MARKS = (
    "2c2-2c5,2d2-2df,2e5-2eb,2ed,2ef-36f,375,378-379,384-385,3f6,483-487,55a-55f,591-5bd,5bf,5c1-5c2,"
    "5c4-5c5,5c7,615-61a,64b-65e,670,6d6-6e4,6e7-6ed,6fd-6fe,70f,711,730-74c,7a6-7b0,7eb-7f3,900-903,93c,"
    "93e-94e,951-955,962-963,981-983,9bc,9be-9c4,9c7-9c8,9cb-9cd,9d7,9e2-9e3,a01-a03,a3c,a3e-a4f,a81-a83,"
    "abc,abe-acf,b82,bbe-bc2,bc6-bc8,bca-bcd,c01-c03,c3e-c56,d3e-d44,d46-d48,e31,e34-e3a,e47-e4e,eb1,"
    "eb4-ebc,ec8-ecd,1885-1886"
)
# Where later versions of Unicode than 6.0 added letters and digits.
_LATER = (
    "37f,528-52f,560,588,5ef,860-88f,8a1,8ad-8c9,978,980,9fc,af9,c34,c5a-c5d,c80,cdc-cdd,d04,d54-d5f,de6-def,e86,"
    "e89,e8c,e8e-e93,e98,ea0,ea8-ea9,eac,13f5-13fd,16f1-16f8,170d,171f,1878,191d-191e,19b0-19c0,19c8-19c9,"
    "1b4c,1c80-1cbf,1cf2-1cf3,1cfa,2c2f,2c5f,312e-312f,31bb-31bf,4db6-4dbf,9fcd-9fff,a698-a69d,a78f,"
    "a794-a79f,a7ab-a7f7,a8fd-a8fe,a9e0-a9fe,aa7e-aa7f,ab30-abbf"
)


def _points(ranges: str) -> frozenset[int]:
    ends = [[int(end, 16) for end in part.split("-")] for part in ranges.split(",")]
    return frozenset(point for span in ends for point in range(span[0], span[-1] + 1))


class _Alphabet(dict[int, str]):
    """For `str.translate`: one character for all of a class, so that the patterns' classes are small."""

    _marks = _points(_MARKS)
    _later = _points(_LATER)

    def __missing__(self, point: int) -> str:
        char = self[point] = self._of(point, chr(point))
        return char

    def _of(self, point: int, char: str) -> str:
        if point < 128 or point > 0xFFFF:
            return char
        if point in self._later:
            return "\ue000"  # no rule has it
        if point in self._marks:
            return "\u0300"
        if char.isalpha():
            return "À" if char.isupper() else "à"
        return "\u0660" if char.isdecimal() else char


_ALPHABET = _Alphabet()


def simplified(text: str) -> str:
    """What the patterns match: of the same length, letters, marks and digits outside ASCII as one of each."""
    return text if text.isascii() else text.translate(_ALPHABET)


def _any_case(*choices: str) -> str:
    return f"(?ai:{'|'.join(choices)})"


_L, _D, _UPPER = "A-Za-zÀà", "0-9\u0660", "A-ZÀ"  # [:letter:], [:digit:], [:uppercase:]
_WORDY = rf"{_L}\u0300\u00ad"
_ENTITY = r"&[aeiouAEIOU](?ai:acute|grave|uml);"
_LETTER = rf"(?:[{_WORDY}]|{_ENTITY})"
_ALNUM = rf"(?:[{_WORDY}{_D}]|{_ENTITY})"
_DIGIT = f"[{_D}]"
_SPACE = r"[ \t\u00a0\u2000-\u200a\u3000]"
_NEWLINE = r"(?:\r\n|[\r\n\u2028\u2029\v\f\x85])"
_SPACENL = rf"(?:{_SPACE}|{_NEWLINE})"
_AMP = r"(?ai:&amp;)"
_APOS = r"(?:['\u0092\u2019]|(?ai:&apos;))"
_APOSTROPHE = r"(?:['\u0092\u2019`\u0091\u2018\u201b]|(?ai:&apos;))"
_REDUCED = rf"{_APOS}(?:(?ai:re|ve|ll)|[msdMSD])"
_NOT = rf"(?ai:n){_APOSTROPHE}(?ai:t)"
_WORD = rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)*"
_ATTRIBUTE = r"[A-Za-z][A-Za-z0-9_:.\-]*"
# Unlike the reference's, quotes in a tag end with the line: there, tokens would swallow the next caption.
_TAG = (
    rf"<(?:[!?][A-Za-z\-][^>\r\n]*|{_ATTRIBUTE}"
    rf"(?:[ ]+{_ATTRIBUTE}(?:[ ]*=[ ]*(?:'[^'\n]*'|\"[^\"\n]*\"))?)*[ ]*/?|/{_ATTRIBUTE})[ ]*>"
)
_US = r"(?ai:(?:Canada|Sino|Korean|EU|Japan|non)-U\.S|U\.S\.-(?:U\.S\.S\.R|U\.K))"
_ACRONYM = rf"(?:{_US}|[A-Za-z](?:\.[A-Za-z])*)"
_THING = (
    rf"(?:[dDoOlL]{_APOSTROPHE}[{_L}{_D}])?[{_L}{_D}]+"
    rf"(?:[-_\u058a\u2010\u2011](?:[dDoOlL]{_APOSTROPHE}[{_L}{_D}])?[{_L}{_D}]+)*"
)
_HYPHENATED = (
    r"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*"
    r"(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9\u00ad]+))+"
)
_CAPITALS = rf"[A-Z]+(?:(?:[+&]|{_AMP})[A-Z]+)+"
_SLASHED = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}"
_BEFORE_NUMBER = _any_case("ca", "figs?", "prop", "nos?", "art", "bldg", "pp", "op")
# Before these a period after an abbreviation ends the sentence, too. Case matters.
_ENDS_BEFORE = _any_case(
    "Jan", "Feb", "Mar", "Apr", "Jun", "Jul", "Aug", "Sept?", "Oct", "Nov", "Dec",
    "Mon", "Tues?", "Wed", "Thu(?:rs)?", "Fri",
    "Ala", "Ariz", "Calif", "Colo", "Conn", "Ct", "Dak", "Fla", "Ga", "Ind", "Kans?", "Ky", "Md", "Mich",
    "Minn", "Mo", "Mont", "Neb", "Nev", "Okla", "Penn", "Tenn", "Va", "Vt", "Wisc?", "Wyo",
    "(?-i:A)z", "(?-i:A)rk", "(?-i:D)el", "(?-i:I)ll", "(?-i:L)a", "(?-i:M)ass", "(?-i:M)iss", "(?-i:O)re",
    "(?-i:P)a", "(?-i:T)ex", "(?-i:W)ash",
    "Inc", "Cos?", "Corp", "Pp?t(?-i:[ye])s?", "Ltd", "Plc", "Rt", "Bancorp", "Bhd", "Assn", "Univ", "Intl",
    "Sys", "tel", "est", "ext", "sq", "Jr", "Sr", "Bros", r"(?:Ed|Ph)\.D", "Blvd", "Rd", "Esq", "etc", "al",
    "seq", "Bldg",
)  # fmt: skip
_TITLES = _any_case(
    "Mr", "Mrs", "Ms", "(?-i:M)iss", "Drs?", "Profs?", "Sens?", "Reps?", "Attys?", "Lt", "Col", "Gen",
    "Messrs", "Govs?", "Adm", "Rev", "Maj", "Sgt", "Cpl", "Pvt", "Capt", "Ste?", "Ave", "Pres", "Lieut",
    "Hon", "Brig", "Co?mdr", "Pfc", "Spc", "Supts?", "Det", "Mt", "Ft", "Adj", "Adv", "Asst", "Assoc",
    "Ens", "Insp", "Mlle", "Mme", "Msgr", "Sfc", "vs", "Alex", "Wm", "Jos", "Cie", r"a\.k\.a", "cf",
    "TREAS", "Ph", "Invt", "Elec", "Natl", "M(?-i:[ft])g", "Dept",
)  # fmt: skip
_TITLE = rf"(?:{_TITLES}|{_ACRONYM})"
_STARTS = "|".join(
    f"{word[0]}(?ai:{word[1:]})"
    for word in (
        "About", "According", "Additionally", "After", "An", "A", "As", "At", "But", "Earlier", "He", "Her",
        "Here", "However", "If", "In", "It", "Last", "Many", "More", r"Mr\.", r"Ms\.", "Now", "Once", "One",
        "Other", "Our", "She", "Since", "So", "Some", "Such", "That", "The", "Their", "Then", "There",
        "These", "They", "This", "We", "When", "While", "What", "Yet", "You",
    )
)  # fmt: skip
_FILE_ENDS = _any_case(
    "bat|bmp|class|cgi|cpp|c|docx?|dll|exe|gif|gz|html?|h|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|ps|py"
    "|sql|tar|txt|wav|xml|x|zip"
)


def _quote(text: str, straight: str) -> str:
    text = re.sub("&apos;|'", straight, re.sub('"|&quot;', 2 * straight, text))
    text = re.sub("[\u0091\u2018\u201b\u2039]", "`", re.sub("[\u0092\u2019\u203a]", "'", text))
    return re.sub("[\u0093\u201c\u00ab]", "``", re.sub("[\u0094\u201d\u00bb]", "''", text))


_SYMBOLS = {
    "{": "-LCB-", "}": "-RCB-", "[": "-LSB-", "]": "-RSB-", "(": "-LRB-", ")": "-RRB-",
    "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3",
    "¢": "cents", "£": "#", "¤": "$", "\x80": "$", "\u20a0": "$", "€": "$",
    "---": "--", "----": "--",
}  # fmt: skip
# How a match is written; None: as it is.
_WRITTEN: dict[str, Callable[[str], str] | None] = {
    "as is": None,
    "nothing": lambda _: "",
    "period twice": lambda text: f"{text}.",  # of an abbreviation at the end of a sentence
    "no soft hyphens": lambda text: text.replace("\u00ad", "") or "-",
    "opens": lambda text: _quote(text, "`"),
    "closes": lambda text: _quote(text, "'"),
    "no spaces": lambda text: text.replace(" ", "\u00a0"),
    "no spaces or brackets": lambda text: (
        text.replace(" ", "\u00a0").replace("(", "-LRB-").replace(")", "-RRB-")
    ),
    "symbol": lambda text: _SYMBOLS.get(text, text),
    "&": lambda text: re.sub(_AMP, "&", text),
    "--": lambda _: "--",
    "...": lambda _: "...",
    "<": lambda _: "<",
    ">": lambda _: ">",
}

_RULES: list[tuple[str, str]] = [
    (r"((?ai:c)\+\+)", "as is"),
    (r"((?ai:[cf])#)", "as is"),
    (r"((?ai:can))(?ai:not)", "as is"),
    (r"('(?ai:t))(?ai:was)", "as is"),
    (r"('(?ai:t))(?ai:is)", "as is"),
    (r"((?ai:gon|got|lem|gim|wan))(?ai:na|ta|me)", "as is"),
    (rf"({_TAG})", "no spaces"),
    (r"(&(?ai:MD|mdash|ndash);|[\u0096\u0097\u2013\u2014\u2015])", "--"),
    (rf"({_AMP})", "&"),
    (r"(&(?ai:HT|TL|UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);)", "as is"),
    (rf"({_WORD}){_REDUCED}", "no soft hyphens"),
    (rf"([A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*){_NOT}", "no soft hyphens"),
    (rf"({_WORD})", "no soft hyphens"),
    (
        rf"([A-HJ-XZn]{_APOSTROPHE}[{_L}]{{2,}}|[{_L}]+[aeiouyAEIOUY]{_APOSTROPHE}[aeiouA-Z][{_L}]*"
        rf"|(?ai:Dunkin|somethin|ol){_APOS}|{_APOS}(?ai:till?|cause|em)|{_APOS}[2-9]0(?ai:s)|(?ai:cont'd)\.?"
        rf"|(?ai:'twas|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l)|(?ai:O){_APOSTROPHE}(?ai:o)"
        rf"|{_APOS}(?ai:n){_APOS}?|[lLdDjJ]{_APOS})",
        "as is",
    ),
    (rf"((?ai:y){_APOS})[{_L}]", "as is"),
    (r"((?ai:https?://)[^ \t\n\f\r\"<>|(){}]+[^ \t\n\f\r\"<>|.!?(){},-])", "as is"),
    *(
        (rf"({site}{path})", "as is")
        for site in (
            r"(?ai:www)\.(?:[^ \t\n\f\r\"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}",
            r"(?:[^ \t\n\f\r\"`'<>|.!?(){},-_$]+\.)+(?ai:com|net|org|edu)",
        )
        for path in (r"/[^ \t\n\f\r\"<>|()]+[^ \t\n\f\r\"<>|.!?(){},-]", "")
    ),
    (
        r"((?:(?ai:&lt;)|<)?[a-zA-Z0-9][^ \t\n\f\r\"<>|()\u00a0{}]*@(?:[^ \t\n\f\r\"<>|(){}.\u00a0]+\.)*"
        r"[^ \t\n\f\r\"<>|(){}.\u00a0]+(?:(?ai:&gt;)|>)?)",
        "as is",
    ),
    (rf"(@[a-zA-Z_][a-zA-Z_0-9]*|\#{_LETTER}+)", "as is"),
    (rf"({_REDUCED})[^A-Za-z]", "closes"),
    (rf"({_NOT})[^A-Za-z]", "closes"),
    (rf"({_DIGIT}{{1,2}}[-/]{_DIGIT}{{1,2}}[-/]{_DIGIT}{{2,4}})", "as is"),
    (rf"([-+]?(?:{_DIGIT}*(?:[.:,\u00ad\u066b\u066c]{_DIGIT}+)+|{_DIGIT}+))", "no soft hyphens"),
    (r"([⁺⁻₊₋]?(?:[⁰¹²³⁴-⁹]+|[₀-₉]+))", "as is"),
    (
        rf"((?:{_DIGIT}{{1,4}}[- \u00a0])?{_DIGIT}{{1,4}}(?:\\?/|\u2044){_DIGIT}{{1,4}})",
        "no spaces",
    ),
    (r"([¼½¾\u2153-\u215e])", "symbol"),
    (
        rf"((?ai:-(?:RRB|LRB|RCB|LCB|RSB|LSB)-|C\.D\.s|pro-|anti-|S(?:&amp;|&)(?:P-500|Ls))"
        rf"|(?ai:Cap){_APOS}(?ai:n)|(?ai:c){_APOS}(?ai:est))",
        "&",
    ),
    (rf"({_SLASHED})", "as is"),
    (r"([A-Z]*\$|\#)", "as is"),
    (r"([¢£¤¥\x80\u20a0\u20a4\u20ac\u060b\u0e3f\uffe0\uffe1\uffe5\uffe6])", "symbol"),
    (
        rf"({_US}|[A-Za-z](?:\.[A-Za-z])+)\.{_SPACENL}+(?:{_STARTS}|{_TAG}){_SPACENL}",
        "period twice",
    ),
    (rf"([A-Za-z])\.{_SPACENL}+(?:{_STARTS}|{_TAG}){_SPACENL}", "as is"),
    (rf"({_BEFORE_NUMBER}\.){_SPACENL}?[{_D}]", "as is"),
    (rf"((?:(?ai:pt)[eyEY]|(?ai:co))\.){_SPACE}(?ai:ltd|lim)", "as is"),
    (rf"({_ENDS_BEFORE})\.{_SPACENL}(?:{_TAG}|{_SPACENL}|[{_UPPER}])", "period twice"),
    (rf"({_ENDS_BEFORE}\.)[\s\S]{{2}}", "as is"),
    (rf"({_ENDS_BEFORE})\.", "period twice"),
    (rf"({_TITLE}\.)", "as is"),
    (rf"({_TITLE}){_SPACE}", "as is"),
    (rf"({_ACRONYM}){_SPACENL}", "as is"),
    (rf"({_APOS}[0-9][0-9]){_SPACENL}", "as is"),
    (rf"({_ALNUM}+(?:\.{_ALNUM}+)*\.{_FILE_ENDS})(?:{_SPACENL}|[.?!,])", "as is"),
    (rf"({_WORD}\.)[,;:\u3001]", "no soft hyphens"),
    (
        r"((?:\([0-9]{2,3}\)[ \u00a0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \u00a0])?[0-9]{2,4}[- \u00a0])"
        r"[0-9]{3,4}[- \u00a0]?[0-9]{3,5}"
        r"|(?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5})",
        "no spaces or brackets",
    ),
    (r"(\"|(?ai:&quot;))[A-Za-z0-9$]", "opens"),
    (r"(\"|(?ai:&quot;))", "closes"),
    (r"(\x7f)", "nothing"),
    (r"(<|(?ai:&lt;))", "<"),
    (r"(>|(?ai:&gt;))", ">"),
    (r"([<>]?[:;=][\-o*']?[()DPdpO\\{@|\[\]])[^A-Za-z0-9]", "no spaces or brackets"),
    (
        r"([\^x=~<>]\.\[\^(?ai:x)=[^<\n]*<>\]|[-\^x=~<>']_[-\^x=~<>']|\([-\^x=~<>'][_.]?[-\^x=~<>']\)"
        r"|\([\^x=~<>']-[\^x=~<>'`]\))",
        "no spaces or brackets",
    ),
    (r"([{}\[\]()])", "symbol"),
    (r"(-+)", "symbol"),
    (r"((?:\.[ \u00a0]){2,4}\.|\.{3,5}|[\u0085\u2026])", "..."),
    (r"(@+|\#+|_+)", "as is"),
    (r"(\*+|(?:\\\*){1,3})", "as is"),
    (r"([,;:\u3001])", "as is"),
    (r"([?!]+)", "as is"),
    (r"([.¡¿\u037e\u0589\u061f\u06d4\u0700-\u0702\u07fa\u3002])", "as is"),
    (r"([=/])", "as is"),
    (rf"({_HYPHENATED}\.)[,;:\u3001]", "no soft hyphens"),
    (rf"({_HYPHENATED})", "no soft hyphens"),
    (rf"({_THING}\.)[,;:\u3001]", "as is"),
    (rf"({_THING})", "as is"),
    (rf"({_CAPITALS}\.)[,;:\u3001]", "&"),
    (rf"({_CAPITALS})", "&"),
    (r"(')[A-Za-z][^ \t\n\r\u00a0]", "opens"),
    (rf"({_REDUCED}|{_NOT})", "closes"),
    (
        r"([`\u2018-\u201f\u0091-\u0094\u2039\u203a«»]{1,2}|''|" + _APOS + ")",
        "closes",
    ),
    (r"(<<|>>)", "as is"),
    (
        r"([+%&~\^|\\¦§¨©¬®¯°-³´-º×÷\u0387\u05be\u05c0\u05c3\u05c6\u05f3\u05f4\u0600-\u0603\u0606-\u060a\u060c"
        r"\u0614\u061b\u061e\u066a\u066d\u0703-\u070d\u07f6-\u07f8\u0964\u0965\u0e4f\u1fbd\u2016\u2017"
        r"\u2020-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2044\u207a-\u207f\u208a-\u208e\u2100-\u214f"
        r"\u2190-\u2bff\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65])",
        "as is",
    ),
    (rf"(\0|{_SPACE}+|[\u200b\u200e-\u200f\ufeff]|{_NEWLINE}|(?ai:&nbsp;))", "nothing"),
    (r"([\s\S])", "nothing"),
]
RULES: list[Rule] = [(re.compile(pattern), _WRITTEN[how]) for pattern, how in _RULES]
