"""Florence-2 captions pictures by its own tasks: small, quick, and taught three lengths of caption.

The network is `Florence2ForConditionalGeneration` of transformers (Xiao et al. 2023, https://arxiv.org/abs/2311.06242).
A task is asked by its sign alone, such as <DETAILED_CAPTION>, for which the processor puts the sentence that the model
was trained with. Any other text is asked as it is, as fine-tuned models may have tasks of their own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cutline.annotators.local import (
    Local,
    LocalSession,
    Said,
    Search,
    choose_batch_size,
    ends_of,
    find_device,
    load_config,
    load_part,
    load_weights,
    read_tokens,
    refuse_signs,
    signs_of,
)
from cutline.annotators.prompted import Asked, Prompted
from cutline.annotators.session import Row, RowError
from cutline.options import CutlineError, OptionError, option

if TYPE_CHECKING:
    from PIL import Image

NATIVE = "florence-community/"
BASE = NATIVE + "Florence-2-base-ft"

NGRAM = 3
"""Tokens in a row that are not said twice: the generation_config.json of Florence-2 has it so, and ends a search of
beams as soon as there are enough texts. A request says it, since what a file says of the search is not done.
"""

TEXT_TASKS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>", "<OCR>")
"""Tasks that are answered by a text."""

REGION_TASKS = (
    "<OCR_WITH_REGION>",
    "<OD>",
    "<DENSE_REGION_CAPTION>",
    "<REGION_PROPOSAL>",
    "<CAPTION_TO_PHRASE_GROUNDING>",
    "<REFERRING_EXPRESSION_SEGMENTATION>",
    "<REGION_TO_SEGMENTATION>",
    "<OPEN_VOCABULARY_DETECTION>",
    "<REGION_TO_CATEGORY>",
    "<REGION_TO_DESCRIPTION>",
    "<REGION_TO_OCR>",
)
"""Tasks that are answered by boxes and outlines, or are about one."""

REMOTE = re.compile(r"(vision_tower|language_model|image_proj_norm|image_pos_embed)\.")
"""How the names of modules begin in the code that comes with microsoft/Florence-2-…; here with model or lm_head."""

RENAMED = tuple(
    (re.compile(there), here)
    for there, here in (
        (r"^language_model\.lm_head\b", "lm_head"),
        (r"^language_model\.model\.", "model.language_model."),
        (r"^image_proj_norm\b", "model.multi_modal_projector.image_proj_norm"),
        (r"^image_pos_embed\b", "model.multi_modal_projector.image_position_embed"),
        (r"^vision_tower\.", "model.vision_tower."),
        (r"(\.convs\.\d+)\.proj\b", r"\1.conv"),
        (r"\.(?:window|channel)_attn\.norm\b", ".norm1"),
        (r"\.ffn\.norm\b", ".norm2"),
        (r"(\.conv[12])\.fn\.dw\b", r"\1"),
        (r"\.fn\.net\.", "."),
        (r"\.fn\.", "."),
    )
)
"""Names of that code's modules, and what the same modules are called in transformers, one change after another. By
transformers' own script, convert_florence2_original_pytorch_to_hf.py, and the names of its class."""


@dataclass(frozen=True)
class Florence2(Prompted, Local, Search):
    """Caption pictures with Florence-2."""

    writes: ClassVar[str] = "captions/florence-2"
    workers: ClassVar[Literal["device", "core"]] = "device"
    called: ClassVar[str] = "florence2"
    base: ClassVar[str | None] = BASE
    default_beams: ClassVar[int] = 3
    default_prompt: ClassVar[str] = "florence2-detailed"

    prompt: str | None = option(
        None,
        "florence2-caption, -detailed or -more-detailed, or a TOML file with a task's sign; that of the weights' "
        "training, or else florence2-detailed",
    )
    model: str | None = option(None, f"hub name or local folder; the adapter's base, or else {BASE}", files=True)
    beams: int | None = option(None, "texts searched side by side: 1 is greedy; 3, or 1 with sample=true")

    def __post_init__(self) -> None:
        """Fill in what was left open and refuse what is known to be wrong before any model is loaded."""
        Local.__post_init__(self)
        Prompted.__post_init__(self)
        for one in self.asking.one_of or (self.asking,):
            if one.system.strip():
                raise OptionError("florence2 has no place for a system prompt; leave it empty with -o system=")
            if problem := _problem(one.user):
                raise OptionError(f"florence2: {problem}")
        Search.__post_init__(self)
        if (native := self.native(str(self.model))) != self.model:
            raise OptionError(
                f"florence2: {self.model} runs by code that comes with it, which is not run here; the same weights for "
                f"the class in transformers are -o model={native}"
            )

    @classmethod
    def native(cls, base: str) -> str:
        """The same weights for the class in transformers, where these are for code that comes with them."""
        owner, _, name = base.rpartition("/")
        return NATIVE + name if owner == "microsoft" else base

    def renamed(self, weight: str) -> str:
        """An adapter's weight on the class in transformers, where it was trained on the code that came with a model."""
        start, sign, name = weight.partition("base_model.model.")
        if start or not REMOTE.match(name):
            return weight
        for there, here in RENAMED:
            name = there.sub(here, name)
        return sign + name

    def request(self, row: Row) -> dict[str, Any]:
        """What is asked of the model for this row; its digest becomes the row's `request`."""
        attempt = row.get("attempt") or 1
        asked = self.ask(row, attempt)
        return {
            **self.weights(),
            "task": asked.user.strip(),
            "picture": row["uri"],
            **self.search(attempt, asked.seed),
        }

    def generation(self, attempt: int = 1) -> dict[str, Any]:
        """The settings of the search in this attempt, by transformers' names, with the two of the published models."""
        found = super().generation(attempt)
        return {**found, "no_repeat_ngram_size": NGRAM, "early_stopping": found["num_beams"] > 1}

    def load(self) -> Florence2Session:
        """Load the weights. Raises CutlineError where they, or the libraries for them, are not there or do not fit."""
        return Florence2Session(self)


class Florence2Session(LocalSession):
    """Florence-2's weights on one device. Shapes: B rows, P tokens of what is asked, L tokens of what is said."""

    def __init__(self, settings: Florence2) -> None:
        self.settings = settings
        self.threads = settings.threads
        self.device = find_device(settings)
        config = load_config(settings, "florence2")
        if getattr(config, "auto_map", None):
            raise CutlineError(
                f"florence2: {settings.model} is made for code that comes with it, which is not run here; use one that "
                f"is made for the class in transformers, such as -o model={BASE}"
            )
        transformers: Any = import_module("transformers")
        self.processor = load_part(settings, transformers.Florence2Processor)
        self.tokenizer = self.processor.tokenizer
        self.signs = signs_of(self.tokenizer)
        self.model = load_weights(settings, transformers.Florence2ForConditionalGeneration, self.device, config)
        self.dtype = self.model.dtype
        self.ends = ends_of(self.model, self.tokenizer)
        longest = config.text_config.max_position_embeddings
        if settings.max_tokens + 1 > longest:  # and the one that begins
            raise CutlineError(
                f"florence2: max_tokens={settings.max_tokens} is more than the {longest - 1} tokens of "
                f"{settings.model}; set -o max_tokens lower"
            )
        self.batch_size = choose_batch_size(settings, self.device, self._probe)

    def prepare(self, row: Row) -> Image.Image:
        """Decode a picture to RGB on white. Raises RowError where nothing can be asked about it."""
        user = self.settings.ask(row, row.get("attempt") or 1).user
        if problem := _problem(user):
            raise RowError("no_prompt", problem)
        refuse_signs(self.signs, user)
        return super().prepare(row)

    def say(self, asked: list[Asked], pictures: list[Image.Image], attempt: int) -> list[Said]:
        """Ask about these pictures."""
        texts = [one.user.strip() for one in asked]
        draw = self.drawing(asked, attempt)
        return self._generate(texts, pictures, logits_processor=draw, **self.settings.generation(attempt))

    def _generate(self, texts: list[str], pictures: list[Image.Image], **search: Any) -> list[Said]:
        import torch

        inputs = self.processor(text=texts, images=pictures, padding=True, return_tensors="pt")
        inputs = inputs.to(self.device, self.dtype)  # floats to the dtype, numbers stay
        with torch.inference_mode():
            # (B, L), from the sign of the start on
            tokens = self.model.generate(**inputs, **search, eos_token_id=sorted(self.ends))
        return [
            read_tokens(self.tokenizer, said, self.ends, int(mask.sum()))
            for said, mask in zip(tokens[:, 1:].tolist(), inputs["attention_mask"], strict=True)
        ]

    def _probe(self) -> None:
        from PIL import Image

        longest = {**self.settings.generation(), "min_new_tokens": self.settings.max_tokens}
        self._generate([TEXT_TASKS[1]], [Image.new("RGB", (768, 768))], **longest)


def _problem(user: str) -> str | None:
    """What is wrong with this as a prompt of Florence-2."""
    text = user.strip()
    tasks = [task for task in (*TEXT_TASKS, *REGION_TASKS) if task in text]
    if region := [task for task in tasks if task in REGION_TASKS]:
        return f"{region[0]} gives boxes or asks for them, and no caption; there are {', '.join(TEXT_TASKS)}"
    if tasks and text != tasks[0]:
        return f"the task {tasks[0]} stands alone; there is other text beside it: {text!r:.100}"
    return None
