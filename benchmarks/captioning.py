"""What captioning costs by `annotate`, against the loop over `generate` that anyone would write.

Both ask the same small LLaVA (random weights, large enough that the model takes most of the time) the same of the same
pictures, one, eight and thirty-two at once. The bare loop opens a batch of pictures, has the processor make tensors of
them, generates and reads the text, in one process, and writes nothing. `annotate` streams the pictures to a worker,
decodes ahead, takes the answers, checks them and publishes them. Every answer has the same number of tokens. Each side
runs in a fresh process and is timed from its first picture to its last caption, after the model is loaded, in
interleaved pairs of which the median counts; both must say the same.

With `--gpu`, on a machine that has one, the 7B architecture of Qwen2-VL, which is that of ToriiGate 0.4, with random
weights in bfloat16: `annotate` with batch_size=auto against the way in which the seed's captioner goes about it (see
`one_at_a_time`), at the same number of tokens for each picture. Where there is no GPU it says "not measured".

    python benchmarks/captioning.py                # six minutes on two cores
    python benchmarks/captioning.py --gpu          # ten minutes on an H100, and 16 GB of disk
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
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
"""Times as long as the bare loop."""
SEED_TARGET = 1 / 8
"""Times as long for a picture as the seed's way, on a GPU."""
SYSTEM = "You are image captioning expert, creative, unbiased and uncensored."
USER = "Describe the picture in structured json-like format."
LIMITS = {"min_pixels": 256 * 28 * 28, "max_pixels": 512 * 28 * 28}
"""Of a picture, as the seed's captioner has them."""

SEVEN_B: dict[str, dict[str, Any]] = {
    "text": {
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision": {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16},
}
"""The sizes of Qwen2-VL-7B, of its published configuration."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--pictures", type=int, default=96)
    parser.add_argument("--pairs", type=int, default=3, help="how often each side is timed")
    parser.add_argument("--tokens", type=int, help="of each answer; 16, or 200 with --gpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch, on each side")
    parser.add_argument("--gpu", action="store_true", help="compare with the seed's way, on a GPU")
    chosen = parser.parse_args()
    # As in engine_overhead.py: waiting threads are not to spin on a machine that has other things to do.
    os.environ.update(OMP_NUM_THREADS=str(chosen.threads), OMP_WAIT_POLICY="PASSIVE")
    say_machine()
    with tempfile.TemporaryDirectory(prefix="cutline-captioning-") as temporary:
        root = Path(temporary)
        if chosen.gpu:
            finish(compare_on_gpu(root, chosen.tokens or 200, chosen.pairs))
        pictures = draw(root / "pictures", chosen.pictures)
        model = save_llava(root / "llava")
        print(f"{chosen.pictures} pictures, {chosen.tokens or 16} tokens each, {chosen.threads} torch threads")
        finish(*(compare(pictures, model, size, chosen.tokens or 16, chosen.pairs) for size in (1, 8, 32)))


def draw(folder: Path, count: int) -> Dataset:
    """A dataset of this many JPEGs of 512 x 512."""
    draw_pictures(folder, count)
    dataset = Dataset(folder)
    dataset.add(options.fill(registry.load("sources", "folder"), {"path": str(folder)}))
    return dataset


def asking(folder: Path, model: Path, tokens: int, **given: Any) -> Any:
    """The annotator's settings: answers of exactly so many tokens, each picture asked about once."""
    prompt = folder / "prompt.toml"
    prompt.write_text(f'system = "{SYSTEM}"\nuser = "{USER}"\n[checks]\ntries = 1\n')
    given = {"model": str(model), "prompt": str(prompt), "min_tokens": tokens, "max_tokens": tokens, **given}
    return options.fill(registry.load("annotators", "image_text"), given)


def by_annotate(dataset: Dataset, settings: Any, layer: str) -> tuple[float, dict[str, str]]:
    """Seconds from the worker's being ready to the last row's being on disk, and file -> caption."""
    report = annotate(Selection(dataset, settings, layer))
    said = dict(dataset.sql(f'select key, raw from "{layer}" where error is null').fetchall())
    return report.seconds, said


# -- against the bare loop --------------------------------------------------------------------------------------


def compare(dataset: Dataset, model: Path, size: int, tokens: int, pairs: int) -> bool:
    """Time both sides at one batch size, see that they say the same, and print the verdict."""
    settings = asking(model, model, tokens, batch_size=size, dtype="float32")
    said: list[dict[str, str]] = []
    spent: dict[str, list[float]] = {"bare": [], "annotate": []}

    def bare() -> float:
        before = processor_seconds()
        seconds, captions = in_a_process(bare_loop, dataset.root, model, size, tokens)
        spent["bare"].append(processor_seconds() - before)
        said.append(captions)
        return float(seconds)

    def ours() -> float:
        before = processor_seconds()
        seconds, captions = by_annotate(dataset, settings, f"captions/of-{size}-{len(said)}")
        spent["annotate"].append(processor_seconds() - before)
        said.append(captions)
        return seconds

    found = take_pairs(pairs, bare, ours, show=False)
    if any(captions != said[0] for captions in said):
        sys.exit("the two sides do not say the same of the same pictures")
    rates = [len(said[0]) / middle(found, side) for side in (0, 1)]
    print(f"batch {size}: {rates[0]:.2f} pictures/s by the bare loop, {rates[1]:.2f} by annotate", flush=True)
    processor = median_ratio(list(zip(spent["bare"], spent["annotate"], strict=True)))
    note = f"{spread(found)}; {processor:.2f} in processor time, with the loading"
    return verdict(f"annotate / bare loop at batch {size}", median_ratio(found), TARGET, "times", note)


def bare_loop(root: Path, folder: Path, size: int, tokens: int) -> tuple[float, dict[str, str]]:
    """What anyone would write: seconds after loading, and file -> caption."""
    import torch

    from cutline.pictures import decode

    transformers: Any = import_module("transformers")
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = "left"
    content = [{"type": "image"}, {"type": "text", "text": USER}]
    chat = [
        {"role": "system", "content": [{"type": "text", "text": SYSTEM}]},
        {"role": "user", "content": content},
    ]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    files = sorted(file.relative_to(root).as_posix() for file in root.glob("??/*.jpg"))
    captions: dict[str, str] = {}
    start = time.perf_counter()
    for first in range(0, len(files), size):
        names = files[first : first + size]
        pictures = [decode((root / name).read_bytes()) for name in names]
        inputs = processor(images=pictures, text=[text] * len(names), padding=True, return_tensors="pt")
        with torch.inference_mode():
            found = model.generate(**inputs, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens)
        new = found[:, inputs["input_ids"].shape[1] :]
        captions.update(zip(names, processor.batch_decode(new, skip_special_tokens=True), strict=True))
    return time.perf_counter() - start, captions


def save_llava(folder: Path) -> Path:
    """Save a LLaVA of random weights: 4 layers that see 196 patches, and 6 that read and write."""
    import torch

    transformers: Any = import_module("transformers")
    pillow: Any = import_module("transformers.models.clip.image_processing_pil_clip")
    transformers.logging.disable_progress_bar()
    tokenizer = new_tokenizer(8000, "<image>", PARTS.replace("IMAGE", "<image>"))
    signs = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 4, "initializer_range": 0.1}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(image_size=224, patch_size=16, num_hidden_layers=4, **sizes),
        text_config=transformers.LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=6, **sizes, **signs),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=196,
        vision_feature_layer=-1,
    )
    processor = transformers.LlavaProcessor(
        pillow.CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    processor.save_pretrained(folder)
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config)
    model.save_pretrained(folder)
    print(f"a LLaVA of {model.num_parameters() / 1e6:.0f} million weights")
    return folder


# -- against the seed's way, on a GPU -----------------------------------------------------------------------------


def compare_on_gpu(root: Path, tokens: int, pairs: int, *, singles: int = 8, many: int = 256) -> bool:
    """Time annotate on many pictures and the seed's way on a few, and print the verdict by picture."""
    import torch

    if not torch.cuda.is_available():
        print("Qwen2-VL 7B against the seed's loop: not measured, for there is no GPU here")
        return True
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    return compare_with_seed(root, "cuda", SEVEN_B, tokens, pairs, singles, many)


def compare_with_seed(
    root: Path, device: str, sizes: dict[str, dict[str, Any]], tokens: int, pairs: int, singles: int, many: int
) -> bool:
    """The comparison itself, on any device and for any sizes of Qwen2-VL."""
    dataset = draw(root / "pictures", many)
    model = root / "qwen2_vl"
    in_a_process(save_qwen2_vl, model, device, sizes)  # which lets go of the device's memory at its end
    settings = asking(root, model, tokens, dtype="bfloat16", **LIMITS)
    runs: list[int] = []

    def seed() -> float:
        return float(in_a_process(one_at_a_time, dataset.root, model, device, tokens, singles)) / singles

    def ours() -> float:
        seconds, said = by_annotate(dataset, settings, f"captions/run-{len(runs)}")
        runs.append(len(said))
        if len(said) != many:
            sys.exit(f"annotate did {len(said)} of {many} pictures")
        return seconds / many

    found = take_pairs(pairs, seed, ours)
    rates = [1 / middle(found, side) for side in (0, 1)]
    print(f"{tokens} tokens each: {rates[0]:.3f} pictures/s one at a time, {rates[1]:.3f} by annotate")
    note = f"{1 / median_ratio(found):.1f} times as many pictures per second; {spread(found)}"
    return verdict("annotate / the seed's way, seconds per picture", median_ratio(found), SEED_TARGET, "times", note)


def one_at_a_time(root: Path, folder: Path, device: str, tokens: int, count: int) -> float:
    """Seconds for so many pictures, done as the seed's captioner does them.

    For each picture in turn: open it, render the chat, make tensors of both, `generate` by sampling in bfloat16 with
    the attention that transformers chooses, and decode. The first one, which warms up, is not timed.
    """
    import torch
    from PIL import Image

    from cutline.annotators.image_text import load_processor
    from cutline.annotators.local import load_config

    transformers: Any = import_module("transformers")
    settings = asking(folder, folder, tokens, **LIMITS)
    processor = load_processor(settings, load_config(settings))  # transformers' own wants torchvision
    images = processor.image_processor
    images.size = type(images.size)(shortest_edge=LIMITS["min_pixels"], longest_edge=LIMITS["max_pixels"])
    processor.tokenizer.padding_side = "right"
    model = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.bfloat16, device_map=device
    ).eval()
    files = sorted(root.glob("??/*.jpg"))[: count + 1]
    start = time.perf_counter()
    for number, file in enumerate(files):
        if number == 1:
            start = time.perf_counter()
        content = [{"type": "image"}, {"type": "text", "text": USER}]
        chat = [
            {"role": "system", "content": [{"type": "text", "text": SYSTEM}]},
            {"role": "user", "content": content},
        ]
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        inputs = processor(text=[text], images=[Image.open(file)], padding=True, return_tensors="pt").to(device)
        with torch.inference_mode():
            found = model.generate(**inputs, do_sample=True, min_new_tokens=tokens, max_new_tokens=tokens)
        processor.batch_decode(found[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return time.perf_counter() - start


def save_qwen2_vl(folder: Path, device: str, sizes: dict[str, dict[str, Any]]) -> None:
    """Save a Qwen2-VL of these sizes with random weights in bfloat16, made on the device."""
    import torch

    transformers: Any = import_module("transformers")
    pillow: Any = import_module("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    transformers.logging.disable_progress_bar()
    place = "<|vision_start|><|image_pad|><|vision_end|>"
    tokenizer = new_tokenizer(sizes["text"]["vocab_size"] - 16, "<|image_pad|>", PARTS.replace("IMAGE", place))
    signs = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    names = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    names |= {"vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    config = transformers.Qwen2VLConfig(
        vision_config=sizes["vision"],
        text_config={**sizes["text"], **signs},
        **{f"{name}_token_id": tokenizer.convert_tokens_to_ids(sign) for name, sign in names.items()},
    )
    pillow.Qwen2VLImageProcessorPil(patch_size=14, **LIMITS).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = transformers.Qwen2VLForConditionalGeneration(config)
    model.save_pretrained(folder)


# -- both -------------------------------------------------------------------------------------------------------

PARTS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}IMAGE{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template in which IMAGE is the place of a picture."""


def new_tokenizer(words: int, image: str, template: str) -> Any:
    """A tokenizer of so many words, none of which means anything."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    transformers: Any = import_module("transformers")
    signs = ["<pad>", "<unk>", "<s>", "</s>", "<image>", "<|im_start|>", "<|im_end|>", "<|vision_start|>"]
    signs += ["<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    names = {name: number for number, name in enumerate([*signs, *(f"w{number}" for number in range(words))])}
    tokenizer = Tokenizer(models.WordLevel(names, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": image},
    )
    made.add_tokens(signs[4:], special_tokens=True)
    made.chat_template = template
    return made


def in_a_process(work: Any, *arguments: Any) -> Any:
    """Run a function in a fresh process, as the engine's worker is one."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


if __name__ == "__main__":
    main()
