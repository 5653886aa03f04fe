"""BLIP writes a caption: a small captioner that runs on any machine, with or without an adapter of one's own.

The network is `BlipForConditionalGeneration` of transformers (Li et al. 2022, https://arxiv.org/abs/2201.12086).
What a picture is told depends on the picture and the settings alone: not on the batch that it sat in, the worker or
the order. Searches (greedy, beams) are so by nature. Sampling is made so: each row has a random generator of its own,
seeded by xxh64 of "{seed}/{key}" ("{seed}.{attempt}/{key}" from the second attempt on, which thus draws anew).
"""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cutline.annotators.session import Batched, Row
from cutline.options import CutlineError, OptionError, digest, option
from cutline.pictures import decode

if TYPE_CHECKING:
    import torch

BASE = "Salesforce/blip-image-captioning-base"


@dataclass(frozen=True)
class Blip:
    """Caption pictures with BLIP."""

    writes: ClassVar[str] = "captions/blip"
    reads: ClassVar[tuple[str, ...]] = ("pictures",)
    workers: ClassVar[Literal["device", "core"]] = "device"

    model: str | None = option(None, f"hub name or local folder; the adapter's base, or else {BASE}", files=True)
    revision: str | None = option(None, "branch, tag or commit of a model on the hub")
    adapter: str | None = option(None, "folder of a PEFT adapter (LoRA and its kin)", files=True)
    prompt: str = option("", "words with which every caption begins")
    beams: int | None = option(None, "captions searched side by side: 1 is greedy; 3, or 1 with sample=true")
    sample: bool = option(False, "draw words by chance (nucleus sampling) rather than search for the likeliest")
    temperature: float | None = option(None, "with sample=true: below 1 safer, above 1 wilder; 1.0")
    top_p: float | None = option(None, "with sample=true: draw among the likeliest words that hold this share; 0.9")
    seed: int | None = option(None, "with sample=true: another number, other captions; 0")
    min_tokens: int = option(0, "a caption may not end before so many tokens")
    max_tokens: int = option(75, "a caption is cut after so many tokens")
    repetition_penalty: float = option(1.0, "above 1 makes words that were already said less likely")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "number format of the weights")
    batch_size: int = option(16, "pictures at once; halves itself when memory runs out", identity=False)
    threads: int = option(2, "threads that read and decode pictures", identity=False)
    device: str = option("auto", "auto, cpu, cuda:0, mps", identity=False)

    def __post_init__(self) -> None:
        """Fill in what was left open and refuse what would have no effect."""
        for name, default in (("temperature", 1.0), ("top_p", 0.9), ("seed", 0)):
            given = getattr(self, name)
            if not self.sample and given is not None:
                raise OptionError(f"blip: {name}={given} has no effect without -o sample=true")
            if self.sample and given is None:
                object.__setattr__(self, name, default)
        if self.beams is None:
            object.__setattr__(self, "beams", 1 if self.sample else 3)
        if self.sample and self.beams != 1:
            raise OptionError(f"blip: beams={self.beams} has no meaning with sample=true; leave one of them out")
        for name in ("beams", "max_tokens", "batch_size", "threads"):
            if getattr(self, name) < 1:
                raise OptionError(f"blip: {name}={getattr(self, name)} does not fit: it is at least 1")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise OptionError(f"blip: min_tokens={self.min_tokens} does not fit: it is 0 to max_tokens")
        for name in ("repetition_penalty", "temperature"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise OptionError(f"blip: {name}={getattr(self, name)} does not fit: it is more than 0")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise OptionError(f"blip: top_p={self.top_p} does not fit: it is more than 0 and at most 1")
        if self.model is None:
            base, revision = _base_of(self.adapter) if self.adapter else (BASE, None)
            object.__setattr__(self, "model", base)
            object.__setattr__(self, "revision", self.revision or revision)
        if self.revision and Path(str(self.model)).expanduser().exists():
            raise OptionError(f"blip: revision={self.revision} has no effect on the local folder {self.model}")

    def request(self, row: Row) -> dict[str, Any]:
        """What is asked of the model for this row; its digest becomes the row's `request`."""
        asked: dict[str, Any] = {
            "model": self.model,
            "revision": self.revision,
            "adapter": self.adapter,
            "dtype": self.dtype,
            "prompt": self.prompt,
            "picture": row["uri"],
            "generation": self.generation(),
        }
        if self.sample:
            asked["sampling"] = {"temperature": self.temperature, "top_p": self.top_p, "seed": self.draw_seed(row)}
        return asked

    def generation(self) -> dict[str, Any]:
        """The settings of the search, by transformers' names."""
        return {
            "do_sample": False,  # chance, where wanted, comes in by `Draw`
            "num_beams": self.beams,
            "min_new_tokens": self.min_tokens,
            "max_new_tokens": self.max_tokens,
            "repetition_penalty": self.repetition_penalty,
        }

    def draw_seed(self, row: Row) -> str:
        """What seeds the random draws of this row."""
        attempt = row.get("attempt") or 1
        return f"{self.seed}/{row['key']}" if attempt == 1 else f"{self.seed}.{attempt}/{row['key']}"

    def load(self) -> BlipSession:
        """Load the weights. Raises CutlineError where they, or the libraries for them, are not there."""
        return BlipSession(self)


class BlipSession(Batched):
    """BLIP's weights on one device. Shapes: B rows, L tokens so far, V words in the vocabulary, S pixels a side."""

    def __init__(self, settings: Blip) -> None:
        self.settings = settings
        self.batch_size, self.threads = settings.batch_size, settings.threads
        self.device = _device(settings.device)
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

    def prepare(self, row: Row) -> torch.Tensor:
        """Decode a picture and make it what the network sees. Returns float32 (3, S, S)."""
        # Twice the network's side is plenty to scale down from, and large JPEGs decode several times faster to that.
        image = decode(row["picture"].read(), at_least=self.side, name=row["key"])
        pixels = self.image_processor(image, return_tensors="pt")["pixel_values"]
        return pixels[0]  # type: ignore[no-any-return]

    def batch(self, rows: list[Row], prepared: list[torch.Tensor]) -> list[Row]:
        """Caption a batch."""
        import torch

        started = time.perf_counter()
        pixels = torch.stack(prepared).to(self.device)  # (B, 3, S, S)
        # BLIP's generate() drops the last token of what it is given, so an end is put there for it to drop.
        prompt = torch.tensor([[*self.prompt, self.end]] * len(rows), device=self.device)
        with torch.inference_mode():
            found = self.model.generate(
                pixel_values=pixels,
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                logits_processor=self._sampling(rows),
                **self.settings.generation(),
            ).tolist()  # (B, L), padded after the end
        seconds = (time.perf_counter() - started) / len(rows)
        return [self._answer_of(row, tokens, seconds) for row, tokens in zip(rows, found, strict=True)]

    def _sampling(self, rows: list[Row]) -> list[Any]:
        if not self.settings.sample:
            return []
        from transformers import TemperatureLogitsWarper, TopPLogitsWarper

        return [
            TemperatureLogitsWarper(float(self.settings.temperature or 1.0)),
            TopPLogitsWarper(float(self.settings.top_p or 1.0)),
            Draw([self.settings.draw_seed(row) for row in rows]),
        ]

    def _answer_of(self, row: Row, tokens: list[int], seconds: float) -> Row:
        said = tokens[len(self.prompt) :]
        stopped = self.end in said
        if stopped:
            said = said[: said.index(self.end)]
        raw = self.tokenizer.decode([*self.prompt[1:], *said], skip_special_tokens=True)
        empty = not self.tokenizer.decode(said, skip_special_tokens=True).strip()
        return {
            "texts": [] if empty else [raw.strip()],
            "raw": raw,
            "verdict": "rejected" if empty else "good",
            "reason": "empty" if empty else None,
            "request": digest(self.settings.request(row)),
            "finish_reason": "stop" if stopped else "length",
            "tokens_in": len(self.prompt),
            "tokens_out": len(said) + stopped,
            "seconds": seconds,
        }


class Draw:
    """A logits processor after which the likeliest token *is* a random draw: the Gumbel-max trick.

    argmax(logits + Gumbel noise) is distributed as softmax(logits) (Maddison et al. 2014, arXiv:1411.0030). The noise
    of a row comes from a generator of its own, on the processor, so neither batch nor device changes the draw.
    """

    def __init__(self, seeds: list[str]) -> None:
        import torch
        import xxhash

        # manual_seed takes a signed number, so the hash loses its top bit.
        self.generators = [torch.Generator().manual_seed(xxhash.xxh64_intdigest(seed.encode()) >> 1) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Add noise to `scores` (B, V), the logits of the token after `input_ids` (B, L)."""
        import torch

        size = scores.shape[-1]
        noise = torch.stack([torch.empty(size).exponential_(generator=generator) for generator in self.generators])
        return scores.float() - noise.log().to(scores.device)  # -log of an exponential is Gumbel


def _base_of(adapter: str) -> tuple[str, str | None]:
    """The model that an adapter was trained on and its revision, by the adapter's own word."""
    path = Path(adapter).expanduser() / "adapter_config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
        return str(config["base_model_name_or_path"] or BASE), config.get("revision")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CutlineError(
            f"blip: {adapter} is no folder of a PEFT adapter ({path.name}: {error}). One on the hub comes here by: "
            f"hf download {adapter} --local-dir FOLDER"
        ) from None


def _device(name: str) -> torch.device:
    try:
        import torch
    except ImportError as error:
        raise _not_installed(error) from None
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:  # an assertion is what a torch without CUDA raises
        first_line = str(error).partition("\n")[0]
        raise CutlineError(f"blip: device={name} cannot be used here: {first_line} Try -o device=cpu") from None


def _load(settings: Blip, device: torch.device) -> tuple[Any, Any, Any]:
    """The model (in evaluation mode, adapter merged in, on its device), its image processor and its tokenizer."""
    try:
        import torch

        transformers: Any = import_module("transformers")
        # The image processor that needs no torchvision.
        pillow: Any = import_module("transformers.models.blip.image_processing_pil_blip")
    except ImportError as error:
        raise _not_installed(error) from None

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    local = Path(str(settings.model)).expanduser()
    name = str(local) if local.exists() else str(settings.model)
    where = {"revision": settings.revision} if settings.revision else {}
    dtype = getattr(torch, settings.dtype)
    try:
        kind = transformers.AutoConfig.from_pretrained(name, **where).model_type
        if kind != "blip":
            raise CutlineError(
                f"blip: {settings.model} is a model of type '{kind}', not 'blip'; give another -o model=…"
            )
        image_processor = pillow.BlipImageProcessorPil.from_pretrained(name, **where)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **where)
        model, loading = transformers.BlipForConditionalGeneration.from_pretrained(
            # An adapter is merged in float32: in a shorter format it would be rounded away.
            name,
            **where,
            dtype=torch.float32 if settings.adapter else dtype,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        first_line = str(error).strip().partition("\n")[0]
        there = "is a folder, but not of a BLIP model" if local.exists() else "is no folder here, nor came from the hub"
        raise CutlineError(
            f"blip: model={settings.model} {there}: {first_line} Give a folder: -o model=FOLDER"
        ) from None
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise CutlineError(
            f"blip: {settings.model} is a BLIP of another kind than a captioner: {len(missing)} weights are missing, "
            f"such as {missing[0]}. Use a captioner: -o model={BASE}"
        )
    if settings.adapter:
        model = _merge(model, settings.adapter)
    return model.to(device=device, dtype=dtype).eval(), image_processor, tokenizer


def _merge(model: Any, adapter: str) -> Any:
    """Put an adapter into the weights of its base, after which it costs nothing."""
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise _not_installed(error) from None
    folder = str(Path(adapter).expanduser())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what PEFT and transformers will rename
            adapted = PeftModel(model, PeftConfig.from_pretrained(folder))
        loading = adapted.load_adapter(folder, "default")
        misfits = [*loading.missing_keys, *loading.unexpected_keys]
        if misfits:
            raise ValueError(f"{len(misfits)} of its weights, such as {misfits[0]}, do not match.")
        return adapted.merge_and_unload()
    except (OSError, ValueError, RuntimeError, AttributeError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise CutlineError(
            f"blip: the adapter {adapter} does not fit {model.name_or_path}: {first_line} "
            "Give the model that it was trained on: -o model=…"
        ) from None


def _not_installed(error: ImportError) -> CutlineError:
    return CutlineError(f"blip needs more libraries ({error}): pip install 'cutline[models]'")
