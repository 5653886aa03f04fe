"""What was called otherwise elsewhere: names of options in the scripts that people come from, and what to type here.

The scripts are caption-train's (compile_captions.py, train_blip_network.py, train_florence_lora.py, inference.py,
inference_florence.py) and, for training, kohya's and those of transformers and accelerate. Such a name is refused, as a
flag (`--lr 1e-4`) and as an option (`-o lr=1e-4`), with the words for it here; it is never taken and ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import typer.core

from cutline.options import OptionError, UnknownOption

_DATASET = "the dataset is said first: cutline add FOLDER, then cutline {verb} FOLDER …"
_SIDECARS = "captions go to a layer; files of them: cutline export DATASET sidecar OUT"

_SAME_IN_TRAINING = (
    *("rank", "alpha", "dropout", "rslora", "dora", "target_modules", "learning_rate", "weight_decay", "batch_size"),
    *("gradient_accumulation_steps", "epochs", "max_steps", "activation_checkpointing", "quantize", "precision"),
    *("torch_compile", "attention", "seed", "workers", "device", "validation", "scheduler", "optimizer"),
    *("max_grad_norm", "lora_plus_ratio", "warmup_steps", "optimizer_rank", "accumulation_rank", "log_with", "name"),
    *("sample_every_n_epochs", "sample_every_n_steps", "save_every_n_epochs", "save_every_n_steps", "keep"),
    *("log_every_n_steps", "model", "revision", "prompt", "recipe", "max_tokens", "strict", "deepspeed", "fsdp"),
)
_SAME_IN_CAPTIONING = (
    *("beams", "seed", "batch_size", "device", "quantize", "model", "adapter", "prompt", "dtype", "revision"),
    *("temperature", "top_p", "top_k", "max_tokens", "attention", "threads"),
)

_TRAIN = {name: f"-o {name}=…" for name in _SAME_IN_TRAINING} | {
    # caption-train
    "dataset_dir": _DATASET.format(verb="train"),
    "dataset": _DATASET.format(verb="train"),
    "output_dir": "-o name=RUN: a run is the folder .cutline/runs/RUN of the dataset",
    "model_id": "-o model=…",
    "target_modules": "-o target_modules=q_proj,v_proj, with commas",
    "rslora": "-o rslora=true",
    "activation_checkpointing": "-o activation_checkpointing=true",
    "ac": "-o activation_checkpointing=true",
    "gradient_checkpointing": "-o activation_checkpointing=true",
    "quantize": "-o quantize=nf4",
    "optimizer_name": "-o optimizer=…",
    "accumulation_compression": "-o accumulation_rank=RANK, in full fine-tuning with -o optimizer=flora",
    "init_lora_weights": "-o init=…",
    "max_length": "-o max_tokens=…",
    "num_workers": "-o workers=…",
    "shuffle_captions": "a recipe shuffles: -o recipe=…, as in docs/recipes.md",
    "frozen_parts": "a recipe keeps parts in front: -o recipe=…, as in docs/recipes.md",
    "caption_dropout": "a recipe drops parts: -o recipe=…, as in docs/recipes.md",
    "optimizer_args": "each is an option of its own, such as -o weight_decay=…",
    "config": "a preset: cutline train DATASET FILE.toml",
    # kohya's scripts
    "train_data_dir": _DATASET.format(verb="train"),
    "output_name": "-o name=…",
    "pretrained_model_name_or_path": "-o model=…",
    "network_dim": "-o rank=…",
    "network_alpha": "-o alpha=…",
    "network_dropout": "-o dropout=…",
    "optimizer_type": "-o optimizer=…",
    "lr_scheduler": "-o scheduler=…",
    "lr_warmup_steps": "-o warmup_steps=…",
    "max_train_steps": "-o max_steps=…",
    "max_train_epochs": "-o epochs=…",
    "train_batch_size": "-o batch_size=…",
    "mixed_precision": "-o precision=…",
    "max_data_loader_n_workers": "-o workers=…",
    "save_every_n_train_steps": "-o save_every_n_steps=…",
    "loraplus_lr_ratio": "-o lora_plus_ratio=…",
    "xformers": "-o attention=sdpa",
    "sdpa": "-o attention=sdpa",
    "dynamo_backend": "-o torch_compile=…",
    # transformers and accelerate
    "lr": "-o learning_rate=…",
    "num_train_epochs": "-o epochs=…",
    "per_device_train_batch_size": "-o batch_size=…",
    "lr_scheduler_type": "-o scheduler=…",
    "optim": "-o optimizer=…",
    "bf16": "-o precision=bfloat16",
    "fp16": "-o precision=float16",
    "report_to": "-o log_with=…",
    "logging_steps": "-o log_every_n_steps=…",
    "save_steps": "-o save_every_n_steps=…",
    "save_total_limit": "-o keep=…",
    "gradient_clipping": "-o max_grad_norm=…",
    "lora_r": "-o rank=…",
    "lora_alpha": "-o alpha=…",
    "lora_dropout": "-o dropout=…",
    "use_dora": "-o dora=true",
    "use_rslora": "-o rslora=true",
    "attn_implementation": "-o attention=…",
    "zero_stage": "-o deepspeed=FILE, with the stage in it",
    "offload_optimizer_device": "-o deepspeed=FILE, with the device in it",
    "offload_param_device": "-o deepspeed=FILE, with the device in it",
    "mem_eff_attn": "-o attention=sdpa",
    "use_8bit_adam": "-o optimizer=adamw_8bit",
    "full_bf16": "-o precision=bfloat16: weights below an adapter are then stored so",
    "full_fp16": "-o precision=float16: weights below an adapter are then stored so",
    "fp8_base": "-o quantize=int8",
    "resume_from_checkpoint": "nothing: the same command goes on where the run was",
    "output_folder": "-o name=…",
}

_ANNOTATE = {name: f"-o {name}=…" for name in _SAME_IN_CAPTIONING} | {
    "base_model": "-o model=…",
    "model_id": "-o model=…",
    "model_path": "-o model=…",
    "peft_model": "-o adapter=…",
    "images": _DATASET.format(verb="annotate"),
    "input_path": _DATASET.format(verb="annotate"),
    "output_path": _SIDECARS,
    "save_captions": _SIDECARS,
    "overwrite": _SIDECARS + " -o mode=overwrite",
    "append": _SIDECARS + " -o mode=append",
    "caption_extension": _SIDECARS + " -o extension=…",
    "max_token_length": "-o max_tokens=…",
    "max_length": "-o max_tokens=…",
    "max_new_tokens": "-o max_tokens=…",
    "num_beams": "-o beams=…",
    "do_sample": "-o sample=true",
    "task": "-o prompt=florence2-detailed, or -caption, or -more-detailed",
    "recursive": "nothing: cutline add reads folders within the folder",
    "attn_implementation": "-o attention=…",
}

_ADD = {
    "dataset_dir": "the folder is said first: cutline add FOLDER",
    "images": "the folder is said first: cutline add FOLDER",
    "output_dir": "metadata.jsonl is an export: cutline export DATASET metadata_jsonl OUT",
    "recursive": "nothing: folders within the folder are read",
    "caption_extension": "nothing: .txt and .caption beside the pictures are read",
}

_EXPORT = {
    "dataset_dir": "the dataset is said first: cutline export DATASET FORMAT OUT",
    "output_dir": "the folder is said third: cutline export DATASET FORMAT OUT",
    "save_captions": "cutline export DATASET sidecar OUT",
    "overwrite": "-o mode=overwrite",
    "append": "-o mode=append",
    "caption_extension": "-o extension=…",
    "shuffle_captions": "a recipe shuffles: --recipe FILE, as in docs/recipes.md",
    "frozen_parts": "a recipe keeps parts in front: --recipe FILE, as in docs/recipes.md",
    "caption_dropout": "a recipe drops parts: --recipe FILE, as in docs/recipes.md",
}

HINTS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "annotate": MappingProxyType(_ANNOTATE),
        "train": MappingProxyType(_TRAIN),
        "export": MappingProxyType(_EXPORT),
        "add": MappingProxyType(_ADD),
    }
)
"""By verb, what to type here for a name; words beyond an option say what else to do."""

OPTION = re.compile(r"-o (\w+)=")


def hint(verb: str, name: str) -> str | None:
    """What to type for this option's name at this verb, or at the verb that it belongs to; None where nobody knows."""
    name = name.partition("=")[0].lstrip("-").replace("-", "_")
    if verb not in HINTS:
        return None
    if name in HINTS[verb]:
        return HINTS[verb][name]
    for other, known in HINTS.items():
        if name in known:
            said = known[name]
            return f"at `cutline {other}`, {said}" if OPTION.match(said) else said
    return None


class Verb(typer.core.TyperCommand):
    """A command that knows former names of options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse an unknown flag as any command does, with a hint where there is one."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # of a class that belongs to click, or to typer, which may bring a click of its own
            if type(error).__name__ != "NoSuchOption":
                raise
            flag = str(getattr(error, "option_name", ""))
            if not flag.startswith("--"):  # of -ac, only the letter that is not known is named
                flag = next((word.partition("=")[0] for word in given if word.startswith(flag)), flag)
            if (said := hint(ctx.info_name, flag)) is None:
                raise
            raise OptionError(f"cutline {ctx.info_name} has no {flag}. Here: {said}") from None

    def invoke(self, ctx: Any) -> Any:
        """Run it. A plug-in's unknown option is refused with a hint where there is one."""
        try:
            return super().invoke(ctx)
        except UnknownOption as error:
            said = hint(ctx.info_name, error.named)
            meant = OPTION.match(said or "")
            if said is None or (meant and meant[1] not in error.known) or f"-o {error.named}=" in said:
                raise  # with the list of all that there are
            raise OptionError(f"{error.plugin} has no option '{error.named}'. Here: {said}") from None
