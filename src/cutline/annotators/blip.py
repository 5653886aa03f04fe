"""BLIP writes a caption: a small captioner that runs on any machine, with or without an adapter of one's own.

The network is `BlipForConditionalGeneration` of transformers (Li et al. 2022, https://arxiv.org/abs/2201.12086).
What a picture is told depends on the picture and the settings alone: not on the batch that it sat in, the worker or
the order. Searches (greedy, beams) are so by nature. Sampling is made so: each row has a random generator of its own,
seeded by xxh64 of "{seed}/{key}" ("{seed}.{attempt}/{key}" from the second attempt on, which thus draws anew).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cutline import toml_files
from cutline.annotators.local import (
    Local,
    Search,
    choose_batch_size,
    drawing,
    find_device,
    load_config,
    load_part,
    load_weights,
    not_installed,
)
from cutline.annotators.session import Batched, Row, seed_text
from cutline.annotators.trained import Trained
from cutline.checks.findings import checked
from cutline.checks.judging import Policies, judge
from cutline.options import CutlineError, OptionError, digest, option
from cutline.pictures import decode

if TYPE_CHECKING:
    import torch

BASE = "Salesforce/blip-image-captioning-base"


@dataclass(frozen=True)
class Blip(Local, Search):
    """Caption pictures with BLIP."""

    writes: ClassVar[str] = "captions/blip"
    reads: ClassVar[tuple[str, ...]] = ("pictures",)
    workers: ClassVar[Literal["device", "core"]] = "device"
    called: ClassVar[str] = "blip"
    base: ClassVar[str | None] = BASE
    default_beams: ClassVar[int] = 3

    model: str | None = option(None, f"hub name or local folder; the adapter's base, or else {BASE}", files=True)
    prompt: str | None = option(
        None, "words with which every caption begins; those that the weights were trained with, or none"
    )
    beams: int | None = option(None, "captions searched side by side: 1 is greedy; 3, or 1 with sample=true")
    seed: int | None = option(None, "with sample=true: another number, other captions; 0")
    max_tokens: int = option(75, "a caption is cut after so many tokens")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option("float32", "number format of the weights")
    batch_size: int | Literal["auto"] = option(
        16,
        "pictures at once, halved when memory runs out; auto: as many as fit on a GPU, few elsewhere",
        identity=False,
    )

    def __post_init__(self) -> None:
        """Fill in what was left open and refuse what would have no effect."""
        if not self.sample and self.seed is not None:
            raise OptionError(f"blip: seed={self.seed} has no effect without -o sample=true")
        if self.sample and self.seed is None:
            object.__setattr__(self, "seed", 0)
        if self.attention not in (None, "eager"):
            raise OptionError(f"blip: attention={self.attention} is not to be had: transformers has BLIP's eager only")
        Search.__post_init__(self)
        Local.__post_init__(self)
        if self.prompt is None:
            object.__setattr__(self, "prompt", "")

    def trained_prompt(self, found: Trained) -> str | None:
        """The words with which every caption began in training: the `user` of its prompt."""
        return str(toml_files.read(found.prompt, "prompt").get("user", "")) if found.prompt else None

    def request(self, row: Row) -> dict[str, Any]:
        """What is asked of the model for this row; its digest becomes the row's `request`."""
        attempt = row.get("attempt") or 1
        return {
            **self.weights(),
            "prompt": self.prompt,
            "picture": row["uri"],
            **self.search(attempt, self.draw_seed(row)),
        }

    def draw_seed(self, row: Row) -> str:
        """What seeds the random draws of this row."""
        return seed_text(self.seed or 0, row["key"], row.get("attempt") or 1)

    def load(self) -> BlipSession:
        """Load the weights. Raises CutlineError where they, or the libraries for them, are not there."""
        return BlipSession(self)


class BlipSession(Batched):
    """BLIP's weights on one device. Shapes: B rows, L tokens so far, V words in the vocabulary, S pixels a side."""

    def __init__(self, settings: Blip) -> None:
        self.settings = settings
        self.device = find_device(settings)
        self.model, self.image_processor, self.tokenizer = _load(settings, self.device)
        text = self.model.config.text_config
        words = self.tokenizer(settings.prompt, add_special_tokens=False).input_ids if settings.prompt else []
        self.side = 2 * max(self.image_processor.size["height"], self.image_processor.size["width"])
        self.end: int = text.sep_token_id
        self.prompt: list[int] = [text.bos_token_id, *words]
        if len(self.prompt) + settings.max_tokens > text.max_position_embeddings:
            raise CutlineError(
                f"blip: a prompt of {len(self.prompt)} tokens and max_tokens={settings.max_tokens} are more than the "
                f"{text.max_position_embeddings} tokens of {settings.model}; set -o max_tokens lower"
            )
        self.threads = settings.threads
        self.batch_size = choose_batch_size(settings, self.device, self._probe)

    def _probe(self) -> None:
        import torch

        side = self.side // 2
        blank = torch.zeros(3, side, side)
        self.batch([{"key": "", "uri": None}], [blank])

    def prepare(self, row: Row) -> torch.Tensor:
        """Decode a picture and make it what the network sees. Returns float32 (3, S, S)."""
        # Twice the network's side is plenty to scale down from, and large JPEGs decode several times faster to that.
        image = decode(row["picture"].read(), at_least=self.side, name=row["key"])
        pixels = self.image_processor(image, return_tensors="pt")["pixel_values"]
        return pixels[0]  # type: ignore[no-any-return]

    def batch(self, rows: list[Row], prepared: list[torch.Tensor]) -> list[Row]:
        """Caption a batch. A row that comes again is drawn where others are searched, which takes two goes."""
        answers: list[Row] = [{} for _ in rows]
        again = [(row.get("attempt") or 1) > 1 for row in rows]
        for attempt in sorted({1 + come for come in again}):
            places = [place for place, come in enumerate(again) if 1 + come == attempt]
            found = self._caption([rows[place] for place in places], [prepared[place] for place in places], attempt)
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer
        return answers

    def _caption(self, rows: list[Row], prepared: list[torch.Tensor], attempt: int) -> list[Row]:
        import torch

        settings = self.settings
        started = time.perf_counter()
        pixels = torch.stack(prepared).to(self.device)  # (B, 3, S, S)
        # BLIP's generate() drops the last token of what it is given, so an end is put there for it to drop.
        prompt = torch.tensor([[*self.prompt, self.end]] * len(rows), device=self.device)
        with torch.inference_mode():
            found = self.model.generate(
                pixel_values=pixels,
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                logits_processor=drawing(settings.sampling(attempt), [settings.draw_seed(row) for row in rows]),
                **settings.generation(attempt),
            ).tolist()  # (B, L), padded after the end
        seconds = (time.perf_counter() - started) / len(rows)
        return [self._answer_of(row, tokens, seconds) for row, tokens in zip(rows, found, strict=True)]

    def _answer_of(self, row: Row, tokens: list[int], seconds: float) -> Row:
        said = tokens[len(self.prompt) :]
        stopped = self.end in said
        if stopped:
            said = said[: said.index(self.end)]
        raw = self.tokenizer.decode([*self.prompt[1:], *said], skip_special_tokens=True)
        finish_reason = "stop" if stopped else "length"
        # A prompt alone is no caption.
        nothing = not self.tokenizer.decode(said, skip_special_tokens=True).strip()
        judged = judge("" if nothing else raw, policies=Policies(tries=1), finish_reason=finish_reason)
        texts = [judged.text] if judged.text else []
        return {
            "texts": texts,
            "raw": raw,
            "verdict": judged.verdict,
            "reason": judged.reason,
            "checks": checked(judged.findings, judged.coverage, texts),
            "request": digest(self.settings.request(row)),
            "finish_reason": finish_reason,
            "tokens_in": len(self.prompt),
            "tokens_out": len(said) + stopped,
            "seconds": seconds,
        }


def _load(settings: Blip, device: torch.device) -> tuple[Any, Any, Any]:
    """The model, its image processor and its tokenizer."""
    try:
        transformers: Any = import_module("transformers")
        # The image processor that needs no torchvision.
        pillow: Any = import_module("transformers.models.blip.image_processing_pil_blip")
    except ImportError as error:
        raise not_installed(settings, error) from None
    config = load_config(settings, "blip")
    image_processor = load_part(settings, pillow.BlipImageProcessorPil)
    tokenizer = load_part(settings, transformers.AutoTokenizer)
    model = load_weights(settings, transformers.BlipForConditionalGeneration, device, config)
    return model, image_processor, tokenizer
