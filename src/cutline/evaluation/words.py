"""The words and phrases of a caption, as every measure but exact match sees it.

Words: lower case, letters with their marks and digits; everything else is dropped or parts words, but for an apostrophe
within a word (`dog's`) and the point of a decimal (`3.5`). A letter of a script without spaces (Chinese, Japanese,
Thai, Lao, Burmese, Khmer) is a word of its own.

A phrase ends with a sentence, at a comma, semicolon, colon or dash, and before an `and`, `while` or `but` that has
three words or more on either side: "a brown dog and a white cat" is two, "a black and white cat" one. Phrases and not
sentences, since of two captions of one sentence each, precision and recall would be one number; and phrases always,
since a cut that depended on the text would hold whole sentences against phrases.
"""

from __future__ import annotations

import re
import unicodedata

from cutline import sentences

_WORD = re.compile(r"\d+(?:[.,]\d+)+|[^\s.,']+(?:'[^\s.,']+)*")
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x30FF),  # Japanese kana, and the marks of repetition
    (0x31F0, 0x31FF),
    (0x3400, 0x9FFF),  # Han
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
_PHRASE = re.compile(r"[,;:](?=\s|$)|\s[-–—]\s|—|[，、；：]")
_JOINED = re.compile(r"\s(?=(?:and|while|but)\s)", re.IGNORECASE)


class _Letters(dict[int, str]):
    """What becomes of each letter before words are looked for; filled as letters come."""

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        if letter in "'.,":
            made = letter
        elif letter in "’ʼ＇":
            made = "'"
        elif unicodedata.category(letter)[0] not in "LMN":
            made = " "
        else:
            made = f" {letter} " if any(low <= code <= high for low, high in _UNSPACED) else letter
        self[code] = made
        return made


_LETTERS = _Letters()


def words(text: str) -> list[str]:
    """The words of a text, in order."""
    return _WORD.findall(unicodedata.normalize("NFC", text).lower().translate(_LETTERS))


def phrases(text: str) -> list[str]:
    """The phrases of a text, each with a word at least."""
    found = []
    for sentence in sentences.split(text):
        for part in _PHRASE.split(sentence):
            phrase, *rest = _JOINED.split(part)
            for number, after in enumerate(rest):
                if len(words(phrase)) >= 3 and len(words(" ".join(rest[number:]))) > 3:  # its `and` is one
                    found.append(phrase)
                    phrase = after
                else:
                    phrase = f"{phrase} {after}"
            found.append(phrase)
    return [phrase.strip() for phrase in found if words(phrase)]
