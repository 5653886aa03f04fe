"""The measures of captions: as the programs that define them, and as by hand."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutline.evaluation.captions import SCORES, measure, paired
from cutline.evaluation.embedders import FloatArray, Lexical, find_embedder
from cutline.evaluation.words import phrases, words
from cutline.options import CutlineError

TRUTH: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "oracles" / "captions" / "truth.json").read_text("utf-8")
)
BETA = 1.2


@pytest.mark.parametrize("name", TRUTH)
def test_scores_are_those_of_the_programs_that_define_them(name: str) -> None:
    truth = TRUTH[name]
    pictures = {picture["key"]: picture for picture in truth["pictures"]}
    candidates = {key: picture["caption"] for key, picture in pictures.items()}
    found = measure(candidates, {key: picture["references"] for key, picture in pictures.items()})
    for score in ("bleu_4", "cider_d", "rouge_l"):
        assert found.scores[score] == pytest.approx(truth[score], abs=1e-6), score
    for score in ("cider_d", "rouge_l"):
        each = [found.each[key][score] for key in pictures]
        assert each == pytest.approx(truth[f"each_{score}"], abs=1e-6)
    alone = measure(candidates, {key: picture["references"][:1] for key, picture in pictures.items()})
    for key, first in zip(pictures, truth["first_reference"], strict=True):
        precision, recall = first["precision"], first["recall"]
        both = recall + BETA**2 * precision
        expected = (1 + BETA**2) * precision * recall / both if both else 0
        assert alone.each[key]["rouge_l"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog, on the GRASS!", "a dog on the grass"),
        ("the dog's hat isn’t 3.5 m, but 1,000 cm.", "the dog's hat isn't 3.5 m but 1,000 cm"),
        ("black-haired long_hair 'quoted' v1.5", "black haired long hair quoted v1 5"),
        ("Straße CAFÉ cafe\u0301", "straße café café"),
        ("一只猫 cat猫", "一 只 猫 cat 猫"),
        ("हिन्दी में", "हिन्दी में"),
        ("🎉 — …", ""),
        ("", ""),
    ],
)
def test_words(text: str, expected: str) -> None:
    assert words(text) == expected.split()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a black and white cat", ["a black and white cat"]),
        ("a brown dog and a white cat", ["a brown dog", "and a white cat"]),
        ("a brown dog and cats and a white cat", ["a brown dog", "and cats and a white cat"]),
        ("1girl, solo, 1,000 stars", ["1girl", "solo", "1,000 stars"]),
        ("A cat sits. It is red; its hat - blue.", ["A cat sits.", "It is red", "its hat", "blue."]),
        ("猫，狗。鸟", ["猫", "狗。", "鸟"]),
        ("... , !", []),
    ],
)
def test_phrases(text: str, expected: list[str]) -> None:
    assert phrases(text) == expected


class Meanings:
    """An embedder that knows a few words, each a direction of its own, and that a puppy is a dog."""

    name = "meanings"
    known = ("dog", "cat", "hat", "tree")

    def encode(self, texts: Sequence[str]) -> FloatArray:
        rows = []
        for text in texts:
            said = words(text.replace("puppy", "dog"))
            rows.append([float(said.count(word)) for word in self.known])
        found = np.array(rows, np.float32).reshape(len(texts), len(self.known))
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        found /= np.maximum(lengths, 1)
        return found


def test_meaning_as_by_hand() -> None:
    references = {
        "said too much": ["dog"],
        "said too little": ["dog, cat, hat, tree"],
        "a synonym": ["dog"],
        "half": ["dog, hat"],
        "the nearer reference": ["tree", "dog, cat"],
        "nothing": ["dog"],
    }
    candidates = {
        "said too much": "dog, cat, hat, tree",
        "said too little": "dog",
        "a synonym": "puppy",
        "half": "dog hat",
        "the nearer reference": "cat, dog",
    }
    found = measure(candidates, references, Meanings())
    half = float(np.sqrt(0.5))
    expected = {
        "said too much": (0.25, 1, 0.4),
        "said too little": (1, 0.25, 0.4),
        "a synonym": (1, 1, 1),
        "half": (half, half, half),
        "the nearer reference": (1, 1, 1),
        "nothing": (0, 0, 0),
    }
    for key, scores in expected.items():
        names = ("semantic_precision", "semantic_recall", "semantic_f1")
        assert [found.each[key][name] for name in names] == pytest.approx(scores, abs=1e-6), key
    assert found.embedder == "meanings"
    assert found.scores["semantic_f1"] == pytest.approx(np.mean([scores[2] for scores in expected.values()]), abs=1e-6)


def test_exact_is_letter_for_letter_but_for_spaces() -> None:
    true = {key: ["A dog.", "a caf\u00e9"] for key in "abcdef"}
    said = {"a": "A dog.", "b": " A\n dog. ", "c": "a dog", "d": None, "e": "a cafe\u0301", "z": "A dog."}
    found = measure(said, true)
    assert {key: scores["exact"] for key, scores in found.each.items()} == dict(
        zip("abcdef", [1, 1, 0, 0, 1, 0], strict=True)
    )
    assert found.scores["exact"] == 0.5


def test_what_has_no_reference_is_not_measured() -> None:
    found = measure({"a": "a dog", "b": "a cat"}, {"a": ["", "a dog"], "b": ["…", ""], "c": []})
    assert found.keys == ("a",)
    assert found.scores["exact"] == 1
    with pytest.raises(CutlineError, match="no picture has a reference"):
        measure({"a": "a dog"}, {"a": [" "]})


def some(seed: int, count: int = 200, right: float = 0.5) -> tuple[dict[str, str | None], dict[str, list[str]]]:
    """Captions of which each word is right with this chance, and what they should be."""
    draw = random.Random(seed)
    vocabulary = [f"word{number}" for number in range(50)]
    true = {str(number): [" ".join(draw.choices(vocabulary, k=8))] for number in range(count)}
    said: dict[str, str | None] = {
        key: " ".join(word if draw.random() < right else draw.choice(vocabulary) for word in text.split())
        for key, (text,) in true.items()
    }
    return said, true


def test_intervals_hold_the_score_and_shrink_with_more_pictures() -> None:
    few, many = (measure(*some(1, count)) for count in (50, 800))
    for found in (few, many):
        for name, (low, high) in found.intervals(200).items():
            assert low <= found.scores[name] <= high, name
    wide, narrow = (found.intervals(200)["rouge_l"] for found in (few, many))
    assert narrow[1] - narrow[0] < (wide[1] - wide[0]) / 2
    assert list(few.scores) == list(few.intervals(10)) == list(SCORES)
    assert many.intervals(50, seed=3) == many.intervals(50, seed=3) != many.intervals(50, seed=4)


def test_a_resample_scores_as_if_its_pictures_were_measured() -> None:
    """What each picture adds is enough: BLEU of some pictures is BLEU of their sums."""
    said, true = some(2, 30)
    found = measure(said, true)
    again = np.bincount(np.random.default_rng(7).integers(0, 30, 30), minlength=30)
    keys = [f"{key} {time}" for key, times in zip(true, again.tolist(), strict=True) for time in range(times)]
    drawn = measure({key: said[key.split()[0]] for key in keys}, {key: true[key.split()[0]] for key in keys})
    low, high = found.intervals(1, seed=7)["bleu_4"]
    assert low == high == pytest.approx(drawn.scores["bleu_4"])


def test_pairs_tell_what_intervals_do_not() -> None:
    said, true = some(5, right=0.5)
    better: dict[str, str | None] = {**said, **{key: true[key][0] for key in list(true)[:12]}}
    old, new = measure(said, true), measure(better, true)
    difference = paired(new, old, 300)["rouge_l"]
    assert new.intervals(300)["rouge_l"][0] < old.intervals(300)["rouge_l"][1], "by themselves they overlap"
    assert difference.value == pytest.approx(new.scores["rouge_l"] - old.scores["rouge_l"])
    assert 0 < difference.low < difference.value < difference.high
    assert set(paired(old, old, 10).values()) == {(0, 0, 0)}
    with pytest.raises(ValueError, match="the same pictures"):
        paired(new, measure({}, {"other": ["a dog"]}))


def test_the_lexical_embedder_knows_spelling() -> None:
    found = Lexical().encode(["a red dog", "dog, red, A", "two red dogs", "blue sky", "…", ""])
    lengths = np.linalg.norm(found, axis=1)
    assert lengths.tolist() == pytest.approx([1, 1, 1, 1, 0, 0], abs=1e-6)
    like = found @ found.T
    assert like[0, 1] == pytest.approx(1, abs=1e-6)
    assert 0.4 < like[0, 2] < 0.9
    assert like[0, 3] < 0.1
    again = Lexical().encode(["blue sky"] * 600)
    assert (again == found[3]).all(), "whatever was asked before or beside it"
    assert Lexical().encode([]).shape[0] == 0
    assert (find_embedder().name, find_embedder("lexical").name) == ("lexical", "lexical")


def test_an_embedder_that_is_not_there_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CutlineError, match="there is no folder"):
        find_embedder(str(tmp_path / "nowhere"))
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CutlineError, match="safetensors"):
        find_embedder(str(tmp_path / "pickled"))
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # as where it is not installed
    with pytest.raises(CutlineError, match="pip install sentence-transformers"):
        find_embedder("all-MiniLM-L6-v2")


@pytest.mark.slow
def test_a_folder_of_sentence_transformers_is_an_embedder(tmp_path: Path) -> None:
    """One of random weights, in safetensors; a folder without a model is refused."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "dog", "cat"])}
    tokenizer = Tokenizer(WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    config = BertConfig(vocab_size=6, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(config).save_pretrained(tmp_path / "bert")
    fast.save_pretrained(tmp_path / "bert")
    inner = Transformer(str(tmp_path / "bert"))
    made = SentenceTransformer(modules=[inner, Pooling(16)], device="cpu")
    made.save_pretrained(str(tmp_path / "model"))
    found = find_embedder(str(tmp_path / "model"), "cpu")
    vectors = found.encode(["dog", "cat", "dog"])
    assert vectors.shape == (3, 16)
    assert np.linalg.norm(vectors, axis=1).tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    assert measure({"a": "dog"}, {"a": ["dog"]}, found).scores["semantic_f1"] == pytest.approx(1, abs=1e-5)
    assert measure({"a": "dog"}, {"a": ["dog"]}, found).embedder == str(tmp_path / "model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CutlineError, match="cannot be loaded"):
        find_embedder(str(tmp_path / "empty"), "cpu")


def test_measuring_needs_no_torch() -> None:
    code = (
        "import sys; from cutline.evaluation.captions import measure; import cutline.evaluation.layers\n"
        "assert measure({'a': 'x'}, {'a': ['x']}).scores['exact'] == 1\n"
        "assert not {'torch', 'transformers', 'sentence_transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
