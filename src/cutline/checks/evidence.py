"""What a caption claims, held against the tags of its picture: people counted, watermarks, text, and the tags it tells.

A booru's tags are taken for complete: `1girl, solo` denies a second girl, and tags without `watermark` deny one. So
only tags that could say so count, those of `general`, `meta` and `unsorted`; a list of characters denies nothing. What
stands in quotes is a text of the picture and claims nothing. Only clear contradictions are findings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from cutline.checks.findings import Fault, Finding
from cutline.checks.texts import without

Spans = list[tuple[int, int]]


@dataclass(frozen=True)
class Tags:
    """The tags of a picture, small and with spaces, as checks look at them."""

    given: tuple[str, ...]
    """General, character and unsorted ones: those that a caption should tell."""
    all: frozenset[str]
    complete: bool
    """Whether they can deny anything."""

    @classmethod
    def of(cls, tags: Mapping[str, Sequence[str] | None]) -> Tags:
        """Out of lists by category; null and empty tags are none."""
        plain = {
            name: [tag.casefold().replace("_", " ").strip() for tag in found if tag]
            for name, found in tags.items()
            if found and not isinstance(found, str)
        }
        told = [tag for name in ("character", "general", "unsorted") for tag in plain.get(name, ())]
        everything = frozenset(tag for found in plain.values() for tag in found)
        return cls(
            tuple(dict.fromkeys(told)), everything, any(plain.get(name) for name in ("general", "meta", "unsorted"))
        )

    def __bool__(self) -> bool:
        return bool(self.all)


# People

_NUMBERS = {"a": 1, "an": 1, "one": 1, "single": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7}
_NUMBERS |= {"eight": 8, "nine": 9, "ten": 10, "twin": 2, "both": 2, "several": 2, "multiple": 2, "many": 2}
_NUMBERS |= {"another": 2, "second": 2, "third": 3, "fourth": 4, "pair of": 2, "couple of": 2, "trio of": 3}
_NUMBERS |= {"group of": 2, "crowd of": 2, "duo of": 2}
_ALONE = r"(?=\s*(?:[.,;:!?]|$)|\s+(?:with|who|in|on|at|is|and|or|figure|character|person|[a-z]+ing|stands|sits)\b)"
"""What follows `male` where it is no adjective: `a male lion` is no boy."""
_NOUNS = {
    "girl": rf"girls?|wom[ae]n|lad(?:y|ies)|females|female{_ALONE}",
    "boy": rf"boys?|m[ae]n|males|male{_ALONE}|guys?|gentlem[ae]n",
    "person": r"person|persons|people|humans?|characters(?! (?:are |is )?(?:written|printed|on|that read))|individuals",
}
_ORDINALS = ("another", "second", "third", "fourth")
_ADJECTIVE = (
    r"(?!(?:people|persons?|characters|figures|individuals|girls?|boys?|wom[ae]n|m[ae]n|chinese|japanese|korean|kanji"
    r"|and|or|with|of|in|on|the|a|an|by|for|at|to|near|beside|behind|from|as|who|that|is|are"
    r"|than|without|no|into|over|under|full|its|his|her|their|has|have|had|was|were)\b)[\w'’-]+,?\s+"
)
_NUMBER = "|".join((*sorted(_NUMBERS, key=len, reverse=True), "[2-9]", r"\d\d"))
_CLAIM = {
    sex: re.compile(
        rf"\b(?P<number>{_NUMBER})\s+(?!(?:{_NUMBER})\s)(?:{_ADJECTIVE}){{0,3}}?"
        rf"(?P<noun>{nouns})\b(?![-'’]|\s+(?:statues?|dolls?|figures?|figurines?|scouts?|mannequins?|posters?|robots?"
        r"|army|view|perspective))",
        re.IGNORECASE,
    )
    for sex, nouns in _NOUNS.items()
}
_ANYBODY = {sex: re.compile(rf"\b(?:{nouns})\b", re.IGNORECASE) for sex, nouns in _NOUNS.items()}
_NOT_THERE = re.compile(
    r"(?:\b(?:statues?|paintings?|portraits?|pictures?|drawings?|posters?|photos?|photographs?|figurines?"
    r"|figures?|dolls?"
    r"|mannequins?|silhouettes?|sculptures?|images?|toys?|busts?|prints?|outlines?|sign|shape|style"
    r"|clothes|size|hand|arm"
    r"|shadow|reflections?) (?:of|for|shows?|showing|depicting)"
    r"|\b(?:no|not|without|like|isn't|resembl\w+|reminiscent of|than|as if|for))\s*$",
    re.IGNORECASE,
)
_COUNT = re.compile(r"(?P<many>\d+)(?P<more>\+?) ?(?P<sex>girl|boy|other)s?|multiple (?P<several>girl|boy|other)s")
_ANY_NUMBER = """
    androgynous, ambiguous gender, crossdressing, otoko no ko, trap, reverse trap, tomboy, futanari, genderswap,
    genderswap (mtf), genderswap (ftm), multiple views, dual persona, clone, reflection, mirror, crowd, people,
    solo focus, pov, out of frame, background character, photo (object), poster (object), picture frame"""
_UNSURE = frozenset(tag.strip() for tag in _ANY_NUMBER.split(","))
"""Tags beside which the numbers say little."""
_NOBODY = re.compile(
    r"(?:(?:^|[.!?]\s+|\bthere (?:are|is) |\b(?:image|picture|scene|photo|illustration)(?: \w+)? )no"
    r"|(?:image|picture|scene|photo|illustration) is (?:devoid|free) of) (?:visible )?"
    r"(?:people|humans?|persons?|human figures?|characters)\b"
    r"(?=\s*(?:[.,;!]|$|(?:are |is )?(?:visible|present|in (?:the|this) (?:image|picture|scene|photo|illustration))))"
    r"(?!(?: \w+){0,6} (?:except|besides|apart|other than|but))",
    re.IGNORECASE,
)


def count(text: str, tags: Tags) -> Fault | None:
    """More girls, boys or people than the count tags allow; or nobody where they know of somebody."""
    counts: dict[str, int] = {}
    exact, humans = True, False
    for tag in tags.all:
        if match := _COUNT.fullmatch(tag):
            sex = match["sex"] or match["several"]
            humans = True
            counts[sex] = int(match["many"] or 2)
            exact = exact and not match["more"] and not match["several"] and sex != "other"
    nobody = "no humans" in tags.all
    plain = _unquoted(text)
    if (humans or "solo" in tags.all) and not nobody and (match := _NOBODY.search(plain)):
        return _fault("count", text, [match.span()], match[0], tags, ("solo", "girl", "boy"))
    if not (humans or nobody) or tags.all & _UNSURE:
        return None
    solo = "solo" in tags.all
    total = 0 if nobody else 1 if solo else sum(counts.values())
    most = {sex: 0 if nobody else min(total, counts.get(sex, 0)) for sex in ("girl", "boy")} | {"person": total}
    spans, first = [], ""
    for sex, pattern in _CLAIM.items():
        if not nobody and not solo and not exact:
            continue
        if not _ANYBODY[sex].search(plain):  # as it mostly is, and it takes less time to see
            continue
        for match in pattern.finditer(plain):
            number = _NUMBERS.get(match["number"].casefold()) or int(match["number"])
            many = re.search(r"(?:s|men|people|ladies)$", match["noun"], re.IGNORECASE) is not None
            if number == 1 and many:  # `a` belongs to something else, or nobody can tell
                continue
            said = number if many or match["number"].casefold() in _ORDINALS else 1
            if said > most[sex] and not _NOT_THERE.search(_before(plain, match)):
                spans.append(match.span())
                first = first or match[0]
    if not spans:
        return None
    return _fault("count", text, spans, first, tags, ("solo", "girl", "boy", "no humans"))


# Watermarks and text

_MARKS = (
    "watermark",
    "signature",
    "artist name",
    "web address",
    "logo",
    "username",
    "copyright notice",
    "url",
    "dated",
)
_MARK = re.compile(
    r"\b(?:watermark(?:s|ed|ing)?)\b(?!-free)|\b(?:web(?:site)? address(?:es)?|website url)\b"
    r"|(?<!\bher )(?<!\bhis )(?<!\btheir )(?<!\bits )\b(?:artist(?:'s|’s)? )?signatures?\b"
    r"(?=\s*(?:[.,;!]|$|(?:is|are|in|at|on|near|can|appears?|visible|located|reads?|reading|of the artist)\b))"
    r"|\b(?:https?://|www\.)\w[^\s\"”]*|(?<=[\w-]{2})\.(?:com|net|org|jp)\b",
    re.IGNORECASE,
)
_WITH_LETTERS = r"""
    text, speech bubble, thought bubble, translat\w+, sound effect, onomatopoeia, comic, 4koma, sign, title, subtitle,
    copyright name, character name, artist name, name tag, watermark, signature, logo, web address, dated, username,
    writing, letter, word, caption, speech, dialogue, cover, book, newspaper, magazine, poster, banner, label, menu,
    calligraphy, graffiti, engrish, ranguage, hashtag, number, brand, product placement, hud, user interface, typo,
    romaji, license plate, scroll, kanji"""
_WRITTEN = tuple(tag.strip() for tag in _WITH_LETTERS.split(","))
_TEXT = re.compile(
    r"\btext"
    r"(?= (?:that )?(?:reads?|says?|saying|reading|is (?:visible|present|written)|in the|at the|on the"
    r"|on (?:her|his|a|it)|above|below|overlay"
    r"|\")|:|\s*[.,;]|$)"
    r"|\bspeech bubbles?\b|\bthought bubbles?\b|\bthe (?:words?|phrase|letters|inscription|caption"
    r"|title)\b(?=[: ,]*[\"“「])"
    r"|\b(?:reads?|says?|saying|reading|states?|stating|labell?ed|written|inscribed)(?=[: ,]*(?:[\"“「]|'\w))",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"(?:(?:\bnot|n't)(?: (?:(?:appear|seem) to )?(?:be|have|contain|feature|include|show|display|see))?(?: any| a)?"
    r"|\b(?:no|without(?: any| a)?|free (?:of|from)(?: any)?|lacks?(?: any)?|absence of(?: any)?"
    r"|devoid of(?: any)?|nor|neither|never|cannot (?:see|make out)(?: any| a)?"
    r"|can't (?:see|make out)(?: any| a)?)(?:[\s,]+(?:visible|discernible|obvious|readable|legible"
    r"|apparent|signs? of|other"
    r"|additional|extra|an?|text|watermarks?|signatures?|logos?|or|and|nor|any))*)\s*$",
    re.IGNORECASE,
)
_NEGATED = re.compile(
    r"(?:n't\b|\b(?:no|not|without|lack\w*|free (?:of|from)|absence of|devoid of|nor|neither|never|cannot|none"
    r"|nothing)\b)"
    r"(?:(?!\b(?:but|however|although|though|while|except)\b)[^.;:!?\n])*$",
    re.IGNORECASE,
)
"""A denial anywhere before in the clause: whatever it is of, nothing is claimed for certain."""
_NOT_SO = re.compile(r"\s+(?:is|are|was|were)(?:n't| not| absent| missing)\b", re.IGNORECASE)
_FREE = re.compile(r"\bwatermark-free\b|\bunwatermarked\b", re.IGNORECASE)
_MORE = re.compile(r"\b(?:other|additional|extra)\b", re.IGNORECASE)


def watermark(text: str, tags: Tags) -> Fault | None:
    """A watermark, signature or web address that no tag knows; or one denied that a tag knows."""
    return _claimed("watermark", text, tags, _MARK, _MARKS, _FREE)


def text(text: str, tags: Tags) -> Fault | None:
    """Text in the picture, or a speech bubble, that no tag knows; or denied where a tag knows it."""
    return _claimed("text", text, tags, _TEXT, _WRITTEN, None)


def _claimed(
    kind: str, text: str, tags: Tags, claim: re.Pattern[str], known: tuple[str, ...], free: re.Pattern[str] | None
) -> Fault | None:
    if not tags.complete:
        return None
    there = any(_tells(tag, known) for tag in tags.all)
    plain = _unquoted(text)
    spans = []
    for match in claim.finditer(plain):
        before, denied_after = _before(plain, match), _NOT_SO.match(plain, match.end())
        denied = _DENIED.search(before)
        if denied and _MORE.search(denied[0]):  # `no other text`
            continue
        if denied or denied_after if there else not (denied_after or _NEGATED.search(before)):
            spans.append(match.span())
    if there:
        spans += [match.span() for match in free.finditer(plain)] if free else []
        word = "text" if kind == "text" else "watermark"
        clear = any(word in tag or "speech bubble" in tag or "signature" in tag for tag in tags.all)
        if not clear:  # a book or a logo may well have no text to speak of
            return None
    if not spans:
        return None
    begin, end = spans[0]
    return _fault(kind, text, spans, text[max(0, begin - 20) : end] if there else text[begin:end], tags, known)


@lru_cache(maxsize=65_536)
def _tells(tag: str, known: tuple[str, ...]) -> bool:
    """Whether a tag is of one of these things."""
    return "commentary" not in tag and re.search(rf"\b(?:{'|'.join(known)})s?\b", tag) is not None


def _before(text: str, match: re.Match[str]) -> str:
    """What stands before a claim, as far as it can have to do with it."""
    return text[max(0, match.start() - 100) : match.start()]


def _unquoted(text: str) -> str:
    """The text with what stands in quotes blanked out, every other letter in its place."""
    found = re.sub(
        r'"[^"\n]*"|“[^”\n]*”|「[^」]*」|『[^』]*』', lambda match: match[0][0] + " " * (len(match[0]) - 1), text
    )
    return found.replace("’", "'")


def _fault(kind: str, text: str, spans: Spans, claim: str, tags: Tags, about: Iterable[str]) -> Fault:
    said = sorted(tag for tag in tags.all if any(word in tag for word in about))
    shown = ", ".join(said[:5]) or f"nothing of it among {len(tags.all)}"
    return Fault(Finding(kind, f"it says {' '.join(claim.split())!r}; the tags: {shown}"), without(text, spans))


# Coverage

_UNTOLD = frozenset(("solo", "no humans", "highres", "absurdres"))
"""Tags that no caption tells in words."""
_SAID_AS = {
    "1girl": ("girl", "woman", "lady", "female", "she", "her"),
    "1boy": ("boy", "man", "male", "guy", "he", "his"),
    "2girls": ("girls", "women", "two girls", "both"),
    "multiple girls": ("girls", "women", "ladies"),
    "2boys": ("boys", "men", "both"),
    "multiple boys": ("boys", "men", "guys"),
    "looking at viewer": ("looking at", "looks at", "gaze", "gazes", "gazing", "stares", "staring", "at the camera"),
    "blonde hair": ("blond hair", "golden hair", "yellow hair", "blonde"),
    "grey hair": ("gray hair", "silver hair"),
    "grey eyes": ("gray eyes",),
    "smile": ("grin", "happy expression", "grinning"),
    "open mouth": ("mouth open", "mouth agape", "mouth wide"),
    "closed mouth": ("mouth closed",),
    "closed eyes": ("eyes closed", "eyes shut"),
    "sitting": ("seated", "sit"),
    "outdoors": ("outside", "outdoor"),
    "indoors": ("inside", "indoor", "room"),
    "school uniform": ("sailor uniform", "serafuku"),
    "serafuku": ("school uniform", "sailor uniform"),
    "twintails": ("twin tails", "pigtails"),
    "ponytail": ("pony tail",),
    "simple background": ("plain background", "background is plain", "solid background"),
    "full body": ("full-body", "head to toe"),
    "upper body": ("waist up", "torso"),
}
_STEM_WORD = re.compile(r"[^\W_]+")
_ODD = {
    "women": "woman",
    "men": "man",
    "feet": "foot",
    "teeth": "tooth",
    "children": "child",
    "gray": "grey",
    "held": "hold",
}
_ODD |= {
    "wore": "wear",
    "worn": "wear",
    "stood": "stand",
    "sat": "sit",
    "lying": "lie",
    "blond": "blonde",
    "leaves": "leaf",
}
_NEAR = 4
"""So many other words may stand among the words of a tag: `long hair` is told by `long, flowing blue hair`."""


def coverage(text: str, tags: Tags) -> tuple[float | None, list[str]]:
    """The share of the given tags that a caption tells, and those that it does not. None without any to tell."""
    wanted = [tag for tag in tags.given if tag not in _UNTOLD]
    if not wanted:
        return None, []
    places: dict[str, list[int]] = {}
    for place, match in enumerate(_STEM_WORD.finditer(text.casefold())):
        places.setdefault(_stem(match[0]), []).append(place)
    missing = [tag for tag in wanted if not any(_told(words, places) for words in _ways(tag))]
    return 1 - len(missing) / len(wanted), missing


@lru_cache(maxsize=65_536)
def _ways(tag: str) -> list[list[str]]:
    plain = re.sub(r"\s*\([^()]*\)$", "", tag) or tag
    said = [plain, *_SAID_AS.get(tag, ())]
    return [[_stem(match[0]) for match in _STEM_WORD.finditer(way)] for way in said]


def _told(words: list[str], places: Mapping[str, list[int]]) -> bool:
    """Whether all words stand near each other, in any order."""
    if not words or any(word not in places for word in words):
        return False
    reach = len(words) + _NEAR
    return any(
        all(any(abs(place - start) < reach for place in places[word]) for word in words) for start in places[words[0]]
    )


@lru_cache(maxsize=65_536)
def _stem(word: str) -> str:
    """A word without the endings of English: enough to find `smiles` and `smiling` in `smile`."""
    word = _ODD.get(word, word)
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    for ending in ("ing", "ed"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "sl":
                word = word[:-1]
            break
    return word[:-1] if len(word) > 3 and word.endswith("e") else word
