"""Faults that a text shows by itself, or beside what was asked: each check takes a text and returns a `Fault` or None.

They err on the side of silence: a sign that says "I cannot" is no refusal, and a list of colours is no loop.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import islice, product

from cutline import sentences
from cutline.checks.findings import Fault, Finding

ECHO_WORDS = 12
"""Words in a row that a caption shares with what was asked only when it repeats it."""

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uff66-\uff9f"
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+(?:['’\-][^\W_{_CJK}]+)*")
"""A word; a letter of a script that has no spaces is one by itself."""

_SAYS_NOTHING = {
    "none",
    "null",
    "nil",
    "nan",
    "n a",
    "na",
    "no caption",
    "no description",
    "undefined",
    "empty",
    "todo",
}


def empty(text: str) -> Fault | None:
    """A text without letters and digits, or with nothing but a word for nothing."""
    words = [match[0].casefold() for match in islice(_WORD.finditer(text), 3)]
    if not words:
        return Fault(Finding("empty", "no letters" if text.strip() else "no text"), "")
    if len(words) <= 2 and " ".join(words) in _SAYS_NOTHING:
        return Fault(Finding("empty", f"says only {text.strip()!r}"), "")
    return None


# Thinking

_OPEN = r"<(?:think|thinking|thought|reasoning|reflection)>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|channel>"
_CLOSE = r"</(?:think|thinking|thought|reasoning|reflection)>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<channel\|>"
_QUOTES = "\"“‘'`「『«"
_OPENED = re.compile(rf"(?<![{_QUOTES}])(?:{_OPEN})", re.IGNORECASE)
_CLOSED = re.compile(rf"(?<![{_QUOTES}])(?:{_CLOSE})", re.IGNORECASE)
_MARK = re.compile(rf"(?<![{_QUOTES}])(?:(?P<open>{_OPEN})|{_CLOSE})", re.IGNORECASE)
_CHANNEL = re.compile(r"<\|channel\|>\s*\w+")
_FINAL = re.compile(r"<\|channel\|>\s*final\s*(?:<\|message\|>)?")
_MARKER = re.compile(r"<\|(?:start|end|return|message|channel|call)\|>(?:assistant)?")
_ALOUD = re.compile(
    r"(?:(?:okay|ok|alright|all right|so|hmm+|well|right|wait|got it|now)[,.!…]*\s+)?(?:so,?\s+|now,?\s+|first,?\s+)?"
    r"(?:the user (?:wants|is asking|asked|asks|would like|wrote|gave|provided|requested|needs)\b"
    r"|(?:let me|let's|lets) (?:think|analy[sz]e|break (?:this|it) down|start by|look at (?:the"
    r"|this) (?:image|picture)"
    r"|describe|see what|tackle|go through|figure)"
    r"|i (?:need|have|should|am asked|'m asked)(?: to)? (?:describe|write|create|generate|caption|produce"
    r"|provide|output)\b"
    r"|we (?:need|have|are asked)(?: to)? (?:describe|write|create|generate|caption|produce|output|answer)\b)"
    r"|(?:(?:好的|嗯|好)[，,。！ ]*)?(?:用户(?:要求|想|让|希望|需要)|我(?:需要|应该)(?:描述|写|分析))"
    r"|(?:okay|ok|alright|hmm+|got it)[,.!…]+\s+(?:let me|let's|lets|i need to|i should)\b",
    re.IGNORECASE,
)


def thinking(text: str) -> Fault | None:
    """A model's thoughts: between marks, closed or not, or aloud at the beginning (`Okay, the user wants me to …`)."""
    if _CHANNEL.search(text):
        final = list(_FINAL.finditer(text))
        rest = _MARKER.split(text[final[-1].end() :])[0] if final else ""
        return Fault(Finding("thinking", "thoughts in a channel" + ("" if final else ", and no answer")), rest.strip())
    rest = _without_blocks(text)
    detail = "thoughts between marks" if rest != text else ""
    if closed := list(_CLOSED.finditer(rest)):
        rest, detail = rest[closed[-1].end() :], "the end of thoughts that were not opened"
    if _OPENED.search(rest):
        rest, detail = "", "thoughts that do not end"
    if detail:
        return Fault(Finding("thinking", detail), _tidy(rest))
    if _ALOUD.match(_straight(text).lstrip("*_# \n")):
        return Fault(Finding("thinking", f"it thinks aloud: {_excerpt(text)}"), "")
    return None


def _without_blocks(text: str) -> str:
    """A text without what stands from an opening mark to the next closing one."""
    kept, at = list[str](), 0
    opened: int | None = None
    for match in _MARK.finditer(text):
        if match["open"]:
            opened = match.start() if opened is None else opened
        elif opened is not None:
            kept += [text[at:opened], " "]
            at, opened = match.end(), None
    return "".join([*kept, text[at:]])


# Refusal

_NOT = r"(?:can't|cannot|can not|could not|couldn't|won't|will not|am unable|am not able|'m unable|'m not able)"
_HELP = (
    r"(?:help(?! but)|assist|provide|describ|generat|creat|fulfil"
    r"|(?:identif|recogni[sz])\w*(?: \w+){0,3}? (?:people|persons?|individuals?|anyone|who|faces?|them|him|her|humans?"
    r"|(?:wo)?m[ae]n|girls?|boys?|characters?)\b|compl|do that|do this|continu|answer"
    r"|engag|writ|caption"
    r"|discuss|process|analy[sz]|view|access|participat|support|respond|proceed|produc"
    r"|comment|perform|tag"
    r"|offer|give|share|determine who|tell you|show|fetch|open|interpret|directly (?:see|view)"
    r"|see (?:the |any |an |your |this )"
    r"?(?:image|picture|photo|attach)|see images|make (?:any )?(?:assumptions|judg))"
)
_REFUSALS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?:i(?:'m| am)(?: (?:very|so|really|truly|deeply))? sorry|(?:my )?(?:sincere )?apologies"
        r"|i (?:must )?apologi[sz]e"
        r"|sorry|unfortunately|regrettably|i(?:'m| am) afraid)\b[^.!?\n\"“]{0,60}?[,.!:;]?\s*(?:but\s+"
        r"|that\s+|as\s+)?"
        rf"\bi(?: {_NOT}|'m (?:unable|not able|not (?:comfortable|allowed))| am (?:unable|not)|'m not| do not| don't"
        r"| must decline|'ve been| have been)\b",
        r"(?:i(?:'m| am) (?:very )?sorry|sorry|i apologi[sz]e)\b[^.!?\n\"“]{0,40}\b(?:this|the|your) (?:image|request"
        r"|content|picture|prompt) (?:violates|may violate|goes against|is not|isn't|is inappropriate"
        r"|is explicit|cannot"
        r"|can't|contains)",
        rf"i (?:{_NOT}|am not able to|am unable to)(?: to)?(?: \w+ly)?(?: be able to)? {_HELP}",
        r"i(?:'m| am)(?: \w+ly)? (?:unable to|not able to|not allowed to|not permitted to|not comfortable"
        r"|not programmed to"
        r"|not designed to|just an? (?:ai|language model)"
        r"|an? (?:ai|artificial intelligence|(?:large )?language model)\b)",
        r"(?:i(?:'m| am)(?: \w+)? sorry|sorry|i apologi[sz]e),?(?: but)? as an? (?:ai|language model)\b",
        r"i regret (?:to (?:inform|say|tell)|that i)\b",
        r"(?:this|the) (?:image|picture|photo|content|request) (?:contains|depicts|shows|appears to|seems to"
        r"|is)\b[^.!?\"“]{0,80}"
        rf"\b(?:that|which|so|and) i(?: {_NOT}|'m not| am not)\b",
        r"i (?:must|have to|need to|will have to)(?: \w+ly)? (?:decline|refuse)"
        r"|i (?:respectfully )?(?:decline|refuse) to\b",
        r"i (?:do not|don't) (?:feel comfortable|have the (?:ability|capability)|have access to (?:the|any|this|your)"
        r"|see (?:an|any|the) (?:image|picture|photo|attach)|think (?:it's|it is) appropriate|assist|provide|engage)",
        r"as an? (?:responsible |helpful |text-based |large |multimodal )*(?:ai|a\.i\."
        r"|artificial intelligence|language model"
        r"|virtual assistant|llm)\b(?![- ](?:generated|made|created|rendered|art|artwork|image|picture|drawn|driven"
        r"|themed|robot|character))",
        r"(?:this|the|your) (?:request|prompt|content) (?:violates|may violate|goes against|is against|cannot be)",
        r"(?:it(?:'s| is) against|this goes against|that goes against) (?:my|our)\b",
        r"(?:it (?:looks|seems|appears)(?: like| that)? )?(?:no (?:image|picture|photo) (?:was|has been|is"
        r"|seems to be)"
        r" (?:provided|attached|uploaded|given)"
        r"|you (?:haven't|have not|didn't|did not|forgot to) (?:upload|attach|provid)"
        r"|there (?:is|was) no (?:image|picture|photo) (?:attached|provided|uploaded|given|here)"
        r"|the (?:image|picture|photo) (?:is not|isn't|was not|wasn't) (?:attached|provided|uploaded))",
        rf"i(?:'m| am) not (?:going|willing) to {_HELP}|i(?:'d| would) (?:rather not|not be able to) {_HELP}",
        r"(?:i(?:'m| am) )?(?:very )?sorry[.!]*\s*$|i (?:cannot|can't)[.!]*\s*$",
        r"(?:unable to|cannot|can't) (?:assist|comply|(?:process|describe) (?:the|this) (?:image|picture|content))",
        r"(?:the|this) (?:image|picture|photo|content)\b[^.!?\n\"“]{0,60}\b(?:explicit|sexual|nud|inappropriate|graphic"
        rf"|sensitive|adult|nsfw)[^.!?\n\"“]{{0,80}}\bi {_NOT}(?: \w+ly)? {_HELP}",
        r"please (?:provide|upload|attach|share) (?:the|an|your|a) (?:image|picture|photo)",
        r"(?:申し訳(?:ありません|ございません)|すみません)[^。\n]{0,40}(?:できません|できかねます|いたしかねます)",
        r"(?:很)?(?:抱歉|对不起|對不起)[^。\n]{0,20}(?:无法|無法|不能|不便)",
        r"我(?:无法|無法|不能)(?:提供|描述|协助|協助|帮助|幫助|回答|满足|滿足|识别|生成)",
        r"es tut mir leid[^.!?\n]{0,60}\bnicht\b|lo siento[^.!?\n]{0,20}\bno puedo\b"
        r"|(?:je suis )?désolée?[^.!?\n]{0,30}\bne peux pas\b",
        r"죄송[^.\n]{0,40}(?:수 없습니다|어렵습니다)",
    )
)
_SEES_OTHERWISE = re.compile(
    r"(?:i (?:can't|cannot|can not|could not|couldn't)|i(?:'m| am) (?:unable|not able) to)"
    r"(?: \w+ly)? (?:see|read|make out|find|discern|detect|spot|tell)\b(?! (?:the |any |an |your "
    r"|this )?(?:image|picture"
    r"|photo|attach)| you\b)",
    re.IGNORECASE,
)


_POLITE = re.compile(
    r"(?:(?:hello|hi|thanks?|thank you|i understand|i appreciate)\b[^.!?,\n\"“]{0,60}[,.!]\s+)(?:but |however,? )?",
    re.IGNORECASE,
)


def refusal(text: str) -> Fault | None:
    """An answer that begins with why there is none. What stands in quotes was said by somebody else.

    `I cannot see any text in the image, but …` tells of the picture, and is none.
    """
    if not _refuses(text):
        return None
    rest = sentences.split(text.strip())[1:]
    while rest and (_unhelpful(rest[0]) or _refuses(rest[0])):
        rest = rest[1:]
    return Fault(Finding("refusal", f"it begins: {_excerpt(text)}"), sentences.whole(" ".join(rest)))


def _refuses(text: str) -> bool:
    head = _POLITE.sub("", _straight(text).lstrip("*_#> \t\n"), count=1)
    if head[:1] in tuple(_QUOTES) or _SEES_OTHERWISE.match(head):
        return False
    return any(pattern.match(head) for pattern in _REFUSALS)


def _unhelpful(sentence: str) -> bool:
    """Whether a sentence after a refusal still speaks of the model, or to the user."""
    plain = _straight(sentence).casefold()
    return (
        re.match(r"(?:but )?(?:i|i'\w+|however, i|if you|please|let me|would you|is there|you|my)\b", plain) is not None
    )


# Echo


def prompt_echo(text: str, asked: str) -> Fault | None:
    """A long piece of what was asked, word for word; at the beginning, one sentence of it is long enough."""
    if not asked.strip():
        return None
    pieces, openings = _shingles(asked)
    words = [(match[0].casefold(), match.start(), match.end()) for match in _WORD.finditer(text.replace("_", " "))]
    plain = [word for word, _, _ in words]
    spans: list[tuple[int, int]] = []
    for size, start in product(sorted({len(opening) for opening in openings}, reverse=True), range(3)):
        # A word or two may stand before it, such as `system` and `user`.
        if start + size <= len(plain) and tuple(plain[start : start + size]) in openings:
            spans.append((words[0][1], words[start + size - 1][2]))
            break
    spans += [
        (words[start][1], words[start + ECHO_WORDS - 1][2])
        for start in range(len(plain) - ECHO_WORDS + 1)
        if tuple(plain[start : start + ECHO_WORDS]) in pieces
    ]
    if not spans:
        return None
    begin, end = spans[0]
    return Fault(Finding("prompt_echo", f"asked and said: {_excerpt(text[begin:end])}"), without(text, spans))


@lru_cache(maxsize=64)
def _shingles(asked: str) -> tuple[frozenset[tuple[str, ...]], frozenset[tuple[str, ...]]]:
    """All rows of `ECHO_WORDS` words of a text, and its sentences of five words and more, up to that many."""
    plain = [match[0].casefold() for match in _WORD.finditer(asked.replace("_", " "))]
    rows = {tuple(plain[start : start + ECHO_WORDS]) for start in range(len(plain) - ECHO_WORDS + 1)}
    said = [
        tuple(match[0].casefold() for match in _WORD.finditer(sentence.replace("_", " ")))
        for line in asked.splitlines()
        for sentence in sentences.split(line)
        if sentences.ended(sentence) or sentence.endswith(":") or "," not in sentence  # what has commas may be tags
    ]
    return frozenset(rows), frozenset(words for words in said if 5 <= len(words) <= 40)


# Loops

_LETTERS = re.compile(r"(\w)\1{29,}|([^\w\s])\2{59,}|([^\w\s])(?:\s{1,3}\3){29,}")
_WITHIN = re.compile(r"(?=[^\W\d_]{24})([^\W\d_]{2,12}?)\1{11,}")


_QUOTED = r"\"[^\"\n]{1,120}\"|“[^”\n]{1,120}”|「[^」\n]{1,120}」|『[^』\n]{1,120}』"
_BLANKED = re.compile(_QUOTED)
_UNIT = re.compile(rf"{_QUOTED}|{_WORD.pattern}")
"""A word, or a whole quote: a sign that reads "HA HA HA HA HA HA HA HA" says it, and not the model."""


def loop(text: str) -> Fault | None:
    """Words over and over: the same row of words so many times running, or one sentence again and again.

    How often is too often depends on how long the row is: a word eight times, three words five times, eight and more
    three times. In scripts without spaces a word is a letter, and may come twice as often.
    """
    plain_text = _BLANKED.sub(lambda match: " " * len(match[0]), text)
    for pattern in (_LETTERS, _WITHIN):
        if match := pattern.search(plain_text):
            unit = match[1] or match[match.lastindex or 0]
            times = len(match[0]) // len(unit)
            return _looped(text, match.start(), match.start() + len(unit), unit, times)
    words = list(_UNIT.finditer(text))
    plain = [match[0].casefold() for match in words]
    if found := _repeated(plain):
        start, period, times = found
        begin, end = words[start].start(), words[start + period - 1].end()
        after = re.compile(r"[^\w\s\"“(\[]*").match(text, end)
        end = after.end() if after else end
        return _looped(text, begin, end, text[begin:end], times)
    return _said_again(text)


def _looped(text: str, begin: int, end: int, unit: str, times: int) -> Fault:
    """A loop whose first round is from `begin` to `end`: that round stays where it ends a sentence."""
    return Fault(Finding("loop", f"{times} times in a row: {_excerpt(unit)}"), sentences.whole(text[:end]))


def _repeated(words: Sequence[str]) -> tuple[int, int, int] | None:
    """The first row of words that comes too often running: where it starts, how many words, how many times."""
    periods = {1, 2, 3, *_distances(words)}
    found = []
    for period in sorted(periods):
        start, same = 0, 0
        for place in range(period, len(words)):
            if words[place] == words[place - period]:
                if not same:
                    start = place - period
                same += 1
            else:
                same = 0
            if same >= 2 * period and same + period >= period * _too_often(words[start : start + period]):
                run = place + 1
                while run < len(words) and words[run] == words[run - period]:
                    run += 1
                found.append((start, period, (run - start) // period))
                break
    return min(found, default=None)


def _distances(words: Sequence[str]) -> set[int]:
    """How far apart rows of four words come again: only these can be longer periods.

    In a loop most rows of its words do so, twice and more; a distance that is rarer than half its length is chance.
    """
    last: dict[tuple[str, ...], int] = {}
    often: Counter[int] = Counter()
    for start, four in enumerate(zip(words, words[1:], words[2:], words[3:], strict=False)):
        if four in last:
            often[start - last[four]] += 1
        last[four] = start
    return {distance for distance, times in often.items() if 2 * times >= distance}


def _too_often(row: Sequence[str]) -> int:
    size = len(row)
    if all(len(word) == 1 and not word.isascii() for word in row):  # a script without spaces
        return 16 if size == 1 else 8 if size <= 3 else 5 if size <= 8 else 3
    return 8 if size == 1 else 5 if size <= 3 else 4 if size <= 7 else 3


def _said_again(text: str) -> Fault | None:
    """One sentence said three times or more, wherever; a short one four times, one word six."""
    seen: dict[str, int] = defaultdict(int)
    second: dict[str, int] = {}
    at = 0
    for end in sentences.ends(text):
        sentence = text[at:end]
        plain = " ".join(match[0].casefold() for match in _WORD.finditer(sentence))
        at_sentence, at = at, end
        if not plain:
            continue
        seen[plain] += 1
        if seen[plain] == 2:
            second[plain] = at_sentence
        if seen[plain] >= (3 if len(plain) >= 20 or plain.count(" ") >= 3 else 4 if " " in plain else 6):
            begin = second[plain]
            return Fault(Finding("loop", f"said again and again: {_excerpt(sentence)}"), text[:begin].rstrip())
    return None


# Shared


def without(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """A text without the sentences that touch these spans."""
    spans = list(spans)
    kept, at = [], 0
    ends = sentences.ends(text)
    if sentences.outside_quotes(text, [len(text)]):
        ends = sentences.outside_quotes(text, ends)  # what is quoted is not torn
    for end in [*ends, len(text)]:
        if end > at and not any(begin < end and at < stop for begin, stop in spans):
            kept.append(text[at:end].strip())
        at = end
    return " ".join(part for part in kept if part)


def _straight(text: str) -> str:
    return text.replace("’", "'").replace("‘", "'").replace("ʼ", "'")


def _tidy(text: str) -> str:
    return re.sub(r"[ \t]{2,}", " ", text).strip()


def _excerpt(text: str, most: int = 100) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= most else plain[: most - 1] + "…"
