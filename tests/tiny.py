"""Tiny real models with random weights, made in a moment: what a test loads where a user would load a large one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cutline.demo.captioner import new_captioner
from cutline.demo.scenes import WORDS


def save_blip(folder: Path, *, seed: int = 0, end: float = 0.0) -> Path:
    """Save a random BLIP captioner that says different things of different pictures, and its processor.

    `end` is added to the logit of the end token: +100 makes it say nothing, -100 makes it never stop.
    """
    model, processor = _random(seed)
    model.text_decoder.cls.predictions.bias.data[model.config.text_config.sep_token_id] += end
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_blip_adapter(folder: Path, base: Path, *, seed: int = 1) -> Path:
    """Save a random LoRA adapter, strong enough to be seen, for the model that `save_blip` left at `base`."""
    from peft import LoraConfig, get_peft_model
    from transformers import BlipForConditionalGeneration

    torch.manual_seed(seed)
    model = BlipForConditionalGeneration.from_pretrained(base)
    config = LoraConfig(r=4, lora_alpha=32, target_modules=["query", "value", "qkv"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(str(folder))
    return folder


def _random(seed: int) -> tuple[Any, Any]:
    torch.manual_seed(seed)
    return new_captioner(WORDS, wide=0.4)
