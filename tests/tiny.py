"""Tiny real models with random weights, made in a moment: what a test loads where a user would load a large one."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from cutline.demo.captioner import new_captioner
from cutline.demo.scenes import OTHER_NAMES
from cutline.demo.scenes import WORDS as ALL_WORDS

WORDS = tuple(word for word in ALL_WORDS if word not in OTHER_NAMES.values())


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
    return save_adapter(folder, base, "BlipForConditionalGeneration", ["query", "value", "qkv"], seed=seed)


def save_adapter(folder: Path, base: Path, kind: str, modules: list[str], *, seed: int = 1) -> Path:
    """Save a random LoRA adapter on these modules of the model at `base`, which transformers' class `kind` loads."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = getattr(import_module("transformers"), kind).from_pretrained(base)
    config = LoraConfig(r=4, lora_alpha=32, target_modules=modules, init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(str(folder))
    return folder


def _random(seed: int) -> tuple[Any, Any]:
    torch.manual_seed(seed)
    return new_captioner(WORDS, wide=0.4)


PARTS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}IMAGE{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template, as Qwen's is, that takes what is said as a list of parts; IMAGE is the place of a picture."""
TEXT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.role == 'user' %}IMAGE{% endif %}"
    "{{ message.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""One, as JoyCaption's is, that takes what is said as a text and puts the picture in by itself."""

_WORDS = (
    *WORDS,
    *("picture", "this", "in", "a", "few", "plain", "sentences", "describe", "system", "user", "assistant", "caption"),
    *("en", "cat", "dog", "sky"),
)
_SIGNS = (
    *("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    *("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<start_of_image>", "<end_of_image>"),
    *("<image_soft_token>", *(f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3))),
)


def save_llava(folder: Path, *, template: str | None = PARTS, seed: int = 0) -> Path:
    """Save a random LLaVA (a CLIP of 16 patches before a LLaMA), the family of JoyCaption, and its processor."""
    transformers = _quiet()
    tokenizer = new_tokenizer()
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(image_size=32, patch_size=8, **_VISION),
        text_config=transformers.LlamaConfig(**_TEXT, **_signs(tokenizer)),
        image_token_index=tokenizer.image_token_id,
        image_seq_length=16,
        vision_feature_layer=-1,
    )
    pillow: Any = import_module("transformers.models.clip.image_processing_pil_clip")
    sides = {"height": 32, "width": 32}
    processor = transformers.LlavaProcessor(
        pillow.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=sides),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_with_image(template, "<image>"),
    )
    processor.save_pretrained(folder)
    return _save(transformers.LlavaForConditionalGeneration, config, folder, seed)


def save_qwen2_vl(folder: Path, *, template: str = PARTS, seed: int = 0, version: str = "Qwen2VL") -> Path:
    """Save a random Qwen2-VL, the family of ToriiGate; with `version` Qwen2_5_VL or Qwen3VL, one of those."""
    transformers = _quiet()
    tokenizer = new_tokenizer(image="<|image_pad|>")
    vision: dict[str, dict[str, Any]] = {
        "Qwen2VL": {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 14},
        "Qwen2_5_VL": {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
        | {"fullatt_block_indexes": [0]},
        "Qwen3VL": {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
        | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
    }
    more = {"head_dim": 16} if version == "Qwen3VL" else {}
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
    config = getattr(transformers, f"{version}Config")(
        vision_config={**vision[version], "initializer_range": 0.2},
        text_config={**_TEXT, **_signs(tokenizer), **more, "rope_parameters": rope},
        **{
            f"{name}_token_id": tokenizer.convert_tokens_to_ids(sign)
            for name, sign in (
                ("image", "<|image_pad|>"),
                ("video", "<|video_pad|>"),
                ("vision_start", "<|vision_start|>"),
                ("vision_end", "<|vision_end|>"),
            )
        },
    )
    pillow: Any = import_module("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    side = 16 if version == "Qwen3VL" else 14
    # As on the hub: no processor of films, the template in a file of its own.
    pillow.Qwen2VLImageProcessorPil(patch_size=side, min_pixels=4 * 28**2, max_pixels=9 * 32**2).save_pretrained(folder)
    tokenizer.chat_template = _with_image(template, "<|vision_start|><|image_pad|><|vision_end|>")
    tokenizer.save_pretrained(folder)
    return _save(getattr(transformers, f"{version}ForConditionalGeneration"), config, folder, seed)


def save_smolvlm(folder: Path, *, template: str = PARTS, seed: int = 0, family: str = "SmolVLM") -> Path:
    """Save a random SmolVLM, or with `family` Idefics3 one of that: pictures in up to four pieces of 32 pixels."""
    transformers = _quiet()
    tokenizer = new_tokenizer()
    vision = {**_VISION, "image_size": 32, "patch_size": 8}
    config = getattr(transformers, f"{family}Config")(
        vision_config=vision,
        text_config=transformers.LlamaConfig(**_TEXT, **_signs(tokenizer)),
        image_token_id=tokenizer.image_token_id,
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    pillow: Any = import_module(f"transformers.models.{family.lower()}.image_processing_pil_{family.lower()}")
    images = getattr(pillow, f"{family}ImageProcessorPil")(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
    )
    images.save_pretrained(folder)
    tokenizer.chat_template = _with_image(template, "<image>")
    tokenizer.save_pretrained(folder)
    said = {"processor_class": f"{family}Processor", "image_seq_len": 4}
    (folder / "processor_config.json").write_text(json.dumps(said))
    return _save(getattr(transformers, f"{family}ForConditionalGeneration"), config, folder, seed)


def save_paligemma(folder: Path, *, seed: int = 0) -> Path:
    """Save a random PaliGemma, which has no chat template."""
    transformers = _quiet()
    tokenizer = new_tokenizer()
    pillow: Any = import_module("transformers.models.siglip.image_processing_pil_siglip")
    images = pillow.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    processor = transformers.PaliGemmaProcessor(images, tokenizer)  # adds tokens for places
    processor.save_pretrained(folder)
    config = transformers.PaliGemmaConfig(
        vision_config=transformers.SiglipVisionConfig(image_size=32, patch_size=8, **_VISION, vision_use_head=False),
        text_config=transformers.GemmaConfig(
            **{**_TEXT, "vocab_size": len(tokenizer)}, head_dim=16, **_signs(tokenizer)
        ),
        image_token_index=tokenizer.image_token_id,
        projection_dim=64,
        hidden_size=64,
        tie_word_embeddings=False,
    )
    return _save(transformers.PaliGemmaForConditionalGeneration, config, folder, seed)


def save_gemma3(folder: Path, *, template: str = PARTS, seed: int = 0) -> Path:
    """Save a random Gemma 3."""
    transformers = _quiet()
    tokenizer = new_tokenizer(image="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>")
    pillow: Any = import_module("transformers.models.gemma3.image_processing_pil_gemma3")
    processor = transformers.Gemma3Processor(
        pillow.Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer,
        chat_template=_with_image(template, "<start_of_image>"),
        image_seq_length=4,
    )
    processor.save_pretrained(folder)
    config = transformers.Gemma3Config(
        vision_config=transformers.SiglipVisionConfig(image_size=32, patch_size=8, **_VISION, vision_use_head=False),
        text_config=transformers.Gemma3TextConfig(**_TEXT, head_dim=16, query_pre_attn_scalar=16, **_signs(tokenizer)),
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tokenizer.image_token_id,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    return _save(transformers.Gemma3ForConditionalGeneration, config, folder, seed)


def save_blip2(folder: Path, *, seed: int = 0) -> Path:
    """Save a random BLIP-2 (before an OPT): it has no chat template, and its processor puts pictures in by itself."""
    transformers = _quiet()
    signs = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=new_tokenizer().backend_tokenizer, **signs)
    pillow: Any = import_module("transformers.models.blip.image_processing_pil_blip")
    images = pillow.BlipImageProcessorPil(size={"height": 32, "width": 32})
    transformers.Blip2Processor(images, tokenizer, num_query_tokens=4).save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Blip2Config(
        vision_config=transformers.Blip2VisionConfig(**sizes, image_size=32, patch_size=8, initializer_range=0.2),
        qformer_config=transformers.Blip2QFormerConfig(
            **sizes, vocab_size=len(tokenizer), encoder_hidden_size=32, initializer_range=0.2
        ),
        text_config=transformers.OPTConfig(
            **_signs(tokenizer),
            vocab_size=len(tokenizer),
            hidden_size=64,
            word_embed_proj_dim=64,
            ffn_dim=128,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=512,
            init_std=0.2,
        ),
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        initializer_range=0.2,
    )
    return _save(transformers.Blip2ForConditionalGeneration, config, folder, seed)


def save_florence2(folder: Path, *, seed: int = 1) -> Path:
    """Save a random Florence-2 (a DaViT of two stages before a BART), and its processor."""
    transformers = _quiet()
    tokenizer = new_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<loc_{place}>" for place in range(4)]})
    pillow: Any = import_module("transformers.models.clip.image_processing_pil_clip")
    images = pillow.CLIPImageProcessorPil(
        do_center_crop=False,
        size={"height": 48, "width": 48},
        image_seq_length=37,  # 6 x 6 patches and their mean
    )
    transformers.Florence2Processor(images, tokenizer).save_pretrained(folder)
    sizes = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    config = transformers.Florence2Config(
        vision_config=transformers.Florence2VisionConfig(
            depths=(1, 1),
            embed_dim=(32, 64),
            num_heads=(2, 4),
            num_groups=(2, 4),
            patch_size=(7, 3),
            patch_stride=(4, 2),
            patch_padding=(3, 1),
            patch_prenorm=(False, True),
            window_size=6,
            projection_dim=64,
            max_position_embeddings=16,
        ),
        text_config=transformers.BartConfig(
            **sizes,
            **_signs(tokenizer),
            vocab_size=len(tokenizer),
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            max_position_embeddings=256,
            init_std=0.3,
            decoder_start_token_id=tokenizer.eos_token_id,
            forced_bos_token_id=tokenizer.bos_token_id,
            tie_word_embeddings=False,
        ),
        image_token_id=tokenizer.image_token_id,
        tie_word_embeddings=False,
    )
    return _save(transformers.Florence2ForConditionalGeneration, config, folder, seed, end=3)


def new_tokenizer(*, image: str = "<image>", **signs: str) -> Any:
    """A tokenizer of whole words, which knows the signs of all these families."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = dict.fromkeys(("<pad>", "<unk>", "<s>", "</s>", "<image>", *_SIGNS, *_WORDS))
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    made = _quiet().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": image, **signs},
    )
    made.add_tokens(["<image>", *_SIGNS], special_tokens=True)
    return made


# Wide weights, so that random models say different things of different pictures.
_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
_TEXT: dict[str, Any] = {
    "vocab_size": 4 + 1 + len(_SIGNS) + len(dict.fromkeys(_WORDS)),
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
}


def _signs(tokenizer: Any) -> dict[str, int]:
    return {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}


def _with_image(template: str | None, image: str) -> str | None:
    return template and template.replace("IMAGE", image)


def _quiet() -> Any:
    transformers: Any = import_module("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def _save(kind: Callable[[Any], Any], config: Any, folder: Path, seed: int, *, end: float = 1.5) -> Path:
    torch.manual_seed(seed)
    model = kind(config).eval()
    with torch.no_grad():
        # An end that is sometimes likely and sometimes not, so that texts differ in length.
        model.get_output_embeddings().weight[config.get_text_config().eos_token_id] *= end
        for name, weight in model.named_parameters():
            if name.endswith("mm_input_projection_weight"):  # which Gemma begins with nought
                weight.normal_(0, 0.5)
    model.generation_config.eos_token_id = config.get_text_config().eos_token_id
    model.save_pretrained(folder)
    return folder
