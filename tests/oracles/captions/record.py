"""Write the truth beside this file, by the programs that others measure captions with.

Run it in an environment of its own: `pip install sacrebleu==2.6.0 rouge-score==0.1.2 pycocoevalcap==1.2`.
"""

# mypy: ignore-errors

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer
from sacrebleu.metrics import BLEU

HERE = Path(__file__).parent
WORDS = "a the red blue dog cat sits runs on under table grass with hat and two left of man's 3.5 über 猫 собака"
VOCABULARY = WORDS.split()

BY_HAND: dict[str, dict[str, tuple[str, list[str]]]] = {
    "odd": {
        "same": ("a dog on the grass", ["a dog on the grass"]),
        "empty": ("", ["a cat under a table"]),
        "one word": ("dog", ["a dog on the grass"]),
        "one word of one": ("cat", ["cat"]),
        "nothing common": ("two red hats", ["a blue table with grass"]),
        "loop": ("the the the the the the the", ["the cat is on the mat", "there is a cat on the mat"]),
        "repeated n-grams": ("a dog and a dog and a dog and a dog", ["a dog and a dog", "a dog and a cat and a dog"]),
        "several": ("a man on a horse", ["a man riding a horse", "a person on a horse", "the man is on a brown horse"]),
        "as near in length": ("a cat sits on", ["a cat", "a cat sits on a table"]),
        "equal references": ("a red hat", ["a red hat", "a red hat"]),
        "unicode": ("über 猫 naïve собака", ["über 猫 собака", "naïve café 猫 собака"]),
        "long": ("a cat " * 40 + "sits", ["a cat sits" + " a cat sits" * 19, "a dog runs"]),
    },
    "one picture": {"only": ("a dog on the grass", ["a dog runs on the grass", "a dog on grass"])},
    "no four words": {"a": ("a dog", ["a dog"]), "b": ("a cat", ["a cat sits"])},
    "all empty": {"a": ("", ["a dog"]), "b": ("", ["a cat sits"])},
}


def drawn(seed: int, pictures: int) -> dict[str, tuple[str, list[str]]]:
    """Captions with much in common with their references, of lengths from none to thirty words."""
    draw = random.Random(seed)
    found = {}
    for number in range(pictures):
        references = [draw.choices(VOCABULARY, k=draw.randint(1, 30)) for _ in range(draw.randint(1, 5))]
        caption = [word if draw.random() < 0.8 else draw.choice(VOCABULARY) for word in draw.choice(references)]
        caption = caption[: draw.randint(0, len(caption))] if draw.random() < 0.3 else caption
        found[f"{number:03}"] = (" ".join(caption), [" ".join(reference) for reference in references])
    return found


class Spaces(Tokenizer):
    """Words are parted by spaces, for rouge_score as for the others."""

    def tokenize(self, text: str) -> list[str]:
        """The words."""
        return text.split()


def truth(cases: dict[str, tuple[str, list[str]]]) -> dict[str, Any]:
    """What the programs say of some pictures."""
    said = {key: [caption] for key, (caption, _) in cases.items()}
    true = {key: references for key, (_, references) in cases.items()}
    most = max(map(len, true.values()))
    streams = [[one[number] if number < len(one) else None for one in true.values()] for number in range(most)]
    bleu = BLEU(tokenize="none", smooth_method="none", force=True)
    bleu_4 = bleu.corpus_score([caption for caption, _ in cases.values()], streams).score / 100
    cider_d, each_cider_d = Cider().compute_score(true, said)
    rouge_l, each_rouge_l = Rouge().compute_score(true, said)
    scorer = RougeScorer(["rougeL"], tokenizer=Spaces())
    first = [scorer.score(references[0], caption)["rougeL"] for caption, references in cases.values()]
    return {
        "pictures": [{"key": key, "caption": caption, "references": true[key]} for key, (caption, _) in cases.items()],
        "bleu_4": bleu_4,
        "cider_d": float(cider_d),
        "rouge_l": float(rouge_l),
        "each_cider_d": [float(score) for score in each_cider_d],
        "each_rouge_l": [float(score) for score in each_rouge_l],
        "first_reference": [{"precision": score.precision, "recall": score.recall} for score in first],
    }


if __name__ == "__main__":
    cases = {**BY_HAND, "drawn": drawn(1, 60), "drawn again": drawn(2, 25)}
    found = {name: truth(pictures) for name, pictures in cases.items()}
    text = json.dumps(found, ensure_ascii=False, indent=1)
    (HERE / "truth.json").write_text(text + "\n", encoding="utf-8")
