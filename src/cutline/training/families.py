"""What a captioner is fed in training: pictures and texts as tensors, for each family of models that Cutline runs.

Training is made of what inference is made of. The annotator's own session decodes the picture and words the question;
here the caption is put behind it token for token as the model would have to write it, with the token that ends it. The
labels hold those tokens and nothing else: neither the question, nor the picture's places, nor padding.

Transformers' losses are not used, as they differ between families: BLIP's smooths labels and forgets what it is told
of accumulation, and which ones shift the labels has changed between versions. Here `labels[b, t]` is the token that
`logits[b, t]` should say, whatever the family, and `loss` is the one loss for all.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cutline.annotators.blip import Blip
from cutline.annotators.florence2 import TEXT_TASKS, Florence2
from cutline.annotators.image_text import ImageText, begun
from cutline.annotators.session import Row, RowError
from cutline.options import CutlineError, OptionError
from cutline.pictures import WHITE

if TYPE_CHECKING:
    import torch
    from PIL import Image

IGNORED = -100
"""The label of a place that has none; PyTorch's and transformers' sign for it."""

THOUGHT = {"<think>": "</think>", "<thinking>": "</thinking>", "[THINK]": "[/THINK]", "◁think▷": "◁/think▷"}
"""Where a template has begun thoughts, what ends them: a caption is learnt behind that, or it would be a thought."""

SUFFIX_TYPES = {"paligemma": 1}
"""The `token_type_ids` of what is answered, where that is not 0, by type of model: PaliGemma's 1 is read word by word,
its 0 at once. Gemma 3's 1 is a picture."""


def open_family(settings: Blip | Florence2 | ImageText, *, max_tokens: int | None = None) -> Family:
    """Load the annotator's session and say how its model is fed.

    Args:
        settings: the annotator, with its options.
        max_tokens: how many tokens of a text are learnt at most, its end among them; by default as many as the
            annotator writes (its own `max_tokens`).

    Raises:
        CutlineError: the model cannot be loaded, or has fewer places than `max_tokens`.
        OptionError: this annotator has nothing that could be trained.
    """
    kinds: dict[type, type[Family]] = {Blip: BlipFamily, Florence2: Florence2Family, ImageText: ImageTextFamily}
    if type(settings) not in kinds:
        known = ", ".join(str(kind.called) for kind in (Blip, Florence2, ImageText))
        raise OptionError(f"{type(settings).__name__} cannot be trained; there are -o annotator={known}")
    return kinds[type(settings)](settings, max_tokens)


def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
    """The mean cross entropy of the labels: a `compute_loss_func` of transformers' Trainer.

    Args:
        outputs: what the model returned for the other tensors: `logits` (B, T, V).
        labels: from `Family.tensors`, (B, T).
        num_items_in_batch: labels in the whole optimizer step, in all processes, by which the sum is divided. Without
            it, those of this batch.

    Returns a scalar in float32, 0 where there are no labels.
    """
    import torch

    logits = outputs["logits"]
    kept = labels != IGNORED
    total = torch.nn.functional.cross_entropy(logits[kept].float(), labels[kept], reduction="sum")
    count = kept.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch, device=total.device)
    return total / count.clamp(min=1)


class Family:
    """How one family of models is fed. Shapes: B rows, P tokens of a question, T of a text, L in all, S pixels a side.

    Only to make one touches the model: the rest may run in other processes.
    """

    session: Any
    """The annotator's. `session.model` is what is trained; it may be wrapped, and the session captions with that."""
    limit: int
    """Tokens of a text, its end among them, that are learnt at most."""

    def __init__(self, settings: Any, max_tokens: int | None) -> None:
        if max_tokens is not None and max_tokens < 1:
            raise OptionError(f"max_tokens={max_tokens} does not fit: it is at least 1")
        self.settings = settings
        self.session = settings.load()
        self.tokenizer = self.session.tokenizer
        self.dtype = self.session.model.dtype
        takes = inspect.signature(type(self.session.model).forward).parameters
        # With a large vocabulary, the logits of what is not learnt would be most of a step's memory. Which logits to
        # keep can be said for each row by itself since transformers 5.21, which has this function.
        whole: Any = import_module("transformers.modeling_utils")
        self._picks = "logits_to_keep" in takes and hasattr(whole, "slice_logits_to_keep")
        self._more: dict[str, Any] = {"use_cache": False} if "use_cache" in takes else {}
        places = self._places()
        if max_tokens is not None and places is not None and max_tokens > places:
            raise CutlineError(
                f"max_tokens={max_tokens} is more than the {places} tokens that {settings.model} has place for; "
                f"set -o max_tokens={places} or lower"
            )
        wanted: int = max_tokens or settings.max_tokens
        self.limit = wanted if places is None else min(wanted, places)

    def prepare(self, row: Row) -> Any:
        """What is told of a row but its text: the decoded picture and the question, as at inference.

        Raises PictureError or RowError, as the session does.
        """
        raise NotImplementedError

    def blank(self, row: Row) -> Any:
        """What `prepare` would give for a white picture: stands in, without a text, for a row that cannot be had."""
        raise NotImplementedError

    def tensors(self, rows: list[Row], prepared: list[Any], texts: list[str | None]) -> dict[str, Any]:
        """All that the model's forward takes for a batch, on the CPU, and `labels`.

        Args:
            rows: the rows.
            prepared: what `prepare` or `blank` gave for each.
            texts: what each is to say. One that is longer than `limit` is cut, and then has no end; without a text, a
                row has no labels.

        Returns tensors, padded on the right to the longest of the batch, and `labels` (B, T): the token that
        `logits[b, t]` should say, or `IGNORED`. Not all are tensors: `use_cache` is False.
        """
        raise NotImplementedError

    def length(self, text: str) -> int:
        """How many tokens a text has, with its end, before it is cut."""
        return len(self._tokens(text))

    def _places(self) -> int | None:
        """How many tokens of a text the model has place for; None where nothing limits them."""
        raise NotImplementedError

    def _tokens(self, text: str) -> list[int]:
        """A text as the model is to write it, with its end."""
        raise NotImplementedError

    def _read(self, text: str) -> list[int]:
        """The tokens of a text and no more: the signs of a model, where a text has any, are read as any other text."""
        found = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        return list(found)

    def _answers(self, texts: list[str | None]) -> list[list[int]]:
        return [[] if text is None else self._tokens(text)[: self.limit] for text in texts]

    def _labels(self, starts: list[int], answers: list[list[int]], length: int) -> dict[str, torch.Tensor]:
        """The labels of answers that begin at these places of rows of `length` tokens, and which logits they are of."""
        import torch

        if not self._picks:
            labels = torch.full((len(answers), length), IGNORED)
            for row, (start, answer) in enumerate(zip(starts, answers, strict=True)):
                labels[row, start - 1 : start - 1 + len(answer)] = torch.tensor(answer, dtype=torch.long)
            return {"labels": labels}
        labels = _padded(answers, IGNORED, 1)
        places = torch.tensor(starts)[:, None] - 1 + torch.arange(labels.shape[1])  # (B, T)
        return {"logits_to_keep": places.clamp(max=length - 1), "labels": labels}

    def _cast(self, made: Any) -> dict[str, torch.Tensor]:
        """What a processor made, floats in the model's own format."""
        return {name: value.to(self.dtype) if value.is_floating_point() else value for name, value in made.items()}


class BlipFamily(Family):
    """BLIP: the decoder reads [DEC], the words that every caption begins with, and the caption; [SEP] ends it."""

    def __init__(self, settings: Blip, max_tokens: int | None) -> None:
        super().__init__(settings, max_tokens)
        self.pad: int = self.session.model.config.text_config.pad_token_id or 0

    def prepare(self, row: Row) -> torch.Tensor:
        """The picture as the network sees it, float32 (3, S, S)."""
        return self.session.prepare(row)  # type: ignore[no-any-return]

    def blank(self, row: Row) -> torch.Tensor:
        """A white picture, float32 (3, S, S)."""
        found = self.session.image_processor(_white(), return_tensors="pt")["pixel_values"]
        return found[0]  # type: ignore[no-any-return]

    def tensors(self, rows: list[Row], prepared: list[Any], texts: list[str | None]) -> dict[str, Any]:
        """`input_ids` and `attention_mask` (B, L), `pixel_values` (B, 3, S, S), `logits_to_keep`, `labels` (B, T)."""
        import torch

        prompt = self.session.prompt
        answers = self._answers(texts)
        fed = [[*prompt, *answer[:-1]] for answer in answers]
        tokens = _padded(fed, self.pad)
        return {
            "input_ids": tokens,
            "attention_mask": _padded([[1] * len(row) for row in fed], 0),
            **self._cast({"pixel_values": torch.stack(prepared)}),
            **self._labels([len(prompt)] * len(fed), answers, tokens.shape[1]),
            **self._more,
        }

    def _places(self) -> int:
        places: int = self.session.model.config.text_config.max_position_embeddings
        return places - len(self.session.prompt)

    def _tokens(self, text: str) -> list[int]:
        found, words = self._read(text), self.session.prompt[1:]
        # BLIP's captions have the prompt in them, so those that people have corrected do too.
        if found[: len(words)] == words:
            found = found[len(words) :]
        return [*found, self.session.end]


class Florence2Family(Family):
    """Florence-2: the encoder reads the picture and the task's sentence, the decoder writes <s> caption </s>."""

    def __init__(self, settings: Florence2, max_tokens: int | None) -> None:
        super().__init__(settings, max_tokens)
        model = self.session.model
        text = model.config.text_config
        given = model.generation_config

        def find(name: str) -> int | None:
            found = getattr(given, name, None)
            return getattr(text, name, None) if found is None else found

        self.pad = find("pad_token_id") or 0
        start = find("decoder_start_token_id")
        self.start: int = text.eos_token_id if start is None else start
        # The session's search says by this what a text begins with; without it, a text begins as the tokenizer has it.
        first = given.forced_bos_token_id
        if first is None and (around := self.tokenizer("").input_ids)[:1] == [self.tokenizer.bos_token_id]:
            first = around[0]
        self.first: list[int] = [] if first is None else [first]
        eos = self.tokenizer.eos_token_id
        self.end: int = eos if eos in self.session.ends or not self.session.ends else min(self.session.ends)

    def prepare(self, row: Row) -> tuple[str, Image.Image]:
        """The task and the picture."""
        picture = self.session.prepare(row)
        return self.settings.ask(row, row.get("attempt") or 1).user.strip(), picture

    def blank(self, row: Row) -> tuple[str, Image.Image]:
        """Some task and a white picture."""
        return TEXT_TASKS[0], _white()

    def tensors(self, rows: list[Row], prepared: list[Any], texts: list[str | None]) -> dict[str, Any]:
        """`input_ids`, `attention_mask` (B, P), `pixel_values`, `decoder_input_ids`, `labels` (B, T)."""
        made = self.session.processor(
            text=[task for task, _ in prepared],
            images=[picture for _, picture in prepared],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        answers = self._answers(texts)
        return {
            "input_ids": made.pop("input_ids"),
            **self._cast(made),
            "decoder_input_ids": _padded([[self.start, *answer[:-1]] for answer in answers], self.pad),
            "labels": _padded(answers, IGNORED, 1),
            **self._more,
        }

    def _places(self) -> int:
        longest: int = self.session.model.config.text_config.max_position_embeddings
        return longest - 1  # as the session has it

    def _tokens(self, text: str) -> list[int]:
        return [*self.first, *self._read(text), self.end]


class ImageTextFamily(Family):
    """Models that write on: the picture's places, the question as the chat template words it, and the answer."""

    def __init__(self, settings: ImageText, max_tokens: int | None) -> None:
        self._first: list[int] = []
        super().__init__(settings, max_tokens)
        chat, ends, eos = self.session.chat, self.session.ends, self.tokenizer.eos_token_id
        if not ends and eos is None:
            raise CutlineError(
                f"image_text: {settings.model} has no token that ends an answer (eos_token in tokenizer_config.json or "
                "eos_token_id in generation_config.json), so it cannot learn to end one; give another -o model=…"
            )
        self._space, rest = chat.around()
        after = [token for token in self.tokenizer(rest, add_special_tokens=False).input_ids if token in ends]
        self.end: int = after[0] if after else eos if eos in ends or not ends else min(ends)
        if thinking := begun(chat.render("", chat.sentinel)).strip():
            self._first = list(self.tokenizer(THOUGHT[thinking] + "\n\n", add_special_tokens=False).input_ids)
        self.type = SUFFIX_TYPES.get(self.session.model.config.model_type, 0)
        self._sign = self.tokenizer.convert_tokens_to_ids(chat.image_token) if chat.image_token else None

    def prepare(self, row: Row) -> tuple[str, Image.Image]:
        """The question, as the chat template words it, and the picture."""
        return self._question(row), self.session.prepare(row)

    def blank(self, row: Row) -> tuple[str, Image.Image]:
        """The question, or some question where there is none, and a white picture."""
        try:
            return self._question(row), _white()
        except RowError:
            return self.session.chat.render("", self.session.chat.sentinel), _white()

    def tensors(self, rows: list[Row], prepared: list[Any], texts: list[str | None]) -> dict[str, Any]:
        """The processor's tensors, of which those like `input_ids` (B, L) go on with the answers; `labels` (B, T)."""
        import torch

        questions, pictures = [text for text, _ in prepared], [picture for _, picture in prepared]
        made = self.session.chat.tensors(questions, pictures, padding_side="right")
        starts = [int(count) for count in made["attention_mask"].sum(dim=1)]
        answers = self._answers(texts)
        if self._longest is not None:  # questions, and pictures more so, differ in length
            answers = [answer[: max(0, self._longest - start)] for start, answer in zip(starts, answers, strict=True)]
        asked = made["input_ids"].shape  # (B, P)
        length = max(start + max(0, len(answer) - 1) for start, answer in zip(starts, answers, strict=True))
        found: dict[str, Any] = {"input_ids": None}  # which comes first, as the first says how many rows there are
        for name, value in self._cast(made).items():
            if value.shape != asked or name.startswith(("pixel", "image")):
                found[name] = value
                continue
            outside = {"input_ids": self.tokenizer.pad_token_id or 0, "attention_mask": 0}.get(name, self.type)
            longer = torch.full((asked[0], length), outside, dtype=value.dtype)
            for row, (start, answer) in enumerate(zip(starts, answers, strict=True)):
                said = answer[:-1] if name == "input_ids" else [1 if name == "attention_mask" else self.type]
                longer[row, :start] = value[row, :start]
                end = start + max(0, len(answer) - 1)
                longer[row, start:end] = torch.tensor(said, dtype=value.dtype)
            found[name] = longer
        return {**found, **self._labels(starts, answers, length), **self._more}

    def _question(self, row: Row) -> str:
        asked = self.settings.ask(row, row.get("attempt") or 1)
        return self.session.chat.render(asked.system, asked.user)  # type: ignore[no-any-return]

    def _places(self) -> int | None:
        config = self.session.model.config.get_text_config()
        self._longest: int | None = getattr(config, "max_position_embeddings", None)
        if self._longest is None:
            return None
        chat = self.session.chat
        shortest = chat.tensors([chat.render("", chat.sentinel)], [_white()])["input_ids"].shape[1]
        return max(1, int(self._longest) - int(shortest))

    def _tokens(self, text: str) -> list[int]:
        # A picture's place in a caption would ask for a picture.
        return [*self._first, *(token for token in self._behind(text) if token != self._sign), self.end]

    def _behind(self, text: str) -> list[int]:
        """A text as it is read behind a question: after "Assistant:", the word is " a" and not "a"."""
        colon, whole = self._read(":"), self._read(":" + self._space + text)
        return whole[len(colon) :] if self._space and whole[: len(colon)] == colon else self._read(text)


def _padded(rows: list[list[int]], fill: int, least: int = 0) -> torch.Tensor:
    """Rows of numbers as one tensor, filled on the right up to the longest, or to `least`."""
    import torch

    longest = max([least, *map(len, rows)])
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows], dtype=torch.long)


def _white() -> Image.Image:
    from PIL import Image

    return Image.new("RGB", (64, 64), WHITE)
