"""What a text means, as a vector: texts that mean the same point the same way.

Without a model meaning is guessed by spelling (`Lexical`), which knows no synonyms: `puppy` and `dog` have nothing in
common. A model of sentence-transformers knows them. Since scores of two embedders cannot be compared, the name of the
one that was used is told wherever scores are.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from importlib.util import find_spec
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
        np.divide(found, lengths, out=found, where=lengths > 0)
        return found

    def _places(self, word: str) -> list[int]:
        if word not in self._known:
            marked = f"<{word}>"
            features = [word, *(marked[start : start + 3] for start in range(len(marked) - 2))]
            self._known[word] = [zlib.crc32(feature.encode("utf-8", "surrogatepass")) % _WIDTH for feature in features]
        return self._known[word]


class SentenceTransformer:
    """A model of sentence-transformers, by its name on the Hugging Face hub or as a folder."""

    def __init__(self, name: str, device: str = "auto") -> None:
        folder = Path(name).expanduser()
        if find_spec("sentence_transformers") is None:
            raise CutlineError(f"the embedder {name} needs sentence-transformers: pip install sentence-transformers")
        if folder.is_dir():
            _refuse_pickles(folder)
        elif name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise CutlineError(f"there is no folder {name} with an embedder")
        self.name = name
        import sentence_transformers

        try:
            self._model: Any = sentence_transformers.SentenceTransformer(
                str(folder) if folder.is_dir() else name,
                device=None if device == "auto" else device,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
        except (OSError, ValueError, RuntimeError, LookupError, TypeError, ImportError) as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise CutlineError(
                f"the embedder {name} cannot be loaded: {said}. Give the name of a sentence-transformers model on "
                "the hub, a folder with one, or nothing to compare by spelling"
            ) from None

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
        CutlineError: sentence-transformers is not installed, or the model cannot be loaded, or its weights are pickles.
    """
    return Lexical() if name in ("", LEXICAL) else SentenceTransformer(name, device)


def _refuse_pickles(folder: Path) -> None:
    """Raise CutlineError for a part of a model whose weights are a pickle alone."""
    for pickle in sorted(folder.rglob("pytorch_model*.bin")):
        if not list(pickle.parent.glob("*.safetensors")):
            raise CutlineError(
                f"{pickle} holds weights as a pickle, which may run code. Save the model again as safetensors: "
                "SentenceTransformer(…).save_pretrained(FOLDER)"
            )
