"""Any vision-language model that transformers has a class for answers a prompt about a picture.

Qwen2-VL (ToriiGate), Qwen3-VL, LLaVA (JoyCaption), SmolVLM, Idefics, Gemma, PaliGemma and some ninety families more go
one way: the chat template that comes with the model renders what is asked, its processor turns that and the picture
into tensors, `generate` writes on, and only what is new is read back. What differs between families is found out by
trying when the model is loaded, not kept in a table. Nothing needs torchvision, which processors want for films alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
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
    read_json,
    read_tokens,
    refuse_signs,
    signs_of,
)
from cutline.annotators.prompted import Asked, Prompted
from cutline.annotators.session import Row
from cutline.options import CutlineError, OptionError, option

if TYPE_CHECKING:
    import torch
    from PIL import Image

ELSEWHERE = {"blip": "the annotator blip", "florence2": "the annotator florence2"}
"""Model types that have an annotator of their own."""

LONGEST_SIDE = 20_000
"""More than this is no side of a picture, but its pixels."""

TODAY = {
    "%d": "26",
    "%b": "Jul",
    "%B": "July",
    "%m": "07",
    "%Y": "2024",
    "%y": "24",
    "%H": "00",
    "%M": "00",
    "%S": "00",
}
"""What day it is to chat templates, which would tell the model of the day of the run: what it says would change
overnight. Llama's name this one where they cannot know."""

THINKING = re.compile(r"(?:<think(?:ing)?>|\[THINK\]|◁think▷)\s*$")
"""The sign with which templates of thinking models end, so that the answer begins with thoughts."""

PROBE_SIDE = 1024
"""Pixels a side of the picture by which batch_size=auto is measured, unless max_pixels says less or more."""


@dataclass(frozen=True)
class ImageText(Prompted, Local, Search):
    """Ask a vision-language model about each picture."""

    writes: ClassVar[str] = "captions/image_text"
    workers: ClassVar[Literal["device", "core"]] = "device"
    called: ClassVar[str] = "image_text"

    prompt: str | None = option(
        None,
        "a prompt (`cutline presets prompts` lists them), or a TOML file; that of the weights' training, or else plain",
    )
    max_tokens: int = option(1000, "an answer is cut after so many tokens")
    min_pixels: int | None = option(
        None, "smaller pictures are scaled up to so many pixels; by default as in training, or the model's own"
    )
    max_pixels: int | None = option(
        None, "larger pictures are scaled down to so many pixels; by default as in training, or the model's own"
    )

    def __post_init__(self) -> None:
        """Fill in what was left open and refuse what is known to be wrong before any model is loaded."""
        Local.__post_init__(self)
        for name in ("min_pixels", "max_pixels"):
            if (given := getattr(self, name)) is not None and given < 1:
                raise OptionError(f"image_text: {name}={given} does not fit: it is at least 1")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise OptionError(f"image_text: min_pixels={self.min_pixels} is more than max_pixels={self.max_pixels}")
        Prompted.__post_init__(self)
        Search.__post_init__(self)

    def request(self, row: Row) -> dict[str, Any]:
        """What is asked of the model for this row; its digest becomes the row's `request`."""
        attempt = row.get("attempt") or 1
        asked = self.ask(row, attempt)
        return {
            **self.weights(),
            "messages": [
                *([{"role": "system", "content": asked.system}] if asked.system else []),
                {"role": "user", "content": asked.user},
            ],
            "picture": row["uri"],
            "min_pixels": self.min_pixels,
            "max_pixels": self.max_pixels,
            **self.search(attempt, asked.seed),
        }

    def load(self) -> ImageTextSession:
        """Load the weights. Raises CutlineError where they, or the libraries for them, are not there or do not fit."""
        return ImageTextSession(self)


class ImageTextSession(LocalSession):
    """A model's weights on one device. Shapes: B rows, P tokens of what is asked, L tokens in all."""

    def __init__(self, settings: ImageText) -> None:
        from PIL import Image

        self.settings = settings
        self.threads = settings.threads
        self.device = find_device(settings)
        transformers: Any = import_module("transformers")
        config = load_config(settings)
        _refuse_type(settings, config)
        self.processor = load_processor(settings, config)
        self.tokenizer = self.processor.tokenizer
        self.tokenizer.padding_side = "left"  # what is written on follows what is asked
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        _limit_pixels(settings, self.processor.image_processor)
        blank = Image.new("RGB", (64, 64))
        self.chat = _Chat(settings, self.processor, blank)
        self.model = load_weights(settings, transformers.AutoModelForImageTextToText, self.device, config)
        self.dtype: torch.dtype = self.model.dtype
        self.ends = ends_of(self.model, self.tokenizer)
        side = round((settings.max_pixels or PROBE_SIDE**2) ** 0.5)
        self.batch_size = choose_batch_size(settings, self.device, lambda: self._probe(Image.new("RGB", (side, side))))

    def prepare(self, row: Row) -> Image.Image:
        """Decode a picture to RGB on white. Raises RowError where nothing can be asked about it."""
        asked = self.settings.ask(row, row.get("attempt") or 1)
        self.chat.render(asked.system, asked.user)
        return super().prepare(row)

    def say(self, asked: list[Asked], pictures: list[Image.Image], attempt: int) -> list[Said]:
        """Ask about these pictures."""
        texts = [self.chat.render(one.system, one.user) for one in asked]
        draw = self.drawing(asked, attempt)
        return self._generate(texts, pictures, logits_processor=draw, **self.settings.generation(attempt))

    def _generate(self, texts: list[str], pictures: list[Image.Image], **search: Any) -> list[Said]:
        import torch

        inputs = self.chat.tensors(texts, pictures).to(self.device, self.dtype)  # floats to the dtype, numbers stay
        with torch.inference_mode():
            tokens = self.model.generate(  # (B, L)
                **inputs, **search, eos_token_id=sorted(self.ends) or None, pad_token_id=self.tokenizer.pad_token_id
            )
        given = inputs["input_ids"]  # (B, P)
        start = given.shape[1]
        if tokens.shape[1] < start or not torch.equal(tokens[:, :start], given):
            start = 0  # a model that makes embeddings of what is asked returns what is new alone
        found = []
        for text, new, mask in zip(texts, tokens[:, start:].tolist(), inputs["attention_mask"], strict=True):
            said = read_tokens(self.tokenizer, new, self.ends, int(mask.sum()))
            found.append(replace(said, text=begun(text) + said.text))
        return found

    def _probe(self, picture: Image.Image) -> None:
        longest = {**self.settings.generation(), "min_new_tokens": self.settings.max_tokens}
        system = self.chat.sentinel if self.chat.has_system else ""
        self._generate([self.chat.render(system, self.chat.sentinel)], [picture], **longest)


class _Chat:
    """How a model is spoken to: found by trying the ways there are on its own template and processor."""

    sentinel = "zq 7 hello world"
    """A text that comes through a template as it is, or the template was not made for texts in that place."""

    def __init__(self, settings: ImageText, processor: Any, picture: Image.Image) -> None:
        self.settings, self.processor, self.tokenizer = settings, processor, processor.tokenizer
        found = getattr(processor, "chat_template", None) or self.tokenizer.chat_template
        self.template: str | None = _undated(found.get("default") if isinstance(found, dict) else found)
        # Where a processor has no sign for a picture, it puts the picture in by itself.
        self.image_token = str(getattr(processor, "image_token", None) or "")
        self.signs = [*signs_of(self.tokenizer), *([self.image_token] if self.image_token else [])]
        prompt = settings.asking
        self.has_system = any(one.system.strip() for one in prompt.one_of or (prompt,))
        self.way = self._choose(picture)

    def render(self, system: str, user: str) -> str:
        """What the model is given to read, with one place for a picture. Raises RowError for tokens of the model's."""
        refuse_signs(self.signs, system, user)
        return self._render(self.way, system, user)

    def around(self) -> tuple[str, str]:
        """What the template writes between a question and its answer (a space, or nothing), and behind the answer.

        Nothing where there is no template, or it takes no answers.
        """
        answer = "answer " + self.sentinel
        try:
            asked = self._render(self.way, "", self.sentinel) if self.template else ""
            said = self._render(self.way, "", self.sentinel, answer) if self.template else ""
        except Exception:  # as in `_choose`
            return "", ""
        before, _, after = said.partition(answer)
        space = before.removeprefix(asked)
        return space if space.isspace() else "", after

    def tensors(self, texts: list[str], pictures: list[Image.Image], **more: Any) -> Any:
        """The processor's tensors for rendered texts and a picture each. `more` is said to the processor too."""
        # As transformers has it: a template that writes the start is not given another.
        if self.tokenizer.bos_token is not None and texts[0].startswith(self.tokenizer.bos_token):
            more["add_special_tokens"] = False
        made = self.processor(
            text=texts, images=[[picture] for picture in pictures], padding=True, return_tensors="pt", **more
        )
        made.pop("labels", None)  # PaliGemma's, for training
        return made

    def _choose(self, picture: Image.Image) -> str:
        if self.template is None:
            if self.has_system:
                raise CutlineError(
                    f"image_text: {self.settings.model} has no chat template, and so no place for a system prompt; "
                    "leave it empty with -o system="
                )
            ways = ["text" if self._puts_in(picture) else "plain"]
        else:
            ways = ["parts", "text", "text with the picture in it"]
        refusals = []
        for way in ways:
            try:
                rendered = self._render(way, "", self.sentinel)
                if rendered.count(self.sentinel) == 1 and "'type'" not in rendered:
                    self.tensors([rendered], [picture])  # which counts the places for pictures
                    break
            except Exception as error:  # whatever a template or a processor made by others may raise
                refusals.append(str(error).strip().partition("\n")[0])
        else:
            why = f" ({refusals[0]})" if refusals else ""
            what = (
                "its chat template does not" if self.template else "it has no chat template, and its processor does not"
            )
            raise CutlineError(
                f"image_text: {self.settings.model} cannot be asked: {what} take a text and a picture in any way that "
                f"is known{why}. A server may run it: see the annotator server"
            )
        if self.has_system:
            try:
                said = self._render(way, "system " + self.sentinel, "user " + self.sentinel)
                held = said.count("system " + self.sentinel) == 1 == said.count("user " + self.sentinel)
            except Exception:  # templates refuse by raising errors of their own
                held = False
            if not held:
                raise CutlineError(
                    f"image_text: the chat template of {self.settings.model} takes no system prompt; leave it empty "
                    "with -o system= and say all with -o user=…"
                )
        return way

    def _puts_in(self, picture: Image.Image) -> bool:
        """Whether the processor puts in a place for the picture even where there is one, as BLIP-2's does."""
        sign = self.tokenizer.convert_tokens_to_ids(self.image_token)
        try:
            without, given = (
                self.tensors([text], [picture])["input_ids"][0].tolist().count(sign)
                for text in (self.sentinel, self.image_token + self.sentinel)
            )
        except Exception:  # as in `_choose`
            return False
        return bool(0 < without < given)

    def _render(self, way: str, system: str, user: str, answer: str | None = None) -> str:
        if self.template is None:
            return f"{self.image_token}{user}" if way == "plain" else user
        content: Any = user
        told: Any = system
        said: Any = answer
        if way == "parts":
            content, told = [{"type": "image"}, {"type": "text", "text": user}], [{"type": "text", "text": system}]
            said = [{"type": "text", "text": answer}]
        elif way == "text with the picture in it":
            content = f"{self.image_token}\n{user}"
        messages = [*([{"role": "system", "content": told}] if system else []), {"role": "user", "content": content}]
        if answer is not None:
            messages.append({"role": "assistant", "content": said})
        return self.tokenizer.apply_chat_template(  # type: ignore[no-any-return]
            messages,
            chat_template=self.template,
            tokenize=False,
            add_generation_prompt=answer is None,
        )


def _undated(template: str | None) -> str | None:
    """The template, with a function of its own in place of the one that tells the time."""
    if template is None or "strftime_now" not in template:
        return template
    filled = "".join(f" | replace({sign!r}, {said!r})" for sign, said in TODAY.items())
    return f"{{% macro strftime_now(form) %}}{{{{ form{filled} }}}}{{% endmacro %}}{{{{ '' }}}}{template}"


def begun(rendered: str) -> str:
    """What the template has begun of the answer: the sign before thoughts, without which they pass for the answer."""
    found = THINKING.search(rendered)
    return found[0] if found else ""


def _refuse_type(settings: ImageText, config: Any) -> None:
    auto: Any = import_module("transformers.models.auto.modeling_auto")
    kind = config.model_type
    if kind in ELSEWHERE:
        raise CutlineError(f"image_text: {settings.model} is a model of type '{kind}': use {ELSEWHERE[kind]} for it")
    if kind not in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise CutlineError(
            f"image_text: {settings.model} is a model of type '{kind}', which does not answer texts about pictures in "
            "transformers; give another -o model=…"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise CutlineError(
            f"image_text: {settings.model} is a model of type '{kind}', an encoder with a decoder, which is not run "
            "here; give another -o model=…, or let a server run it: see the annotator server"
        )


def load_processor(settings: ImageText, config: Any) -> Any:
    """The model's processor, without its part for films, which needs torchvision."""
    try:
        found = load_part(settings, for_pictures(_processor_class(settings, config)))
    except ImportError as error:  # a class that stands in for one that cannot be used here
        reason = " ".join(str(error).split())
        raise CutlineError(f"image_text: {settings.model} cannot be used here: {reason:.200}") from None
    if getattr(found, "tokenizer", None) is None or getattr(found, "image_processor", None) is None:
        raise CutlineError(
            f"image_text: {settings.model} brings no processor of pictures and texts (preprocessor_config.json, "
            "tokenizer.json); give a whole model with -o model=…"
        )
    return found


def _processor_class(settings: ImageText, config: Any) -> Any:
    """The class that the model's files name, or else that of its type: Pixtral is of type llava, and names its own."""
    auto: Any = import_module("transformers.models.auto.processing_auto")
    for file in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        name = read_json(settings, file).get("processor_class")
        if name and (kind := auto.processor_class_from_name(name)):
            return kind
    return auto.PROCESSOR_MAPPING.get(type(config), auto.AutoProcessor)


def for_pictures(kind: Any) -> Any:
    """A processor's class, made to load and work without a processor of films."""
    parts = kind.get_attributes() if hasattr(kind, "get_attributes") else []
    if "video_processor" not in parts:
        return kind
    place = parts.index("video_processor")

    class WithoutFilms(kind):  # type: ignore[misc]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [part for part in parts if part != "video_processor"]

    class ForPictures(kind):  # type: ignore[misc]
        @classmethod
        def _get_arguments_from_pretrained(cls, *args: Any, **more: Any) -> list[Any]:
            loaded = WithoutFilms._get_arguments_from_pretrained(*args, **more)
            return [*loaded[:place], None, *loaded[place:]]

        def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
            return None if argument is None else super().check_argument_for_proper_class(name, argument)

    ForPictures.__name__ = WithoutFilms.__name__ = kind.__name__  # transformers looks relations up by it
    return ForPictures


def _limit_pixels(settings: ImageText, image_processor: Any) -> None:
    """Set the least and most pixels of a picture, where the model's pictures differ in size."""
    given = {name: getattr(settings, name) for name in ("min_pixels", "max_pixels")}
    if not any(given.values()):
        return
    # Families whose pictures differ in size call their least and most pixels edges, as if they were sides.
    known = getattr(getattr(image_processor, "valid_kwargs", None), "__annotations__", {})
    least, most = (
        getattr(getattr(image_processor, "size", None), edge, None) for edge in ("shortest_edge", "longest_edge")
    )
    if not (least and most and ("min_pixels" in known or most > LONGEST_SIDE)):
        name = next(name for name, value in given.items() if value)
        raise CutlineError(
            f"image_text: {name} has no effect on {settings.model}, which scales every picture to sizes of its own "
            f"({type(image_processor).__name__}); leave it out"
        )
    if settings.max_pixels:
        least, most = min(least, settings.max_pixels), settings.max_pixels
    if settings.min_pixels:
        least, most = settings.min_pixels, max(most, settings.min_pixels)
    image_processor.size = type(image_processor.size)(shortest_edge=least, longest_edge=most)
