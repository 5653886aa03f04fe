"""What a text means, as a vector: texts that mean the same point the same way.

Without a model meaning is guessed by spelling (`Lexical`), which knows no synonyms: `puppy` and `dog` have nothing in
common. A model of sentence-transformers knows them. Since scores of two embedders cannot be compared, the name of the
one that was used is told wherever scores are.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cutline.evaluation.words import words
from cutline.options import CutlineError

FloatArray = npt.NDArray[np.float32]

LEXICAL = "lexical"
_WIDTH = 4096
_ROWS = 512  # texts whose counts are made at once


class Embedder(Protocol):
    """Turns texts into vectors."""

    @property
    def name(self) -> str:
        """What it is called wherever scores are told."""
        ...

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """(texts, width): a row of length 1 for each text; zeros for one of which it knows nothing."""
        ...


class Lexical:
    """Spelling: how often a text has each word, and each three letters of a word, hashed into 4,096 places.

    A long word counts for more than a short one, since it has more letters; the order of words counts for nothing. The
    same on every machine.
    """

    name = LEXICAL

    def __init__(self) -> None:
        self._known: dict[str, list[int]] = {}

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """(texts, 4096), rows of length 1; zeros for a text without words."""
        found = np.zeros((len(texts), _WIDTH), np.float32)
        for start in range(0, len(texts), _ROWS):
            places = [
                row * _WIDTH + place
                for row, text in enumerate(texts[start : start + _ROWS])
                for word in words(text)
                for place in self._places(word)
            ]
            rows = len(texts[start : start + _ROWS])
            counts = np.bincount(np.array(places, np.int64), minlength=rows * _WIDTH).reshape(rows, _WIDTH)
            found[start : start + rows] = counts
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        return np.divide(found, lengths, out=found, where=lengths > 0)

    def _places(self, word: str) -> list[int]:
        if word not in self._known:
            marked = f"<{word}>"
            features = [word, *(marked[start : start + 3] for start in range(len(marked) - 2))]
            self._known[word] = [zlib.crc32(feature.encode()) % _WIDTH for feature in features]
        return self._known[word]


class SentenceTransformer:
    """A model of sentence-transformers, by its name on the Hugging Face hub or as a folder."""

    def __init__(self, name: str, device: str = "auto") -> None:
        self.name = name
        self._device = device

    @cached_property
    def _model(self) -> Any:
        try:
            import sentence_transformers
        except ImportError:
            raise CutlineError(
                f"the embedder {self.name} needs sentence-transformers: pip install sentence-transformers"
            ) from None
        folder = Path(self.name).expanduser()
        if folder.is_dir():
            _refuse_pickles(folder)
        elif self.name.startswith((".", "/", "~")) or self.name.count("/") > 1:
            raise CutlineError(f"there is no folder {self.name} with an embedder")
        try:
            return sentence_transformers.SentenceTransformer(
                str(folder) if folder.is_dir() else self.name,
                device=None if self._device == "auto" else self._device,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
        except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CutlineError(
                f"the embedder {self.name} cannot be loaded: {said} Give the name of a sentence-transformers model on "
                "the hub, a folder with one, or nothing to compare by spelling"
            ) from None

    def load(self) -> None:
        """Load the model now, and say now where it cannot be. Raises CutlineError."""
        self._model  # noqa: B018

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """(texts, the model's width), rows of length 1."""
        if not texts:
            return np.zeros((0, 1), np.float32)
        found = self._model.encode(
            list(texts), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        return np.asarray(found, np.float32)


def find_embedder(name: str = "", device: str = "auto") -> Embedder:
    """An embedder, ready to use: `lexical` or nothing for spelling, else a model of sentence-transformers.

    Args:
        name: of a model on the hub, or a folder.
        device: `auto`, `cpu`, `cuda`, `cuda:1` …, where a model runs.

    Raises:
        CutlineError: sentence-transformers is not installed, or the model cannot be loaded.
    """
    if name in ("", LEXICAL):
        return Lexical()
    found = SentenceTransformer(name, device)
    found.load()
    return found


def _refuse_pickles(folder: Path) -> None:
    """Raise CutlineError for a part of a model whose weights are a pickle alone."""
    for pickle in sorted(folder.rglob("pytorch_model*.bin")):
        if not list(pickle.parent.glob("*.safetensors")):
            raise CutlineError(
                f"{pickle} holds weights as a pickle, which may run code. Save the model again as safetensors: "
                "SentenceTransformer(…).save_pretrained(FOLDER)"
            )
