"""CLIP's tokenizer, offline: its vocabulary is read from the files of the installed package open_clip_torch.

CLIP-L and CLIP-G share it. It is a byte-level BPE of 49,408 entries: the 256 bytes, the same at the end of a word
(`</w>`), 48,894 merges, `<|startoftext|>` (49406) and `<|endoftext|>` (49407). How a text is cleaned and cut into words
is what transformers' `CLIPTokenizer` does: NFC, runs of white space as one space, lower case.

open_clip_torch itself is never imported (that would need torch), and so may be installed without what it depends on.
"""

from __future__ import annotations

import functools
import gzip
import re
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

_BPE = "bpe_simple_vocab_16e6.txt.gz"
_MERGES = 48_894  # the file goes on; CLIP stops here
_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORD = (
    r"<\|startoftext\|>|<\|endoftext\|>"
    r"|'s|'t|'re|'ve|'m|'ll|'d"
    r"|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
)
_OF_FTFY = re.compile(r"[‘’‚‛“”„‟\u3000\uff01-\uffef\ufb00-\ufb06]")


def ftfy_changes(text: str) -> bool:
    """Whether a text has curly quotes, wide letters or ligatures, which the package ftfy makes plain.

    `CLIPTokenizer` of transformers 4 puts a text through it where it is installed, as sd-scripts' requirements have it.
    """
    return _OF_FTFY.search(text) is not None


@functools.cache
def packaged() -> Tokenizer | None:
    """CLIP's tokenizer out of open_clip_torch's files; None where that is not installed."""
    try:
        found = next((file for file in files("open_clip_torch") or [] if file.name == _BPE), None)
    except PackageNotFoundError:
        return None
    if found is None:
        return None
    lines = gzip.decompress(Path(str(found.locate())).read_bytes()).decode().splitlines()
    pairs = [tuple(line.split()) for line in lines[1 : 1 + _MERGES]]
    return build([(left, right) for left, right in pairs])


def build(merges: list[tuple[str, str]]) -> Tokenizer:
    """CLIP's tokenizer of these merges, in their order. An entry's id is its place: bytes, bytes</w>, merges, marks."""
    letters = _byte_letters()
    entries = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), _START, _END]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={entry: number for number, entry in enumerate(entries)},
            merges=merges,
            end_of_word_suffix="</w>",
            unk_token=_END,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_WORD), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in (_START, _END)])
    return tokenizer


def _byte_letters() -> list[str]:
    """The letters that stand for bytes in a byte-level vocabulary, in the order of their ids.

    A byte that prints stands for itself. The 68 others follow, as the letters from U+0100 on.
    """
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printing] + [chr(256 + number) for number in range(256 - len(printing))]
