"""Captions and answers drawn by a seed, with all that a tokenizer can trip over: for `record_scores.py`."""

from __future__ import annotations

import random


def _choices(text: str) -> list[str]:
    return text.split("|")


_PEOPLE = _choices(
    "man|woman|boy|girl|child|skier|surfer|chef|police officer|baseball|player|dog|cat|zebra"
)
_HAS = _choices("'s|'s|'|'d|'ll|n't've|’s|'s'|'ve|'re")
_DOES = _choices(
    "is riding|isn't riding|can't hold|cannot hold|won't eat|wouldn't've eaten|is gonna throw"
    "|wanna catch|doesn’t look at|has got to ride|gotta catch|lemme see|gimme|stands next to"
    "|is sitting on|didn't see|couldn't reach|DON'T touch|ain't near|'tis near|'twas under"
    "|y'all hold|c'mon and grab|o'er"
)
_THINGS = _choices(
    "a T-shirt|a t-shirts|an x-ray|black-and-white photo|a 3-year-old|half-eaten pizza"
    "|a hot dog|an i-Pod|co-ed teams|a merry-go-round|U.S. flag|a U.S.-made car|non-U.S. coins"
    "|the Sino-U.S. sign|an A-B.C. label|pro-life poster|anti-war sign|S&P-500 chart|S&Ls"
    "|AT&T phone|R&amp;B album|B+W print|and/or sign|his/her coat|black/white cat"
    "|red-blue/green kite|C++ book|C# book|C.D.s|Cap'n Crunch|rock 'n' roll|'em|a Dunkin' donut"
    "|l'eau|d'Or hotel|O'Brien's pub|s'mores|li'l dog|a Nat'l park|o'clock|ol' truck"
    "|somethin' red|nor'easter|cont'd.|the '90s car|1950s bus|80's hair|'til dawn|'till|e'er"
    "|ev'ry dog|O'o"
)
_NUMBERS = _choices(
    "2|12|3.5|1,000|10:30|1/2|3/4|1 1/2|2 3/4|12/25/2014|1-2-12|555-1234|(555) 555-1234"
    "|555.123.4567|+44 20 7946 0958|+1|-5|-3.2|20th|1st|5ft|3D|2-3|100%|$5|$5.00|US$20|£3|€4|5¢"
    "|¥500|#5|no. 7|No. 12|fig. 3|pp. 4|ca. 1900|Fig. x|½|1½|¼ cup|⅔|x²|H₂O|⁻¹|10°|9'6\"|6'|7\""
    "|1.|10:30 a.m.|3 p.m.|5 PM|1e5|0.5.1|.5|5.|1,0"
)
_NAMES = _choices(
    "Mr. Smith|Mrs. O'Neil|Dr. No|St. Mary|Ave. A|Mt. Fuji|Ft. Lee|Jan. 5|Sept. 11|Tues. night"
    "|Wed.|Ill. plates|ill. dog|Miss. river|miss. dog|Mass. Ave.|az. x|Az. road|Inc. sign"
    "|Acme Co. truck|Acme Corp.|Ltd.|pty. ltd.|Pty. limited|co. ltd|etc. and|vs. them|J. Smith"
    "|A. B. Jones|J.R.R. Tolkien|Ph.D. student|Ed.D.|Jr.|Sr. High|Bros. pizza|Blvd. sign"
    "|Rd. sign|a.k.a. dog|e.g. this|i.e. that|U.S. The dog|U.K. In it|plan B. The cat"
    "|vitamin C. It is|U.S.S.R.|Wash. state|Dept. store|Lt. Col. Sanders|Prof. Oak|No. no"
    "|Univ. of X|Alex. Brown"
)
_ONLINE = _choices(
    "http://x.com/a?b=c|https://www.foo.org/bar.|www.example.com|example.com|example.com/path."
    "|foo.net,|a.edu|image.jpg|photo.jpeg,|foo.txt.zip|DSC_0042.JPG|IMG-20.png|a@b.com"
    "|<x@y.org>|@user|@|@@home|#hashtag|#|##|a_b|__x__|C:\\dir|a.b.c|index.html!|HTTP://X.COM"
    "|ftp://a.b"
)
_MARKS = _choices(
    "...|..|....|. . .|.....|…|!|?|!!|?!|;|:|-|--|---|----|-----|–|—|―|_|/|\\|\\/|*|**|\\*|+|="
    '|<|>|<<|>>|<b>|</b>|<br/>|<!-- x -->|<a b="c">|&|&amp;|&lt;|&gt;|&quot;|&apos;|&nbsp;'
    "|&eacute;|&mdash;|&odq;|&#39;|~|^|%||`|``|'|''|\"|“|”|‘|’|‚|‛|„|«|»|‹|›|(|)|[|]|{|}|-LRB-"
    "|-RSB-|:)|:-)|;)|:(|:D|=)|:P|^_^|(^_^)|-_-|x_x|>_<|(-_-)|x.[^x=<>]|§|·|•|→|★|♥|©|®|™|¦|¿|¡"
    "|、|。|！|？|・|￥|¤|\x7f"
)
_ABROAD = _choices(
    "café|naïve|Zürich|Ångström|Øre|русский слово|中文|日本語|ελληνικά|ΕΛΛΆΣ|עברית|العربية"
    "|हिन\u094dदी|٣٤|İstanbul|ﬁsh|a\u0301bc|soft\xadhyphen|\xad|zero\u200bwidth|\ufeff"
    "|no\xa0break|em\u2003space|\u3000|😀|🐶dog|dog🐶's|\u0378x|Ԩ|ꭐ|𝒳"
)
_STRAY = "abceinstyzABDINSTUZ0123456789.,'\"-/:;!?()[]{}<>&@#$%*_+=\\^|~` ’é\u00a0\u00ad"
_KINDS = (_THINGS, _NUMBERS, _NAMES, _ONLINE, _MARKS, _ABROAD)


def captions(count: int, seed: int) -> list[str]:
    """Draws captions: half like people's, the rest with more and more noise."""
    rng = random.Random(seed)
    return [_caption(rng, noise=(n % 8) / 8) for n in range(count)]


def _caption(rng: random.Random, *, noise: float) -> str:
    who = rng.choice(_PEOPLE) + (rng.choice(_HAS) if rng.random() < 0.3 else "")
    parts = [rng.choice(["A", "a", "The", "Two", "I"]), who, rng.choice(_DOES)]
    parts += [rng.choice(rng.choice(_KINDS)) for _ in range(rng.randint(1, 3 + round(4 * noise)))]
    if noise > 0.6:
        rng.shuffle(parts)
    text = parts[0]
    for part in parts[1:]:
        text += (
            rng.choice([" "] * 12 + [", ", ". ", "  "] + ["", "-", ",", "'"] * (noise > 0.3)) + part
        )
    if rng.random() < 0.3:
        opening, closing = rng.choice(['""', "''", "()", "“”", "‘’", "[]", "``", "{}"])
        cut = rng.randint(0, len(text))
        text = f"{text[:cut]}{opening}{text[cut:]}{closing}"
    for _ in range(rng.randint(0, 4) if noise > 0.7 else 0):
        at = rng.randint(0, len(text))
        text = text[:at] + rng.choice(_STRAY) + text[at + rng.randint(0, 1) :]
    text = f"{text}{rng.choice(['.', '', ' .', '!', '...', ' ', '?'])}"
    # A quoted attribute of a tag runs on into the next caption in the reference.
    return text.replace('="', "=").replace("='", "=").replace("\n", " ")


def words(rng: random.Random, *, vocabulary: int, longest: int) -> str:
    """Draws words, frequent ones first, as captions for CIDEr."""
    count = rng.randint(0 if rng.random() < 0.02 else 1, longest)
    return " ".join(f"w{min(int(rng.expovariate(4 / vocabulary)), 99)}" for _ in range(count))


_ANSWERS = _choices(
    "yes|no|Yes.|NO|2|two|Two|ten|none|0|a dog|dog|the dog|The Dog.|an apple|1,000|1000"
    "|1,000 people|10:30|3.5|3.|.5|t-shirt|t shirt|tshirt|dont know|don't know|Dont|Im|im|I'm"
    "|it's|its|cant|couldnt've|couldn'tve|y'alld've|somebody'd|'ows'at|ow's'at|oclock"
    "|10 o'clock|black/white|black and white|black, white|(left)|left|[x]|x;y|a;|what?|what ?"
    '|hi!|a_b|<b>|a@b|`x`|"stop"|stop|{}|=|+1|1+1|-|-5|a - b|a-b|\\|Mr. Smith|mr smith|U.S.'
    "|us|...|. . .|<=5.|<=5.a|new\nline|tab\there| spaced |the|a|an|a a the||café|Ünder"
)


def answers(rng: random.Random) -> tuple[str, list[str]]:
    """Draws an answer and ten human ones, of which some agree, as for VQAv2."""
    few = [_answer(rng) for _ in range(rng.randint(1, 4))]
    given = [rng.choice(few) for _ in range(10)]
    return (rng.choice(few) if rng.random() < 0.8 else _answer(rng)), given


def _answer(rng: random.Random) -> str:
    text = " ".join(rng.choice(_ANSWERS) for _ in range(rng.choice([1, 1, 1, 2, 3])))
    return text + "." * 40 if rng.random() < 0.01 else text
