"""What training costs by `cutline train`, against a loop by hand and against the bare Trainer.

Three sides teach the same LoRA (the layers of our presets, rank 16) to the same model of random weights, from the same
pictures with the same captions of 5 to 70 words, in the same order and as many at each optimizer step:

by hand      the way of seed 001, written for the comparison: PEFT and AdamW, one picture after another opened in the
             loop, its text padded to a fixed length, `loss.backward()`, and a step after so many pictures
Trainer      transformers' own, with a collator of a few lines that opens pictures as Cutline does and pads to the
             longest text of a batch; nothing is measured, sampled or saved
cutline      `Captioner.train`, as `cutline train` calls it

Each side runs in a fresh process with as many torch threads, in interleaved rounds of which the median counts. Timed
are the optimizer steps, from the end of the first, which warms up, to the end of the last; what a whole run of Cutline
does beside them (looking at pictures, captioning samples, measuring, saving) is told apart. Peak memory is that of the
process, and on a GPU that which torch took of it. All sides must have learnt alike: their mean losses are compared.

Models: BLIP of half a million weights, that of the demo, where all is overhead, and of 13 million; on demand that of
BLIP-base's architecture. With `--gpu`, on a machine that has one, Florence-2-base's architecture in bfloat16, texts by
hand padded to 77 tokens, as the seed does, and to 1024, as what followed it does. Where there is none it says "not
measured".

    python benchmarks/train_captioner.py                 # seven minutes on two cores
    python benchmarks/train_captioner.py --size base     # half an hour
    python benchmarks/train_captioner.py --gpu           # five minutes on an H100
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import random
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutline import options, registry, toml_files
from facts import draw_pictures
from pairs import finish, median_ratio, say_machine, spread, verdict

if TYPE_CHECKING:  # a process that has no need of them is not to hold them when its memory is measured
    from cutline.dataset import Dataset
    from cutline.training.captioner import Captioner

HAND_TARGET = 1 / 1.5
"""Seconds of a picture, by hand = 1."""
TRAINER_TARGET = 1.10
"""Seconds of a picture, by the bare Trainer = 1."""
ALIKE = 0.02
"""How far mean losses may be apart, as a share. By hand each picture counts alike, elsewhere each token."""
STEPS_ALONE = {"validation": 0.0, "measured": 0, "samples": 0}
"""Options with which a run does little but its steps, and a saving at the end."""
RATE = 1e-3
EPOCHS = 2
NOTED = 10
"""Steps of which the mean loss is noted."""

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"words": 200, "side": 48, "patch": 8, "hidden": 128, "seen": 2, "said": 1, "heads": 4, "pictures": 240},
    "small": {"words": 8000, "side": 224, "patch": 16, "hidden": 256, "seen": 6, "said": 4, "heads": 4}
    | {"pictures": 80},
    "base": {"words": 30_520, "side": 384, "patch": 16, "hidden": 768, "seen": 12, "said": 12, "heads": 12}
    | {"pictures": 40},
}
"""Of BLIP: words, pixels a side of a picture and of a patch, width, layers that see and that say, heads; and how many
pictures are learnt."""

FLORENCE: dict[str, dict[str, Any]] = {
    "vision": {"projection_dim": 768},
    "text": {"d_model": 768, "encoder_layers": 6, "decoder_layers": 6, "encoder_ffn_dim": 3072}
    | {"decoder_ffn_dim": 3072, "encoder_attention_heads": 12, "decoder_attention_heads": 12, "vocab_size": 51_289}
    | {"max_position_embeddings": 1024},
    "images": {"side": 768, "places": 577},
}
"""The sizes of Florence-2-base, of its published configuration; the rest are the defaults of transformers."""


@dataclass(frozen=True)
class Work:
    """What all sides do."""

    annotator: str
    root: Path
    model: Path
    order: list[list[str]]
    """The pictures' keys, epoch by epoch."""
    batch: int
    """Pictures of an optimizer step."""
    padded: int
    """Tokens to which a text is padded by hand."""
    given: dict[str, Any]
    """More options of Cutline's."""
    device: str = "cpu"
    workers: int = 0

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return sum(map(len, self.order)) // self.batch

    def batches(self, size: int) -> Iterator[list[tuple[str, str]]]:
        """(key, caption) of so many pictures at once."""
        keys = [key for epoch in self.order for key in epoch]
        pairs = [(key, (self.root / key).with_suffix(".txt").read_text()) for key in keys]
        return (pairs[at : at + size] for at in range(0, len(pairs), size))


@dataclass
class Done:
    """What came of one side."""

    seconds: float
    """For all steps but the first."""
    processor: float
    """Seconds of the processors for them, a clock that others do not slow."""
    peak: float
    """Bytes."""
    loss: float
    phases: dict[str, float]
    """Seconds of what else a whole run does."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, action="append", help="of BLIP; tiny and small")
    parser.add_argument("-n", "--pictures", type=int, help="learnt twice; by default as many as take a while")
    parser.add_argument("--batch", type=int, default=8, help="pictures of an optimizer step")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side is timed")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch, on each side")
    parser.add_argument("--gpu", action="store_true", help="Florence-2-base's architecture, on a GPU")
    chosen = parser.parse_args()
    # As in engine_overhead.py: waiting threads are not to spin on a machine that has other things to do.
    os.environ.update(OMP_NUM_THREADS=str(chosen.threads), OMP_WAIT_POLICY="PASSIVE", TOKENIZERS_PARALLELISM="false")
    say_machine()
    with tempfile.TemporaryDirectory(prefix="cutline-training-") as temporary:
        root = Path(temporary)
        if chosen.gpu:
            finish(*compare_on_gpu(root, chosen.pictures or 512, chosen.batch, chosen.rounds))
        print(f"{chosen.batch} pictures a step, {EPOCHS} epochs, {chosen.threads} torch threads")
        met = []
        for size in chosen.size or ("tiny", "small"):
            count, words = chosen.pictures or SIZES[size]["pictures"], SIZES[size]["words"]
            dataset = draw(root / f"pictures-{size}", count, words)
            weights = in_a_process(save_blip, root / size, SIZES[size])
            print(f"\nBLIP of {weights / 1e6:.1f} million weights, {count} pictures", flush=True)
            settings = settings_of("blip", root / size, chosen.batch, **STEPS_ALONE)
            keys = order(dataset, settings)
            work = Work("blip", dataset.root, root / size, keys, chosen.batch, 77, STEPS_ALONE)
            met += compare(work, settings, size, chosen.rounds)
            whole(work)
        if not chosen.size:
            print("\nFlorence-2-base's architecture in bfloat16: not measured, for that is done with --gpu")
        finish(*met)


def draw(folder: Path, count: int, words: int) -> Dataset:
    """A dataset of JPEGs of 512 x 512 and captions: a third each of 5 to 15 words, of 16 to 40 and of 41 to 70."""
    draw_pictures(folder, count)
    chance = random.Random(0)
    for number, file in enumerate(sorted(folder.glob("??/*.jpg"))):
        length = chance.randint(*((5, 15), (16, 40), (41, 70))[number % 3])
        file.with_suffix(".txt").write_text(" ".join(f"w{chance.randrange(words)}" for _ in range(length)))
    from cutline.dataset import Dataset

    dataset = Dataset(folder)
    dataset.add(options.fill(registry.load("sources", "folder"), {"path": str(folder)}))
    return dataset


def settings_of(annotator: str, model: Path, batch: int, **given: Any) -> Captioner:
    """A preset's settings, changed so that all sides can do alike: nothing left to chance, and one rate."""
    from cutline.training.captioner import Captioner

    preset = toml_files.preset("training", f"{annotator}-lora")
    preset.pop("trains")
    alike: dict[str, Any] = {
        "dropout": 0.0,
        "scheduler": "constant",
        "learning_rate": RATE,
        "batch_size": batch,
        "epochs": EPOCHS,
    }
    alike |= {"log_every_n_steps": NOTED, "save_every_n_epochs": EPOCHS, "model": str(model)}
    return options.fill(Captioner, {**preset, **alike, **given})


def order(dataset: Dataset, settings: Captioner) -> list[list[str]]:
    """In which order Cutline will take the pictures; the others are to take them so, too."""
    from cutline.training import examples

    found = examples.gather(dataset, settings.find_recipe(dataset), (), seed=settings.seed)
    keys, size = found.keys.to_pylist(), settings.batch_size
    if len(keys) % size or EPOCHS * len(keys) // size % NOTED:
        sys.exit(f"{len(keys)} pictures: {EPOCHS} epochs of them are to be a multiple of {NOTED} steps of {size}")
    return [[keys[place] for place in found.order(epoch, step=size, batch=size)] for epoch in range(EPOCHS)]


def compare(work: Work, settings: Captioner, name: str, rounds: int) -> list[bool]:
    """Time all sides, in turn and in another order each time, see that they learn alike, and print the verdicts."""
    sides: dict[str, Callable[[], Done]] = {
        "by hand": lambda: in_a_process(by_hand, work, settings),
        "Trainer": lambda: in_a_process(by_trainer, work, settings),
        "cutline": lambda: in_a_process(by_cutline, work),
    }
    done: dict[str, list[Done]] = {side: [] for side in sides}
    for number in range(rounds):
        names = list(sides)[number % 3 :] + list(sides)[: number % 3]
        for side in names:
            done[side].append(sides[side]())
    pictures = (work.steps - 1) * work.batch
    for side, found in done.items():
        seconds = statistics.median(one.seconds for one in found)
        peak = statistics.median(one.peak for one in found)
        print(
            f"{side}: {pictures / seconds:.2f} pictures/s, {1000 * seconds / (work.steps - 1):.0f} ms a step, "
            f"peak {peak / 1e6:.0f} MB, mean loss {found[0].loss:.4f}",
            flush=True,
        )
    true = done["cutline"][0].loss
    for side, found in done.items():
        for one in found:
            if not abs(one.loss / true - 1) <= ALIKE:
                sys.exit(f"{side} has not learnt what cutline has: its mean loss is {one.loss:.4f}, not {true:.4f}")
    met = []
    for side, target in (("by hand", HAND_TARGET), ("Trainer", TRAINER_TARGET)):
        pairs = [(one.seconds, other.seconds) for one, other in zip(done[side], done["cutline"], strict=True)]
        ratio = median_ratio(pairs)
        spent = [(one.processor, other.processor) for one, other in zip(done[side], done["cutline"], strict=True)]
        note = f"{1 / ratio:.2f} times as many pictures per second; {spread(pairs)}"
        note += "" if work.workers else f"; {median_ratio(spent):.2f} in processor time"
        met.append(verdict(f"cutline / {side} ({name}), seconds per step", ratio, target, "times", note))
    return met


def whole(work: Work) -> None:
    """Print what a run adds to its steps, with the samples and the held-out split that the options begin with."""
    given = {name: value for name, value in work.given.items() if name not in STEPS_ALONE}
    found = in_a_process(by_cutline, replace(work, given={**given, "sample_every_n_epochs": EPOCHS}))
    told = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in found.phases.items())
    print(f"what a whole run takes beside its steps: {told}", flush=True)


def compare_on_gpu(root: Path, count: int, batch: int, rounds: int) -> list[bool]:
    """Florence-2-base's architecture in bfloat16, by hand at either length."""
    import torch

    if not torch.cuda.is_available():
        print("Florence-2-base's architecture in bfloat16: not measured, for there is no GPU here")
        return [True]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    return compare_florence2(root, "cuda", FLORENCE, count, batch, rounds)


def compare_florence2(
    root: Path, device: str, sizes: dict[str, dict[str, Any]], count: int, batch: int, rounds: int
) -> list[bool]:
    """The comparison itself, on any device and for any sizes of Florence-2."""
    dataset = draw(root / "pictures", count, sizes["text"]["vocab_size"] - 100)
    weights = in_a_process(save_florence2, root / "florence2", sizes)
    print(f"Florence-2 of {weights / 1e6:.1f} million weights, {count} pictures", flush=True)
    where = {"precision": "bfloat16"} if device == "cuda" else {"device": "cpu"}
    given = {**STEPS_ALONE, **where, "max_tokens": 76}
    settings = settings_of("florence2", root / "florence2", batch, **given)
    keys = order(dataset, settings)
    met = []
    for padded in (77, 1024):
        workers = 4 if device == "cuda" else 0  # as many as Cutline takes there
        work = Work("florence2", dataset.root, root / "florence2", keys, batch, padded, given, device, workers)
        met += compare(work, settings, f"Florence-2, by hand {padded} tokens", rounds)
    whole(work)
    return met


# -- the sides, each in a process of its own ----------------------------------------------------------------------


class Clock:
    """When the first step ended, and the last."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.at: dict[int | str, tuple[float, float]] = {}
        self.losses: list[float] = []

    def tell(self, step: int) -> None:
        """This step is done."""
        if step in (1, self.work.steps):
            self.note(step)

    def note(self, what: int | str) -> None:
        """It is now that this has happened."""
        if self.work.device == "cuda":
            import torch

            torch.cuda.synchronize()
        self.at[what] = time.perf_counter(), time.process_time()

    def between(self, first: int | str, last: int | str, clock: int = 0) -> float:
        """Seconds from the one to the other; with 1, those of the processors."""
        return self.at[last][clock] - self.at[first][clock]

    def done(self, last: int, phases: dict[str, float] | None = None) -> Done:
        """What came of it, after so many steps."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        if self.work.device == "cuda":
            import torch

            peak = torch.cuda.max_memory_allocated()
        found = self.between(1, last), self.between(1, last, 1)
        return Done(*found, peak, statistics.mean(self.losses), phases or {})


def by_cutline(work: Work) -> Done:
    """`Captioner.train`."""
    from cutline.dataset import Dataset

    clock = Clock(work)
    steps = 0

    def tell(event: dict[str, Any]) -> None:
        nonlocal steps
        if event["event"] == "ready":
            steps = event["steps"]
        if event["event"] == "metrics" and "loss" in event:
            clock.losses.append(event["loss"])
        if event["event"] == "step" and event["step"] in (1, steps):
            clock.note(event["step"])
        elif event["event"] in ("looking", "ready", "start", "saved"):
            clock.note(event["event"])

    clock.note("begin")
    name = f"run-{time.time_ns()}"  # a new run, as one that is finished would not be done again
    settings = settings_of(work.annotator, work.model, work.batch, name=name, **work.given)
    report = settings.train(Dataset(work.root), events=tell)
    clock.note("end")
    phases = {
        "libraries and model": clock.between("begin", "looking"),
        "looking at the pictures": clock.between("looking", "ready"),
        f"captions of {report.measured} held-out pictures before, and the first step": clock.between("ready", 1),
        "a sample, held-out loss and saving": clock.between(steps, "saved"),
        "captions and metrics after": clock.between("saved", "end"),
    }
    return clock.done(steps, phases)


def by_trainer(work: Work, settings: Captioner) -> Done:
    """transformers' Trainer, and what anyone would give it."""
    import torch
    from PIL import Image

    transformers: Any = import_module("transformers")
    from cutline.pictures import decode

    _quieten()
    parts = Parts(work, settings)

    def collate(rows: list[tuple[str, str]]) -> dict[str, Any]:
        pictures: list[Image.Image] = [
            decode((work.root / key).read_bytes(), at_least=parts.at_least) for key, _ in rows
        ]
        return parts.tensors(pictures, [text for _, text in rows], {"padding": "longest"})

    class InOrder(transformers.Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)

    class Tell(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.tell(state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                clock.losses.append(logs["loss"])

    clock = Clock(work)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = InOrder(
            model=parts.model,
            args=transformers.TrainingArguments(
                scratch,
                num_train_epochs=1,  # in which each picture comes twice
                per_device_train_batch_size=work.batch,
                learning_rate=RATE,
                lr_scheduler_type="constant",
                weight_decay=settings.weight_decay,
                bf16=work.device == "cuda",
                use_cpu=work.device == "cpu",
                dataloader_num_workers=work.workers,
                logging_steps=NOTED,
                save_strategy="no",
                report_to="none",
                remove_unused_columns=False,
                disable_tqdm=True,
            ),
            train_dataset=[row for rows in work.batches(1) for row in rows],
            data_collator=collate,
            callbacks=[Tell()],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return clock.done(work.steps)


def by_hand(work: Work, settings: Captioner) -> Done:
    """The seed's way: one picture at a time, its text padded to a fixed length, a step after so many."""
    import torch
    from PIL import Image

    _quieten()
    parts = Parts(work, settings)
    model = parts.model.to(work.device).train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=settings.weight_decay)
    clock = Clock(work)
    for step, rows in enumerate(work.batches(work.batch)):
        step_loss = 0.0
        for key, text in rows:
            with Image.open(work.root / key) as opened:
                picture = opened.convert("RGB")
            inputs = parts.tensors([picture], [text], {"padding": "max_length", "max_length": work.padded})
            inputs = {name: tensor.to(work.device) for name, tensor in inputs.items()}
            with torch.autocast(work.device, torch.bfloat16, enabled=work.device == "cuda"):
                loss = model(**inputs).loss / len(rows)
            loss.backward()
            step_loss += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.losses.append(step_loss)
        clock.tell(step + 1)
    return clock.done(work.steps)


class Parts:
    """A model with its adapter, and what makes tensors for it, without Cutline."""

    def __init__(self, work: Work, settings: Captioner) -> None:
        import torch

        transformers: Any = import_module("transformers")
        peft: Any = import_module("peft")
        self.annotator = work.annotator
        dtype = torch.bfloat16 if work.device == "cuda" else torch.float32
        if work.annotator == "blip":
            kind = transformers.BlipForConditionalGeneration
            pillow: Any = import_module("transformers.models.blip.image_processing_pil_blip")
            self.images = pillow.BlipImageProcessorPil.from_pretrained(work.model)
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(work.model)
            self.signs = ("[DEC]", "[SEP]")
            # Twice the side of the network's pictures, as Cutline opens them.
            self.at_least: int | None = 2 * self.images.size["height"]
        else:
            kind = transformers.Florence2ForConditionalGeneration
            self.processor = transformers.Florence2Processor.from_pretrained(work.model)
            self.tokenizer, self.signs, self.at_least = self.processor.tokenizer, ("<s>", "</s>"), None
        torch.manual_seed(0)
        model = kind.from_pretrained(work.model, dtype=dtype)
        adapter = peft.LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=list(settings.target_modules),
        )
        self.model = peft.get_peft_model(model, adapter)
        self.dtype = dtype

    def tensors(self, pictures: list[Any], texts: list[str], padding: dict[str, Any]) -> dict[str, Any]:
        """What the model takes for these, with its own labels: the text, and -100 where it is padded."""
        first, last = self.signs
        said = self.tokenizer(
            [f"{first} {text} {last}" for text in texts],
            add_special_tokens=False,
            return_token_type_ids=False,
            return_tensors="pt",
            **padding,
        )
        labels = said.input_ids.masked_fill(said.attention_mask == 0, -100)
        if self.annotator == "blip":
            pixels = self.images(pictures, return_tensors="pt")["pixel_values"]
            return {"pixel_values": pixels.to(self.dtype), **said, "labels": labels}
        asked = self.processor(text=["<DETAILED_CAPTION>"] * len(texts), images=pictures, return_tensors="pt")
        return {**asked, "pixel_values": asked["pixel_values"].to(self.dtype), "labels": labels}


def in_a_process(work: Any, *arguments: Any) -> Any:
    """Run a function in a fresh process, whose memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


# -- the models ---------------------------------------------------------------------------------------------------


def save_blip(folder: Path, size: dict[str, Any]) -> int:
    """Save a BLIP of these sizes with random weights. Returns how many weights."""
    import torch

    from cutline.demo.captioner import new_captioner

    transformers: Any = import_module("transformers")
    _quieten()
    torch.manual_seed(0)
    words = tuple(f"w{number}" for number in range(size["words"]))
    model, processor = new_captioner(words, side=size["side"])
    vision, text = model.config.vision_config, model.config.text_config
    for part in (vision, text):
        part.hidden_size, part.num_attention_heads = size["hidden"], size["heads"]
        part.intermediate_size = (2 if size["hidden"] == 128 else 4) * size["hidden"]
    vision.num_hidden_layers, text.num_hidden_layers = size["seen"], size["said"]
    vision.patch_size, text.encoder_hidden_size = size["patch"], size["hidden"]
    model = transformers.BlipForConditionalGeneration(model.config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return int(model.num_parameters())


def save_florence2(folder: Path, sizes: dict[str, dict[str, Any]]) -> int:
    """Save a Florence-2 of these sizes with random weights. Returns how many weights."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers

    transformers: Any = import_module("transformers")
    pillow: Any = import_module("transformers.models.clip.image_processing_pil_clip")
    _quieten()
    signs = ["<s>", "<pad>", "</s>", "<unk>", "<image>", *(f"<loc_{place}>" for place in range(4))]
    words = [*signs, *(f"w{number}" for number in range(sizes["text"]["vocab_size"] - len(signs)))]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, extra_special_tokens={"image_token": "<image>"}, **names
    )
    tokenizer.add_special_tokens({"additional_special_tokens": signs[5:]})
    side, places = sizes["images"]["side"], sizes["images"]["places"]
    images = pillow.CLIPImageProcessorPil(
        do_center_crop=False, size={"height": side, "width": side}, image_seq_length=places
    )
    transformers.Florence2Processor(images, tokenizer).save_pretrained(folder)
    numbers = {f"{sign}_token_id": number for number, sign in enumerate(("bos", "pad", "eos"))}
    begin = {"decoder_start_token_id": 2, "forced_bos_token_id": 0}
    torch.manual_seed(0)
    model = transformers.Florence2ForConditionalGeneration(
        transformers.Florence2Config(
            vision_config=transformers.Florence2VisionConfig(**sizes["vision"]),
            text_config=transformers.BartConfig(**sizes["text"], **numbers, **begin),
            image_token_id=4,
        )
    )
    model.save_pretrained(folder)
    return int(model.num_parameters())


def _quieten() -> None:
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("bitsandbytes").setLevel("ERROR")  # which PEFT loads
    theirs: Any = import_module("transformers.utils.logging")
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()


if __name__ == "__main__":
    main()
