"""A BLIP captioner of half a million weights, trained from nothing in about a minute on one processor core.

It is an ordinary BLIP in everything but size, saved in transformers' format: `Blip(model=folder)` loads it like any
other. Three things let so small a network learn so fast: weights that start wide (0.08, where BLIP's vision default
is 1e-10), position embeddings that start wider still, and 48-pixel pictures in 8-pixel patches.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from cutline.demo.scenes import WORDS, scenes
from cutline.options import CutlineError

SIDE = 48
"""Pixels a side, as the network sees a picture."""

Progress = Callable[[int, int, float], None]
"""Told the step, the number of steps and the loss."""


def train_captioner(
    out: Path,
    *,
    samples: int = 16_000,
    steps: int = 800,
    seed: int = 0,
    threads: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Draw `samples` scenes in memory, train a captioner on them by transformers' Trainer, and save it as folder `out`.

    Captions that `scenes` holds out are left out. One thread is the default: on a busy machine, two are slower.

    Raises:
        CutlineError: torch and transformers are not installed.
    """
    try:
        import torch

        transformers: Any = import_module("transformers")
        import_module("accelerate")  # for the Trainer
    except ImportError as error:
        raise CutlineError(f"the demo trains a model ({error}): pip install 'cutline[models]'") from None

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    transformers.set_seed(seed)
    model, processor = new_captioner(WORDS)
    pictures, words = _draw(processor, samples, seed)

    class Tell(transformers.TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if progress and logs and "loss" in logs:
                progress(state.global_step, steps, logs["loss"])

    def collate(rows: list[int]) -> dict[str, torch.Tensor]:
        tokens = words[rows]  # (B, L), [DEC] … [SEP], then [PAD]
        padding = tokens == processor.tokenizer.pad_token_id
        return {
            "pixel_values": _normalise(pictures[rows], processor.image_processor),  # (B, 3, S, S)
            "input_ids": tokens,
            "attention_mask": (~padding).long(),
            "labels": tokens.masked_fill(padding, -100),  # BLIP does not leave padding out by itself
        }

    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            trainer = transformers.Trainer(
                model=model,
                args=transformers.TrainingArguments(
                    scratch,
                    max_steps=steps,
                    per_device_train_batch_size=64,
                    learning_rate=1.5e-3,
                    lr_scheduler_type="cosine",
                    warmup_steps=50,
                    weight_decay=0.01,
                    adam_beta2=0.98,
                    bf16=_fast_bfloat16(),
                    use_cpu=True,
                    seed=seed,
                    logging_steps=10,
                    save_strategy="no",
                    report_to="none",
                    remove_unused_columns=False,
                    disable_tqdm=True,
                ),
                train_dataset=range(samples),
                data_collator=collate,
                callbacks=[Tell()],
            )
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()
    finally:
        torch.set_num_threads(threads_before)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        whole = Path(scratch) / "captioner"
        model.save_pretrained(whole)
        processor.save_pretrained(whole)
        whole.rename(out)  # all of it appears at once, or nothing
    return out


def new_captioner(words: tuple[str, ...], *, side: int = SIDE, wide: float = 0.08) -> tuple[Any, Any]:
    """A BLIP with random weights that knows `words`, and its processor, for pictures of `side` pixels."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    transformers: Any = import_module("transformers")
    pillow: Any = import_module("transformers.models.blip.image_processing_pil_blip")  # needs no torchvision

    special = ("[PAD]", "[UNK]", "[DEC]", "[SEP]")
    vocabulary = {word: number for number, word in enumerate((*special, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    processor = transformers.BlipProcessor(
        pillow.BlipImageProcessorPil(size={"height": side, "width": side}),
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="[PAD]",
            unk_token="[UNK]",
            bos_token="[DEC]",
            sep_token="[SEP]",
        ),
    )
    text = transformers.BlipTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=128,
        encoder_hidden_size=128,
        intermediate_size=256,
        projection_dim=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=96,
        initializer_range=wide,
        pad_token_id=vocabulary["[PAD]"],
        bos_token_id=vocabulary["[DEC]"],
        eos_token_id=vocabulary["[SEP]"],
        sep_token_id=vocabulary["[SEP]"],
    )
    vision = transformers.BlipVisionConfig(
        image_size=side,
        patch_size=8,
        hidden_size=128,
        intermediate_size=256,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=wide,
    )
    config = transformers.BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), initializer_range=wide)
    model = transformers.BlipForConditionalGeneration(config)
    model.vision_model.embeddings.position_embedding.data.normal_(0, 0.5)
    return model, processor


def _draw(processor: Any, samples: int, seed: int) -> tuple[Any, Any]:
    """Scenes as the network meets them: uint8 pictures (N, S, S, 3), made small as the processor would, and tokens."""
    import numpy as np
    import torch
    from PIL import Image

    pictures = np.empty((samples, SIDE, SIDE, 3), np.uint8)
    captions = []
    known = (scene for scene in scenes(f"training {seed}") if not scene.held_out)
    for number, scene in enumerate(islice(known, samples)):
        pictures[number] = np.asarray(scene.draw().resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        captions.append(f"[DEC] {scene.caption} [SEP]")
    tokens = processor.tokenizer(captions, padding=True, return_tensors="pt").input_ids
    return torch.from_numpy(pictures), tokens


def _normalise(pictures: Any, image_processor: Any) -> Any:
    """(B, S, S, 3) in 0 to 255 becomes (B, 3, S, S) about 0, by the processor's mean and deviation."""
    import torch

    mean, deviation = torch.tensor(image_processor.image_mean), torch.tensor(image_processor.image_std)
    return ((pictures / 255 - mean) / deviation).permute(0, 3, 1, 2)


def _fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware; it halves the time."""
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
