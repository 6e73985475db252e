"""What makes a checkpoint's folder a model's folder for transformers, or an adapter's for peft."""

from __future__ import annotations

from pathlib import Path

import peft

from redistill.text.models import LanguageModel
from redistill.text.quiet import quiet


def weights_file(lm: LanguageModel) -> str:
    """Where transformers looks for weights, or peft for an adapter's."""
    return "adapter_model.safetensors" if isinstance(lm.module, peft.PeftModel) else "model.safetensors"


def public_name(name: str) -> str:
    """A parameter as its library saves it: peft leaves the adapter's own name (`default`) out."""
    return name.replace(".lora_A.default.", ".lora_A.").replace(".lora_B.default.", ".lora_B.")


def write_beside(lm: LanguageModel, folder: Path) -> None:
    """Write what the weights are read with: config and tokenizer, or the adapter's config."""
    with quiet():
        if isinstance(lm.module, peft.PeftModel):
            lm.module.peft_config["default"].save_pretrained(str(folder))
            return
        lm.causal.config.save_pretrained(folder)
        if lm.causal.generation_config is not None:
            lm.causal.generation_config.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
