"""Teach a captioner what a dataset says of its pictures: LoRA or full fine-tuning, and the proof that it helped.

`Captioner` is what a preset of training and `-o` fill. `train` looks at the dataset, says what it is about to do, and
gives the rest to `loop`, which runs transformers' Trainer. The words to learn are a recipe's, what is asked of the
model is a prompt, and both, with the pictures, go the ways of `annotate`: what a model is taught it is asked again.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from cutline import options, registry
from cutline.compose.recipe import Recipe, check_layers, default_recipe, find_recipe
from cutline.dataset import Dataset
from cutline.options import CutlineError, OptionError, option
from cutline.training.optimizing import Optimising

Events = Callable[[dict[str, Any]], None]
"""Told of what happens: {"event": "looking" | "ready" | "start" | "step" | "held_out" | "sample" | …}."""


@dataclass
class Report:
    """What came of a run."""

    run: Path
    step: int = 0
    steps: int = 0
    best: int | None = None
    """The step of the model with the lowest held-out loss."""
    interrupted: bool = False
    before: dict[str, float] = field(default_factory=dict)
    """Caption metrics on held-out pictures; so is `after`, of the best model."""
    after: dict[str, float] = field(default_factory=dict)
    embedder: str = ""
    measured: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    already: bool = False
    """It was finished before, and nothing was done."""


_ASKED = ("prompt", "user", "system", "tags", "min_pixels", "max_pixels", "attention", "quantize")
_ADAPTER = ("rank", "alpha", "dropout", "rslora", "dora", "init", "target_modules")
_TRACKERS = {"tensorboard": ("tensorboard",), "wandb": ("wandb",), "all": ("tensorboard", "wandb")}


@dataclass(frozen=True, kw_only=True)
class Captioner(Optimising):
    """Teach a captioner."""

    called: ClassVar[str] = "captioner"

    annotator: Literal["blip", "florence2", "image_text"] = option(help="which annotator captions with it")
    model: str | None = option(
        None, "hub name or local folder of what is taught; by default the annotator's own", files=True
    )
    revision: str | None = option(None, "branch, tag or commit of a model on the hub")

    recipe: str = option(
        "", "what is learnt: a recipe, by name or as a TOML file; by default the captions that there are"
    )
    prompt: str | None = option(
        None, "what the model is asked: a prompt or a TOML file; for blip the words to begin with"
    )
    user: str | None = option(None, "what is asked, in place of the prompt's (image_text, florence2)")
    system: str | None = option(None, "what the model is told that it is, in place of the prompt's (image_text)")
    tags: tuple[str, ...] = option((), "tag layers that the prompt is filled from; by default the dataset's only one")
    min_pixels: int | None = option(None, "smaller pictures are scaled up to so many pixels (image_text)")
    max_pixels: int | None = option(None, "larger pictures are scaled down to so many pixels (image_text)")
    max_tokens: int | None = option(None, "more of a text is not learnt; by default as much as the annotator writes")

    method: Literal["lora", "full"] = option("lora", "teach an adapter beside the weights, or all weights")
    rank: int = option(16, "of the adapter's matrices")
    alpha: float = option(32.0, "the adapter counts alpha / rank times, with rslora alpha / sqrt(rank) times")
    dropout: float = option(0.05, "share of what enters the adapter that is left out at each step")
    rslora: bool = option(False, "scale by sqrt(rank), for ranks above 32 or so")
    dora: bool = option(False, "learn the length of the weights' columns apart from their direction")
    init: Literal["default", "gaussian", "orthogonal"] = option("default", "how the adapter's first matrix begins")
    target_modules: str | tuple[str, ...] = option(
        "", "layers that get an adapter: names or their ends (q_proj,v_proj), or one regular expression for whole names"
    )
    quantize: Literal["int8", "nf4"] | None = option(None, "shrink the weights below the adapter, by bitsandbytes")
    precision: Literal["float32", "bfloat16", "float16"] | None = option(
        None, "in what is computed; by default bfloat16 on a GPU that has it, else float32"
    )
    attention: Literal["sdpa", "flash_attention_2", "eager"] | None = option(
        None, "how attention is computed; without it, as transformers thinks best for the model"
    )
    activation_checkpointing: bool = option(False, "compute activations twice rather than keep them", identity=False)
    torch_compile: str = option("", "compile the model with this backend, such as inductor", identity=False)

    batch_size: int = option(4, "pictures at once, on each device")
    gradient_accumulation_steps: int = option(1, "batches that make one step")
    epochs: int = option(5, "how often each picture comes")
    max_steps: int | None = option(None, "stop after so many steps, whatever epochs says")
    seed: int = option(0, "another number: another order, other draws, other beginnings")

    validation: float = option(0.05, "share of the pictures that is held out, to measure on")
    measured: int = option(200, "held-out pictures, at most, that are captioned before and after")
    samples: int = option(8, "pictures that are captioned at every sample; 0: none", identity=False)
    embedder: str = option("", "what tells how near texts are: a sentence-transformers model; by default their letters")
    sample_every_n_epochs: int | None = option(
        None, "caption the samples so often; 1, unless steps are given", identity=False
    )
    sample_every_n_steps: int | None = option(None, "caption the samples so often", identity=False)
    save_every_n_epochs: int | None = option(
        None, "save, and measure held-out loss, so often; 1, unless steps are given", identity=False
    )
    save_every_n_steps: int | None = option(None, "save, and measure held-out loss, so often", identity=False)
    keep: int = option(2, "saved models that are kept, beside the best", identity=False)
    log_every_n_steps: int = option(10, "note loss and learning rate so often", identity=False)
    log_with: Literal["tensorboard", "wandb", "all"] | None = option(
        None, "tell others of them, too; metrics.jsonl has them in any case", identity=False
    )
    name: str = option("", "the run's folder below .cutline/runs; by default date and preset", identity=False)

    strict: bool = option(False, "a picture that cannot be opened stops the run before it begins", identity=False)
    workers: int | None = option(
        None, "processes that open pictures ahead; by default none on a CPU, 4 for each GPU", identity=False
    )
    device: Literal["auto", "cpu"] = option("auto", "cpu: leave GPUs alone", identity=False)
    deepspeed: str = option("", "a configuration of DeepSpeed, as a JSON file", files=True)
    fsdp: str = option("", "a configuration of FSDP, as a JSON file (transformers' fsdp_config)", files=True)

    def __post_init__(self) -> None:
        """Refuse what is known to be wrong, or would have no effect."""
        for name in ("rank", "batch_size", "gradient_accumulation_steps", "epochs", "max_steps", "keep"):
            self._at_least(name, 1)
        for name in ("log_every_n_steps", "max_tokens", *(f"{do}_every_n_{of}" for do in _OFTEN for of in _UNITS)):
            self._at_least(name, 1)
        for name in ("measured", "samples", "workers", "seed"):
            self._at_least(name, 0)
        if self.seed >= 1 << 32:
            raise OptionError(f"captioner: seed={self.seed} does not fit: it is less than 2**32")
        if not 0 < self.alpha < math.inf:
            raise OptionError(f"captioner: alpha={self.alpha} does not fit: it is more than 0")
        if not 0 <= self.dropout < 1:
            raise OptionError(f"captioner: dropout={self.dropout} does not fit: it is from 0 to less than 1")
        if not 0 <= self.validation <= 0.5:
            raise OptionError(f"captioner: validation={self.validation} does not fit: it is a share from 0 to 0.5")
        for do in _OFTEN:
            names = [f"{do}_every_n_{of}" for of in _UNITS]
            given = [name for name in names if getattr(self, name) is not None]
            if len(given) == 2:
                raise OptionError(f"captioner: {given[0]} and {given[1]} are both given; leave one of them out")
            if given and do == "sample" and not self.samples:
                raise OptionError(f"captioner: {given[0]} has no effect with samples=0; leave one of them out")
            if not given and (do == "save" or self.samples):
                object.__setattr__(self, f"{do}_every_n_epochs", 1)
        if self.method == "full":
            for name in _ADAPTER:
                if getattr(self, name) != Captioner.__dataclass_fields__[name].default:
                    raise OptionError(f"captioner: {name} is of an adapter, and there is none with method=full")
            if self.quantize:
                raise OptionError("captioner: quantized weights cannot be taught; quantize needs method=lora")
        self._check_modules()
        if self.init == "orthogonal" and self.rank % 2:
            raise OptionError(f"captioner: init=orthogonal needs an even rank, not {self.rank}")
        if self.device == "cpu" and self.precision == "float16":
            raise OptionError("captioner: precision=float16 does not work on a CPU; take bfloat16 or float32")
        if not re.fullmatch(r"[\w.-]*", self.name) or self.name.startswith("."):
            raise OptionError(f"captioner: name={self.name} is no name of a folder: letters, digits, -, _ and .")
        for name in ("deepspeed", "fsdp"):
            if getattr(self, name):
                self._check_json(name)
        if self.deepspeed and self.fsdp:
            raise OptionError("captioner: deepspeed and fsdp are both given; leave one of them out")
        shares = "deepspeed" if self.deepspeed else "fsdp" if self.fsdp else ""
        if shares and (self.samples or self.measured):
            raise OptionError(
                f"captioner: no process of {shares} has the whole model to caption with: set samples=0 and measured=0, "
                "and look at what it has learnt by cutline annotate and cutline evaluate"
            )
        if self.embedder and not (self.measured and self.validation):
            raise OptionError("captioner: embedder has no effect with measured=0 or validation=0; leave it out")
        super().__post_init__()
        self.asking("cpu")

    def _at_least(self, name: str, least: int) -> None:
        if (given := getattr(self, name)) is not None and given < least:
            raise OptionError(f"captioner: {name}={given} does not fit: it is at least {least}")

    def _check_json(self, name: str) -> None:
        given = Path(getattr(self, name)).expanduser()
        try:
            found = json.loads(given.read_bytes())
        except OSError as error:
            raise OptionError(f"captioner: {name}={given}: {error.strerror}; it is a JSON file") from None
        except ValueError as error:
            raise OptionError(f"captioner: {name}={given} is no JSON: {error}") from None
        if not isinstance(found, dict):
            raise OptionError(f"captioner: {name}={given} is no configuration: it is an object, in {{}}")
        object.__setattr__(self, name, str(given))

    def _check_modules(self) -> None:
        """Tell a list of names from a regular expression: `target_modules` becomes a tuple or stays a text."""
        given = self.target_modules
        if given and isinstance(given, str):
            names = tuple(name.strip() for name in given.split(",") if name.strip())
            if all(re.fullmatch(r"[\w.]+", name) for name in names):
                object.__setattr__(self, "target_modules", names)
            else:
                try:
                    re.compile(given)
                except re.error as error:
                    raise OptionError(
                        f"captioner: target_modules={given} is no list of names and no regular expression: {error}"
                    ) from None
        if self.method == "lora" and not self.target_modules:
            raise OptionError(
                "captioner: say which layers get an adapter: -o target_modules=q_proj,v_proj; the presets do"
            )

    def asking(self, device: str, **more: Any) -> Any:
        """The settings of the annotator that captions with this model: what is asked, how pictures are seen.

        Raises:
            OptionError: that annotator has no such option.
        """
        plugin = registry.load("annotators", self.annotator)
        given = {name: value for name in _ASKED if (value := getattr(self, name)) not in (None, ())}
        known = plugin.__dataclass_fields__
        for name in given:
            if name not in known:
                raise OptionError(f"captioner: annotator={self.annotator} has no option {name}; leave it out")
        where = {"model": self.model, "revision": self.revision, "device": device}
        given |= {name: value for name, value in where.items() if value}
        return options.fill(plugin, {**given, "beams": 1, **more})

    def find_recipe(self, dataset: Dataset) -> Recipe:
        """The recipe of what is learnt; where none is named, that of the captions that there are, or else the tags."""
        if self.recipe:
            found = find_recipe(dataset, self.recipe)
        else:
            layers = [layer for layer in dataset.layers() if dataset.layer(layer).parts()]
            captions = [layer for layer in layers if layer.startswith("captions/")]
            try:
                found = default_recipe(captions or layers)
            except CutlineError as error:
                raise CutlineError(str(error).replace("--recipe recipe.toml", "-o recipe=recipe.toml")) from None
        check_layers(found, dataset)
        return found

    @property
    def trackers(self) -> tuple[str, ...]:
        """Who else is told of losses."""
        return _TRACKERS[self.log_with] if self.log_with else ()

    def train(
        self,
        dataset: Dataset,
        *,
        preset: str = "captioner",
        where: str = "",
        dry_run: bool = False,
        events: Events | None = None,
    ) -> Report:
        """Teach it, or go on where an earlier run with these settings was stopped.

        Args:
            dataset: whose pictures and words.
            preset: what these settings are called, for the name of the run.
            where: only pictures that meet this SQL condition.
            dry_run: say what would be done, having loaded the model, and write nothing.
            events: told of what happens.

        Raises:
            CutlineError: there is nothing to learn from, or something is lacking.
        """
        dataset.key_rule  # noqa: B018  it says so where there is no dataset
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT loads it, and it tells what it has not found
        try:
            from cutline.training import loop
        except ImportError as error:
            raise CutlineError(f"training needs more libraries ({error}): pip install 'cutline[train]'") from None
        return loop.train(self, dataset, preset=preset, where=where, dry_run=dry_run, events=events or _ignore)


_OFTEN = ("sample", "save")
_UNITS = ("epochs", "steps")


def _ignore(event: Mapping[str, Any]) -> None:
    pass
