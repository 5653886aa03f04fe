"""What annotators with weights of their own share: finding and loading them, and how words are searched or drawn.

An annotator takes the options of `Local` (which weights, in what format, where) and `Search` (how words follow from
them) by subclassing both, and loads with `load_config`, `load_part` and `load_weights`. All that is known to be wrong
is refused before weights are loaded; what cannot be loaded is a `CutlineError` that says what to type next.

What a row is told depends on the row and the settings alone, not on the batch that it sat in, the device or the order.
Searches (greedy, beams) are so by nature. Sampling is made so: each row draws from a generator of its own (`Draw`).
Code that comes with a model is never run.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cutline.annotators import trained
from cutline.annotators.prompted import AGAIN_TEMPERATURE, Asked
from cutline.annotators.session import Batched, Row, RowError, seed_number
from cutline.options import CutlineError, OptionError, digest, option

if TYPE_CHECKING:
    import torch
    from PIL import Image

FEW = 4
"""Rows at once for batch_size=auto where memory is not measured (a processor's cores are busy with one row or two)."""
MOST = 64
"""Rows at once at most for batch_size=auto: beyond, a GPU is no faster, and a stop loses more work in hand."""
SHARE = 0.8
"""Of the memory that is free: what batch_size=auto gives to a batch."""

TOKENS = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id"),
    *("bad_words_ids", "suppress_tokens", "begin_suppress_tokens"),
)
"""What a model's generation_config.json says of its tokens: which begin, end and fill, and which are never said."""

ADAPTED = re.compile(r"base_model\.model\.(.+?)\.lora_")
"""A weight of a LoRA, and within it the module of the model that it is for."""


@dataclass(frozen=True)
class Local:
    """The options of an annotator with weights of its own. A subclass's `__post_init__` calls that of this class, and
    before that of `Prompted`, as weights may bring their prompt.
    """

    called: ClassVar[str]
    """The annotator's name, with which its errors begin."""
    base: ClassVar[str | None] = None
    """The model where none is named, and no adapter names its own."""

    model: str | None = option(None, "hub name, local folder or run; without one, the adapter's base", files=True)
    revision: str | None = option(None, "branch, tag or commit of a model on the hub")
    adapter: str | None = option(
        None, "a run of cutline train, or folder of a PEFT adapter (LoRA, its kin)", files=True
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "number format of the weights, and of computing with quantised ones; auto: as they are stored"
    )
    quantize: Literal["int8", "nf4"] | None = option(None, "shrink the weights by bitsandbytes: to a half, a quarter")
    attention: Literal["sdpa", "flash_attention_2", "eager"] | None = option(
        None, "how attention is computed; without it, as transformers thinks best for the model"
    )
    batch_size: int | Literal["auto"] = option(
        "auto",
        "rows at once, halved when memory runs out; auto: as many as fit on a GPU, few elsewhere",
        identity=False,
    )
    threads: int = option(2, "threads that read and decode pictures", identity=False)
    device: str = option("auto", "auto, cpu, cuda:0, mps", identity=False)

    def __post_init__(self) -> None:
        """Fill in what was left open and refuse what is known to be wrong.

        Weights that were trained here bring what they were trained with: a subclass whose `prompt`, `min_pixels` or
        `max_pixels` are None finds them filled in by this.
        """
        for name in ("batch_size", "threads"):
            if (given := getattr(self, name)) != "auto" and given < 1:
                raise OptionError(f"{self.called}: {name}={given} does not fit: it is at least 1")
        if self.attention == "flash_attention_2" and self.dtype == "float32":
            raise OptionError(
                f"{self.called}: attention=flash_attention_2 does not work in float32; add -o dtype=bfloat16"
            )
        found = self._find_weights("adapter")
        if not self.model:
            base, revision = self._adapters_base() if self.adapter else (self.base, None)
            if not base:
                raise OptionError(f"{self.called} needs a model: -o model=HUB/NAME or -o model=FOLDER")
            object.__setattr__(self, "model", base)
            object.__setattr__(self, "revision", self.revision or revision)
        # An adapter on top of a model that was trained, too, is asked as the adapter was.
        found = self._find_weights("model", take=found is None) or found
        there = Path(str(self.model)).expanduser()
        if not there.exists() and (str(self.model).startswith((".", "/", "~")) or str(self.model).count("/") > 1):
            raise OptionError(f"{self.called}: model={self.model}: there is no such folder. Give one: -o model=FOLDER")
        if self.revision and there.exists():
            raise OptionError(f"{self.called}: revision={self.revision} has no effect on the local folder {self.model}")

    def _find_weights(self, name: Literal["adapter", "model"], *, take: bool = True) -> trained.Trained | None:
        """Put in place of a run its weights, and of what was left open what these were trained with."""
        if not (given := getattr(self, name)):
            return None
        named = Path(given).expanduser()
        folder = trained.weights_of(named)
        if folder != named:
            object.__setattr__(self, name, str(folder))
        whole, adapter = (folder / "config.json").is_file(), (folder / trained.ADAPTER).is_file()
        if name == "adapter" and whole and not adapter:
            raise OptionError(f"{self.called}: {given} is a whole model and no adapter: -o model={given}")
        if name == "model" and adapter and not whole:
            raise OptionError(f"{self.called}: {given} is an adapter and no whole model: -o adapter={given}")
        found = trained.read(folder)
        if found and found.annotator != self.called:
            raise OptionError(
                f"{self.called}: {given} was trained for another annotator: "
                f"cutline annotate DATASET {found.annotator} -o {name}={given}"
            )
        if found and take:
            said = {pixels: found.options.get(pixels) for pixels in ("min_pixels", "max_pixels")}
            for left, value in {**said, "prompt": self.trained_prompt(found)}.items():
                if value is not None and getattr(self, left, "") is None:
                    object.__setattr__(self, left, value)
        return found

    def trained_prompt(self, found: trained.Trained) -> str | None:
        """What `prompt` is where none is given with weights that were trained here."""
        return str(found.prompt) if found.prompt else None

    @classmethod
    def native(cls, base: str) -> str:
        """The model that an adapter's word of its base means; a subclass may know another home of the same weights."""
        return base

    def renamed(self, weight: str) -> str:
        """What an adapter's weight is called on the model's class here; a subclass may know names of another class."""
        return weight

    def _adapters_base(self) -> tuple[str | None, str | None]:
        """The model that the adapter was trained on and its revision, by the adapter's own word."""
        folder = Path(str(self.adapter)).expanduser()
        try:
            config = trained.read_adapter(folder)
        except CutlineError as error:
            raise CutlineError(f"{self.called}: {error}") from None
        said = config["base_model_name_or_path"]
        base, revision = (said, config.get("revision")) if said else (self.base, None)
        if found := trained.read(folder):
            base, revision = found.base or base, found.revision if found.base else revision
        native = base and self.native(base)
        return native, revision if native == base else None

    def weights(self) -> dict[str, Any]:
        """Which weights are asked, for a request."""
        names = ("model", "revision", "adapter", "dtype", "quantize", "attention")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Search:
    """The options of how words follow from weights. A subclass's `__post_init__` calls that of this class."""

    called: ClassVar[str]
    default_beams: ClassVar[int] = 1
    """Where nothing is said of beams or sampling."""

    beams: int | None = option(None, "texts searched side by side; 1, which is greedy")
    sample: bool = option(False, "draw words by chance rather than search for the likeliest")
    temperature: float | None = option(None, "with sample=true: below 1 safer, above 1 wilder; 1.0")
    top_p: float | None = option(None, "with sample=true: draw among the likeliest words that hold this share; 0.9")
    top_k: int | None = option(None, "with sample=true: draw among this many of the likeliest words")
    min_p: float | None = option(None, "with sample=true: draw no word less likely than this share of the likeliest")
    min_tokens: int = option(0, "a text may not end before so many tokens")
    max_tokens: int = option(300, "a text is cut after so many tokens")
    repetition_penalty: float = option(1.0, "above 1 makes words that were already said less likely")

    def __post_init__(self) -> None:
        """Fill in what was left open and refuse what would have no effect."""
        for name, default in (("temperature", 1.0), ("top_p", 0.9), ("top_k", None), ("min_p", None)):
            given = getattr(self, name)
            if not self.sample and given is not None:
                raise OptionError(f"{self.called}: {name}={given} has no effect without -o sample=true")
            if self.sample and given is None:
                object.__setattr__(self, name, default)
        if self.beams is None:
            object.__setattr__(self, "beams", 1 if self.sample else self.default_beams)
        if self.sample and self.beams != 1:
            raise OptionError(
                f"{self.called}: beams={self.beams} has no meaning with sample=true; leave one of them out"
            )
        for name in ("beams", "max_tokens", "top_k"):
            if (given := getattr(self, name)) is not None and given < 1:
                raise OptionError(f"{self.called}: {name}={given} does not fit: it is at least 1")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise OptionError(f"{self.called}: min_tokens={self.min_tokens} does not fit: it is 0 to max_tokens")
        for name in ("repetition_penalty", "temperature"):
            if (given := getattr(self, name)) is not None and not 0 < given < float("inf"):
                raise OptionError(f"{self.called}: {name}={given} does not fit: it is more than 0")
        for name in ("top_p", "min_p"):
            if (given := getattr(self, name)) is not None and not 0 < given <= 1:
                raise OptionError(f"{self.called}: {name}={given} does not fit: it is more than 0 and at most 1")

    def sampling(self, attempt: int = 1) -> dict[str, Any] | None:
        """How words are drawn in this attempt (temperature, top_k, top_p, min_p); None where they are searched."""
        if self.sample:
            found = {name: getattr(self, name) for name in ("temperature", "top_k", "top_p", "min_p")}
            return {name: value for name, value in found.items() if value is not None}
        return {"temperature": AGAIN_TEMPERATURE} if attempt > 1 else None

    def generation(self, attempt: int = 1) -> dict[str, Any]:
        """The settings of the search in this attempt, by transformers' names."""
        return {
            "do_sample": False,  # chance, where wanted, comes in by `Draw`
            "num_beams": 1 if self.sampling(attempt) else self.beams,
            "min_new_tokens": self.min_tokens,
            "max_new_tokens": self.max_tokens,
            "repetition_penalty": self.repetition_penalty,
        }

    def search(self, attempt: int, seed: int | str) -> dict[str, Any]:
        """How words are found in this attempt, for a request."""
        sampling = self.sampling(attempt)
        drawn = {"sampling": {**sampling, "seed": seed}} if sampling else {}
        return {"generation": self.generation(attempt), **drawn}


class Draw:
    """A logits processor after which the likeliest token *is* a random draw: the Gumbel-max trick.

    argmax(logits + Gumbel noise) is distributed as softmax(logits) (Maddison et al. 2014, arXiv:1411.0030). The noise
    of a token is a hash of the row's seed, the step and the token: what the SplitMix64 generator (Steele et al. 2014)
    started at the seed gives at number step * 2**32 + token. So no batch, order or device changes the draw, and a
    GPU makes it where the logits are.
    """

    def __init__(self, seeds: Sequence[int | str]) -> None:
        """One seed for each row: a number from 0 to 2**63 - 1, or a text (see `seed_number`)."""
        self.seeds = [seed_number(seed) if isinstance(seed, str) else seed for seed in seeds]
        self.step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Add noise to `scores` (B, V), the logits of the token after `input_ids` (B, L)."""
        import torch

        device = scores.device
        if device.type == "mps":
            scores = scores.cpu()  # it has no numbers of 64 bits after the point
        rows, tokens = torch.nonzero(scores > -torch.inf, as_tuple=True)  # the few that top_k and its kin have left
        seeds = torch.tensor(self.seeds, device=scores.device)[rows]
        bits = _mixed(seeds + (tokens + 1 + (self.step << 32)) * _signed(0x9E3779B97F4A7C15))
        chance = (_shifted(bits, 11).double() + 0.5) * 2.0**-53  # within 0 and 1
        self.step += 1
        drawn = torch.full_like(scores, -torch.inf, dtype=torch.float32)
        drawn[rows, tokens] = (scores[rows, tokens].double() - (-chance.log()).log()).float()
        return drawn.to(device)


def _mixed(bits: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finalizer, on 64-bit numbers whose sign is their highest bit; products wrap."""
    bits = (bits ^ _shifted(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shifted(bits, 27)) * _signed(0x94D049BB133111EB)
    return bits ^ _shifted(bits, 31)


def _shifted(bits: torch.Tensor, places: int) -> torch.Tensor:
    """Moved to the right, with zeros coming in."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def drawing(sampling: Mapping[str, Any] | None, seeds: Sequence[int | str]) -> list[Any]:
    """The logits processors for a batch: none where words are searched, else `sampling`'s and then a `Draw` by `seeds`.

    They are given to `generate` as logits_processor, beside do_sample=False.
    """
    if sampling is None:
        return []
    import transformers

    made: list[Any] = [transformers.TemperatureLogitsWarper(float(sampling["temperature"]))]
    for name, kind in (
        ("top_k", transformers.TopKLogitsWarper),
        ("top_p", transformers.TopPLogitsWarper),
        ("min_p", transformers.MinPLogitsWarper),
    ):
        if name in sampling:
            made.append(kind(sampling[name]))
    return [*made, Draw(seeds)]


@dataclass(frozen=True)
class Said:
    """What a model said to one row."""

    text: str
    finish_reason: str
    """`stop`, or `length` where it was cut."""
    tokens_in: int
    tokens_out: int


class LocalSession(Batched):
    """A session of settings that are `Prompted`, `Local` and `Search`: a subclass says what the model says, with `say`.

    A row whose answer is to be made again is asked again within its batch, together with the others of that kind.
    """

    settings: Any

    def say(self, asked: list[Asked], pictures: list[Image.Image], attempt: int) -> list[Said]:
        """Ask about these pictures, searching or drawing words as `Search` has it for this attempt."""
        raise NotImplementedError

    def prepare(self, row: Row) -> Image.Image:
        """Decode a picture to RGB on white. Raises RowError where there is nothing that could be asked about it."""
        self.settings.ask(row, row.get("attempt") or 1)
        return row["picture"].decode()  # type: ignore[no-any-return]

    def batch(self, rows: list[Row], prepared: list[Image.Image]) -> list[Row]:
        """Ask about a batch, and again where the prompt's policies say so."""
        answers: list[Row] = [{} for _ in rows]
        seconds = [0.0] * len(rows)
        tokens = [(0, 0)] * len(rows)  # of all tries, as the seconds are
        attempts = [row.get("attempt") or 1 for row in rows]
        todo, tries = list(range(len(rows))), 1
        while todo:
            again = []
            # Rows that come for the first time are searched while others are drawn, which takes two batches.
            drawn = [place for place in todo if self.settings.sampling(attempts[place])]
            searched = [place for place in todo if place not in drawn]
            for places in filter(None, (searched, drawn)):
                started = time.perf_counter()
                asked = [self.settings.ask(rows[place], attempts[place]) for place in places]
                found = self.say(asked, [prepared[place] for place in places], attempts[places[0]])
                share = (time.perf_counter() - started) / len(places)
                for place, question, said in zip(places, asked, found, strict=True):
                    row = {**rows[place], "attempt": attempts[place]}
                    seconds[place] += share
                    tokens[place] = (tokens[place][0] + said.tokens_in, tokens[place][1] + said.tokens_out)
                    answer = self.settings.answer(
                        row, question, said.text, finish_reason=said.finish_reason, tries=tries
                    )
                    if answer.again:
                        again.append(place)
                        attempts[place] += 1
                        continue
                    answers[place] = {
                        **answer.columns,
                        "attempt": row["attempt"],
                        "request": digest(self.settings.request(row)),
                        "tokens_in": tokens[place][0],
                        "tokens_out": tokens[place][1],
                        "seconds": seconds[place],
                    }
            todo, tries = again, tries + 1
        return answers

    def drawing(self, asked: list[Asked], attempt: int) -> list[Any]:
        """The logits processors by which words are drawn in this attempt, if they are."""
        return drawing(self.settings.sampling(attempt), [one.seed for one in asked])


def read_tokens(tokenizer: Any, new: list[int], ends: set[int], tokens_in: int) -> Said:
    """The text of new tokens, up to the first of those that end it, without the tokenizer's signs."""
    end = next((place for place, token in enumerate(new) if token in ends), None)
    text = tokenizer.decode(new[:end], skip_special_tokens=True)
    return Said(text, "length" if end is None else "stop", tokens_in, len(new) if end is None else end + 1)


def ends_of(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end a text, of which `generate` is told too: what it goes by itself may be another file's."""
    found = model.generation_config.eos_token_id
    found = tokenizer.eos_token_id if found is None else found
    return {end for end in (found if isinstance(found, list) else [found]) if end is not None}


def signs_of(tokenizer: Any) -> list[str]:
    """The texts that a tokenizer reads as signs. Some it names; others are in its list alone, as Llama's speakers."""
    listed = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted({*tokenizer.all_special_tokens, *listed} - {""})


def refuse_signs(signs: Sequence[str], *texts: str) -> None:
    """Raise RowError where a text to be asked has one of the model's signs in it, which it would not read as text."""
    for sign in signs:
        if any(sign in text for text in texts):
            raise RowError("special_token", f"what would be asked has {sign!r} in it, which the model reads as a sign")


def find_libraries(settings: Local) -> Any:
    """The module transformers, quiet. Raises CutlineError where it, or what the settings need beside it, is lacking."""
    try:
        import torch  # noqa: F401

        transformers: Any = import_module("transformers")
    except ImportError as error:
        raise not_installed(settings, error) from None
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"  # nobody is asked to convert pickles, which are not read
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of each try to reach the hub
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if settings.quantize and find_spec("bitsandbytes") is None:
        raise CutlineError(
            f"{settings.called}: quantize={settings.quantize} needs bitsandbytes: pip install 'cutline[quant]'"
        )
    # It tells of each multiplication, and, where PEFT loads it, of what it has not found.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # A lock for several processes, which PEFT's bars would make though they are not shown, outlives a worker.
    import_module("tqdm").tqdm.set_lock(threading.RLock())
    if settings.quantize:
        try:
            import_module("bitsandbytes")
        except Exception as error:  # it loads libraries of its own, which may fail in many ways
            raise CutlineError(
                f"{settings.called}: quantize={settings.quantize}: bitsandbytes does not work with the torch that is "
                f"installed here ({_first_line(error)}). Leave -o quantize out, or: pip install -U bitsandbytes"
            ) from None
    if settings.attention == "flash_attention_2" and find_spec("flash_attn") is None:
        raise CutlineError(
            f"{settings.called}: attention=flash_attention_2 needs the package flash-attn, which is not installed: "
            "pip install flash-attn --no-build-isolation, or leave it to -o attention=sdpa"
        )
    return transformers


def find_device(settings: Local) -> torch.device:
    """The device of the settings. Raises CutlineError where it cannot be used, and what `find_libraries` raises."""
    find_libraries(settings)
    import torch

    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:  # an assertion is what a torch without CUDA raises
        raise CutlineError(
            f"{settings.called}: device={name} cannot be used here: {_first_line(error)} Try -o device=cpu"
        ) from None
    if settings.attention == "flash_attention_2" and device.type != "cuda":
        raise CutlineError(
            f"{settings.called}: attention=flash_attention_2 works on CUDA devices only, and this is {name}; "
            "leave it to -o attention=sdpa"
        )
    return device


def load_config(settings: Local, *types: str) -> Any:
    """The model's configuration. Raises CutlineError where there is none, or it is of none of these `types`."""
    transformers = find_libraries(settings)
    with _loading(settings):
        said, _ = transformers.PreTrainedConfig.get_config_dict(_name(settings), **_where(settings))
        if not said or not isinstance(said, dict):
            raise OSError("there is no config.json in it, or no object in that.")
    kind = said.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        raise CutlineError(
            f"{settings.called}: {settings.model} is a model of type '{kind}', for which transformers has no class of "
            "its own, and code that comes with a model is not run. A server may run it: see the annotator server"
        )
    config = load_part(settings, transformers.AutoConfig)
    if types and config.model_type not in types:
        raise CutlineError(
            f"{settings.called}: {settings.model} is a model of type '{config.model_type}', not "
            f"{' or '.join(map(repr, types))}; give another -o model=…"
        )
    return config


def load_part(settings: Local, kind: Any, **more: Any) -> Any:
    """`kind.from_pretrained` of the settings' model: a configuration, tokenizer or processor."""
    with _loading(settings):
        return kind.from_pretrained(_name(settings), **_where(settings), **more)


def read_json(settings: Local, file: str) -> dict[str, Any]:
    """What a JSON file beside the model says; nothing where there is no such file, or no object in it."""
    hub: Any = import_module("transformers.utils.hub")
    with _loading(settings):
        path = hub.cached_file(
            _name(settings),
            file,
            revision=settings.revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        said = json.loads(Path(path).read_text("utf-8")) if path else {}
        return said if isinstance(said, dict) else {}


def load_weights(settings: Local, kind: Any, device: torch.device, config: Any) -> Any:
    """The model, in evaluation mode on its device.

    Args:
        settings: which weights.
        kind: the class that has them, such as `transformers.AutoModelForCausalLM`.
        device: where to, from `find_device`.
        config: the model's, from `load_config`.

    An adapter is merged into the weights, after which it costs nothing; it is merged in float32, as in a shorter format
    it would be rounded away. Quantised weights cannot take it in: there it works on top of them.

    Raises:
        CutlineError: there are no such weights, some are missing, the adapter is of another model, the model cannot
            compute attention so.
    """
    import torch

    found = config.dtype or getattr(config.get_text_config(), "dtype", None) or torch.float32
    dtype: torch.dtype = found if settings.dtype == "auto" else getattr(torch, settings.dtype)
    if settings.attention == "flash_attention_2" and dtype == torch.float32:
        raise CutlineError(
            f"{settings.called}: attention=flash_attention_2 does not work in float32, as {settings.model} is stored; "
            "add -o dtype=bfloat16"
        )
    merged = settings.adapter and not settings.quantize
    more: dict[str, Any] = {"dtype": torch.float32 if merged else dtype}
    if not merged:
        more["device_map"] = {"": device}
    if settings.attention:
        more["attn_implementation"] = settings.attention
    if settings.quantize:
        more["quantization_config"] = _quantisation(settings, dtype)
    more["use_safetensors"] = True  # other files of weights are pickles, which may run code
    with _loading(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bitsandbytes and accelerate, about themselves
        model, loading = kind.from_pretrained(
            _name(settings), **_where(settings), config=config, output_loading_info=True, **more
        )
    if missing := sorted(loading["missing_keys"]):
        raise CutlineError(
            f"{settings.called}: {settings.model} is no whole {type(model).__name__}: {len(missing)} weights are "
            f"missing, such as {missing[0]}. Give another -o model=…"
        )
    if settings.quantize == "nf4" and device.type == "cpu":
        for part in model.modules():
            # The quick way of bitsandbytes 0.50 on processors with AVX512 fails on weights of such shapes.
            if hasattr(part, "support_avx512bf16_for_cpu") and (part.in_features % 64 or part.out_features % 32):
                part.support_avx512bf16_for_cpu = False
    if settings.adapter:
        model = _adapt(settings, model)
    if merged:
        _untie(model)
        try:
            model = model.merge_and_unload().to(device=device, dtype=dtype)
        except (NotImplementedError, ValueError) as error:  # as of a convolution in groups
            raise CutlineError(
                f"{settings.called}: the adapter {settings.adapter} cannot be put into {settings.model}: "
                f"{_first_line(error)}"
            ) from None
    _forget_search(model)
    return model.eval()


def choose_batch_size(settings: Local, device: torch.device, probe: Callable[[], object]) -> int:
    """The rows at once that the settings ask for; for `auto` on CUDA, as many as fit.

    Args:
        settings: as given.
        device: where the model is.
        probe: answers one row of the largest kind, to the greatest length, and lets go of it.
    """
    if settings.batch_size != "auto":
        return settings.batch_size
    if device.type != "cuda":
        return FEW
    import torch

    try:
        probe()  # the first one allocates what stays
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        probe()
        one = torch.cuda.max_memory_allocated(device) - before
    except torch.OutOfMemoryError:
        return 1  # smaller rows than the largest may fit
    torch.cuda.empty_cache()
    return fitting(free=torch.cuda.mem_get_info(device)[0], one=one)


def fitting(*, free: int, one: int) -> int:
    """How many rows fit at once into 80 % of `free` bytes at `one` byte count each: 1 to `MOST`."""
    return max(1, min(MOST, int(SHARE * free) // max(1, one)))


def not_installed(settings: Local, error: ImportError) -> CutlineError:
    """The error for a library that is lacking."""
    return CutlineError(f"{settings.called} needs more libraries ({_first_line(error)}): pip install 'cutline[models]'")


def _forget_search(model: Any) -> None:
    """Take from a model how its files would have words searched: what a request does not say is not to change words."""
    transformers: Any = import_module("transformers")
    for part in model.modules():  # some have a language model within, which generates by settings of its own
        if found := getattr(part, "generation_config", None):
            known = {name: getattr(found, name, None) for name in TOKENS}
            part.generation_config = transformers.GenerationConfig(**known)


def _quantisation(settings: Local, dtype: torch.dtype) -> Any:
    transformers: Any = import_module("transformers")
    if settings.quantize == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _adapt(settings: Local, model: Any) -> Any:
    """The model with its adapter on top."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT loads it, and it tells what it has not found
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise not_installed(settings, error) from None
    folder = Path(str(settings.adapter)).expanduser()
    try:
        with warnings.catch_warnings(), _with_names_here(settings, folder) as named:
            warnings.simplefilter("ignore")  # about what PEFT and transformers will rename
            adapted = PeftModel(model, PeftConfig.from_pretrained(str(named)))
            loading = adapted.load_adapter(str(named), "default")
        misfits = [*loading.missing_keys, *loading.unexpected_keys]
        if misfits:
            raise ValueError(f"{len(misfits)} of its weights, such as {misfits[0]}, do not match.")
        return adapted
    except Exception as error:  # as for `_loading`
        raise CutlineError(
            f"{settings.called}: the adapter {settings.adapter} does not fit {settings.model}: {_first_line(error)} "
            "Give the model that it was trained on: -o model=…"
        ) from None


def _untie(model: Any) -> None:
    """Give each layer a weight of its own where one with an adapter shares it, as many models' lm_head does with what
    reads tokens: merged into one weight of both, the adapter would change the other layer too.
    """
    import torch

    owners = Counter(weight for part in model.modules() for weight in part._parameters.values())
    adapted = (getattr(getattr(part, "base_layer", None), "weight", None) for part in model.modules())
    shared = {weight for weight in adapted if weight is not None and owners[weight] > 1}
    if not shared:
        return
    for part in model.modules():
        for name, weight in part._parameters.items():
            if weight in shared:
                part._parameters[name] = torch.nn.Parameter(weight.detach().clone(), requires_grad=False)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


@contextmanager
def _with_names_here(settings: Local, folder: Path) -> Iterator[Path]:
    """The adapter's folder, or a passing copy of it with the names that weights have on the model's class here."""
    from safetensors.torch import load_file, save_file

    if not (folder / trained.ADAPTER_WEIGHTS).exists():
        raise ValueError(f"it has no {trained.ADAPTER_WEIGHTS}, and pickles (.bin) are not read.")
    weights = load_file(folder / trained.ADAPTER_WEIGHTS)
    renamed = {settings.renamed(name): weight for name, weight in weights.items()}
    if renamed.keys() == weights.keys():
        yield folder
        return
    config = trained.read_adapter(folder)
    # What was matched by parts of names is said by whole ones, as parts may match more or less here.
    config["target_modules"] = sorted({found[1] for name in renamed if (found := ADAPTED.match(name))})
    config.update(dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern")))
    with tempfile.TemporaryDirectory() as scratch:
        named = Path(scratch)
        save_file(renamed, named / trained.ADAPTER_WEIGHTS)
        (named / trained.ADAPTER).write_text(json.dumps(config), "utf-8")
        yield named


@contextmanager
def _loading(settings: Local) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise not_installed(settings, error) from None
    except Exception as error:  # files that are cut short or made by others fail in many ways
        here = Path(_name(settings)).exists()
        there = "is a folder, but cannot be loaded" if here else "is no folder here, nor came from the hub"
        raise CutlineError(
            f"{settings.called}: model={settings.model} {there}: {_first_line(error)} Give a folder: -o model=FOLDER"
        ) from None


def _name(settings: Local) -> str:
    local = Path(str(settings.model)).expanduser()
    return str(local) if local.exists() else str(settings.model)


def _where(settings: Local) -> dict[str, Any]:
    return {"trust_remote_code": False, **({"revision": settings.revision} if settings.revision else {})}


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
