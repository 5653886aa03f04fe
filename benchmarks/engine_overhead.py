"""What the engine costs: captioning by `annotate` against the bare loop that anyone would write.

The bare loop opens a picture, preprocesses it and asks the model, batch after batch in one process, and writes nothing.
`annotate` does that in a worker process, and streams the pictures that have no caption to it, decodes ahead, takes the
answers and publishes them. Both use the same captioner (BLIP's architecture with random weights, large enough that the
model takes most of the time, as real ones do), the same decoder, batches, settings and number of torch threads, each
in a fresh process; both are timed after the model is loaded: the bare loop from its first picture to its last caption,
`annotate` by `Report.seconds`, from the worker's being ready to the last row's being on disk. Their captions must be
equal. The bare loop must take half a minute at least. Pictures are JPEGs of 512 x 512, as those of `facts.py`.

    python benchmarks/engine_overhead.py              # three pairs: five minutes on two cores
    python benchmarks/engine_overhead.py -n 64 --pairs 1
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from cutline import options, registry
from cutline.dataset import Dataset
from cutline.engine.here import annotate
from cutline.engine.selection import Selection
from facts import draw_pictures
from pairs import finish, median_ratio, middle, processor_seconds, say_machine, spread, take_pairs, verdict

TARGET = 1.10
SHORTEST = 30.0
SETTINGS: dict[str, Any] = {"batch_size": 16, "beams": 3, "max_tokens": 20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--pictures", type=int, default=320)
    parser.add_argument("--pairs", type=int, default=3, help="how often each side is timed")
    parser.add_argument("--model", type=Path, help="a folder of another BLIP captioner")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch, on each side")
    chosen = parser.parse_args()
    # Each side's processes, which are yet to start, inherit this. Were waiting threads to spin, as is OpenMP's default,
    # a machine with anything else to do would measure that and nothing else: the same loop then takes up to six times
    # as long. The engine has its workers' threads sleep anyway.
    os.environ.update(OMP_NUM_THREADS=str(chosen.threads), OMP_WAIT_POLICY="PASSIVE")
    say_machine()
    with tempfile.TemporaryDirectory(prefix="cutline-engine-") as temporary:
        model = chosen.model or save_captioner(Path(temporary) / "captioner")
        pictures = Path(temporary) / "pictures"
        draw_pictures(pictures, chosen.pictures)
        compare(Dataset(pictures), model, chosen.pictures, chosen.pairs, chosen.threads)


def compare(dataset: Dataset, model: Path, count: int, pairs: int, threads: int) -> None:
    """Time both sides in interleaved pairs, see that they say the same, and print the verdict."""
    dataset.add(options.fill(registry.load("sources", "folder"), {"path": str(dataset.root)}))
    settings = options.fill(registry.load("annotators", "blip"), {"model": str(model), **SETTINGS})
    said: dict[str, list[dict[str, str]]] = {"bare": [], "annotate": []}
    whole: list[float] = []
    spent: dict[str, list[float]] = {"bare": [], "annotate": []}

    def bare() -> float:
        before = processor_seconds()
        seconds, captions = in_a_process(bare_loop, dataset.root, model)
        spent["bare"].append(processor_seconds() - before)
        said["bare"].append(captions)
        return float(seconds)

    def by_annotate() -> float:
        layer = f"captions/blip-{len(whole)}"
        start, before = time.perf_counter(), processor_seconds()
        report = annotate(Selection(dataset, settings, layer))
        whole.append(time.perf_counter() - start)
        spent["annotate"].append(processor_seconds() - before)
        said["annotate"].append(dict(dataset.sql(f'select key, raw from "{layer}" where error is null').fetchall()))
        return report.seconds

    found = take_pairs(pairs, bare, by_annotate)
    first = said["bare"][0]
    if len(first) != count or any(captions != first for side in said.values() for captions in side):
        sys.exit("the two sides do not say the same of the same pictures")
    print(f"{count} pictures, {len(set(first.values()))} different captions, equal in all {2 * pairs} runs")
    bare_seconds = middle(found, 0)
    print(f"bare loop: {bare_seconds:.1f} s, {count / bare_seconds:.1f} pictures/s with {threads} torch threads")
    print(
        f"annotate: {middle(found, 1):.1f} s; {statistics.median(whole):.1f} s with its start and the model's loading"
    )
    if bare_seconds < SHORTEST:
        sys.exit(f"the bare loop is to take {SHORTEST:.0f} s at least: give more pictures with -n")
    processor = median_ratio(list(zip(spent["bare"], spent["annotate"], strict=True)))
    note = f"{spread(found)}; {processor:.2f} in processor time, with the loading"
    finish(verdict("annotate / bare loop", median_ratio(found), TARGET, "times", note))


def save_captioner(folder: Path) -> Path:
    """Save the demo's kind of captioner, grown to 28 million weights that are random, for pictures of 224 pixels."""
    import torch

    from cutline.demo.captioner import new_captioner
    from cutline.demo.scenes import WORDS

    transformers: Any = import_module("transformers")
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    model, processor = new_captioner(WORDS, side=224, wide=0.3)
    vision, text = model.config.vision_config, model.config.text_config
    for part in (vision, text):
        part.hidden_size, part.intermediate_size, part.num_attention_heads = 384, 1536, 6
    vision.num_hidden_layers, text.num_hidden_layers = 8, 6
    vision.patch_size, text.encoder_hidden_size = 16, 384
    grown = transformers.BlipForConditionalGeneration(model.config)
    grown.vision_model.embeddings.position_embedding.data.normal_(0, 0.5)
    grown.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def bare_loop(root: Path, folder: Path) -> tuple[float, dict[str, str]]:
    """What anyone would write: seconds after loading, and file -> caption."""
    import torch

    from cutline.pictures import decode

    transformers: Any = import_module("transformers")
    pillow: Any = import_module("transformers.models.blip.image_processing_pil_blip")
    transformers.logging.disable_progress_bar()
    model = transformers.BlipForConditionalGeneration.from_pretrained(folder).eval()
    images = pillow.BlipImageProcessorPil.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = model.config.text_config
    size, side = SETTINGS["batch_size"], 2 * max(images.size["height"], images.size["width"])
    files = sorted(file.relative_to(root).as_posix() for file in root.glob("??/*.jpg"))
    captions: dict[str, str] = {}
    start = time.perf_counter()
    for first in range(0, len(files), size):
        names = files[first : first + size]
        opened = [decode((root / name).read_bytes(), at_least=side) for name in names]
        pixels = images(opened, return_tensors="pt")["pixel_values"]  # (B, 3, S, S)
        begin = torch.tensor([[text.bos_token_id, text.sep_token_id]] * len(names))
        with torch.inference_mode():
            tokens = model.generate(
                pixel_values=pixels,
                input_ids=begin,
                attention_mask=torch.ones_like(begin),
                do_sample=False,
                num_beams=SETTINGS["beams"],
                max_new_tokens=SETTINGS["max_tokens"],
            )
        captions.update(zip(names, tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True))
    return time.perf_counter() - start, captions


def in_a_process(work: Any, *arguments: Any) -> Any:
    """Run a function in a fresh process, as the engine's worker is one."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


if __name__ == "__main__":
    main()
