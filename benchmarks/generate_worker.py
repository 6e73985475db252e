"""Sampling with `transformers.generate`. Runs in TRL's environment, whose transformers is the current one."""

from __future__ import annotations

import sys
import time
from importlib.metadata import version

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks.port import Port, peak, settings_of, start_peak


def main() -> None:
    """Load the model in a dtype (weights and compute), then sample as the driver asks, all prompts in one batch."""
    port, settings = Port(), settings_of(sys.argv)
    if settings.get("products"):
        torch.set_float32_matmul_precision(settings["products"])
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=getattr(torch, settings["dtype"])).eval()
    model.generation_config.eos_token_id = None
    start_peak()
    port.say(versions={name: version(name) for name in ("transformers", "torch")}, threads=torch.get_num_threads())
    while True:
        command = port.hear()
        prompts, new_tokens = command["prompts"], command["new_tokens"]
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in prompts])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
        config = GenerationConfig(
            max_new_tokens=new_tokens, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0,
            eos_token_id=None, **settings.get("generation", {}),
        )  # fmt: skip
        began = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        total = time.perf_counter() - began
        port.say(seconds={"total": total}, sampled=out[:, width:].numel(), **peak())


if __name__ == "__main__":
    main()
