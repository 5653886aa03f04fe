"""Tiny TIPO models: LLaMAs with a tokenizer of TIPO's kind, made in a moment, of random weights or of a few words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cutline.prompts.tipo import MARKERS

_SENTENCES = "A girl with long hair smiles in the rain She has a red hat Two girls stand 1girl 2girls solo smile"
WORDS = _SENTENCES.split()
PIECES = ["tag", "long", "short", "rating", "target", ".", ",", ":", "\u2581"]
CHARACTERS = [chr(number) for number in range(33, 127)]


def save_tipo(
    folder: Path,
    *,
    seed: int = 0,
    says: Mapping[str, Sequence[str]] | None = None,
    markers: Sequence[str] = MARKERS,
    context: int = 1024,
) -> Path:
    """Save a tiny LLaMA and its tokenizer.

    Args:
        folder: where to.
        seed: of its random weights.
        says: instead, which tokens may follow on a token, each as likely as the others; nothing else ever does. A token
            that is not named ends the text.
        markers: those of TIPO's that it knows as one token.
        context: the most tokens that it can read and write.
    """
    tokenizer = _tokenizer(markers)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64 if says is None else -(-len(tokenizer) // 8) * 8,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=context,
        initializer_range=0.4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    if says is None:
        _keep_to_words(model, tokenizer)
    else:
        _teach(model, tokenizer, says)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tipo_adapter(folder: Path, base: Path) -> Path:
    """Save a random LoRA adapter, strong enough to be seen, for the model that `save_tipo` left at `base`."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(LlamaForCausalLM.from_pretrained(base), config).save_pretrained(str(folder))
    return folder


def _tokenizer(markers: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer like LLaMA's: pieces that begin with a space, bytes for what has no piece, and a start token."""
    special = ["<unk>", "<s>", "</s>"]
    known = [*(f"\u2581{word}" for word in WORDS), *PIECES]
    vocabulary = [(name, 0.0) for name in special]
    vocabulary += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    vocabulary += [(name, -1.0) for name in dict.fromkeys(known)]
    vocabulary += [(name, -10.0) for name in CHARACTERS if name not in known]
    made = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=made,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=list(markers),
    )


def _keep_to_words(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Let a random model say words and the end, and hardly ever anything else."""
    likely = {tokenizer.convert_tokens_to_ids(name) for name in (*(f"\u2581{word}" for word in WORDS), ".", "</s>")}
    unlikely = [number for number in range(len(tokenizer)) if number not in likely]
    model.lm_head.weight.data[unlikely] = 0.0


def _teach(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, says: Mapping[str, Sequence[str]]) -> None:
    """Set weights so that a token depends on the one before it alone."""
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    size = model.config.hidden_size
    model.model.embed_tokens.weight.data = torch.eye(size)[: len(tokenizer)]
    # The norm makes a token's own place the root of the size, and all others 0.
    table = torch.zeros(len(tokenizer), size)
    table[tokenizer.eos_token_id] = 50.0
    for before, after in says.items():
        place = tokenizer.convert_tokens_to_ids(before)
        table[tokenizer.eos_token_id, place] = 0.0
        for name in after:
            number = tokenizer.convert_tokens_to_ids(name)
            assert number != tokenizer.unk_token_id, name
            table[number, place] = 50.0
    model.lm_head.weight.data = table / size**0.5
