"""Settings of a language run. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from redistill.config import RunConfig
from redistill.core.options import option


@dataclass(frozen=True)
class Settings(RunConfig):
    """The common settings, and what only language has: sampling, prompts, LoRA, warm start, utility."""

    task: str = option("sums", "task name with options, name:key=value,..., or a .jsonl/.parquet file")
    model: str = option("pocket", "model name (pocket, smollm2-135m, gemma3-270m), local folder or hub id")
    warm_start_steps: int = option(
        0, "supervised updates on plain and in-context prompts before the method starts", low=0
    )
    warm_start_learning_rate: float = option(1e-5, "learning rate of the warm start", above=0, high=1e6)
    warm_start_in_context: float = option(
        0.5,
        "share of the warm start's prompts that show the solution (1 teaches to use it, and nothing else)",
        low=0,
        high=1,
    )

    max_new_tokens: int = option(64, "longest response, in tokens (of one turn, where there are several)", low=1)
    max_turns: int = option(16, "most turns of an episode, for tasks that are played in turns", low=1)
    history: str = option(
        "refuse", "a chat template that rewrites earlier turns: refuse it, or keep every sampled token all the same",
        choices=("refuse", "keep"),
    )  # fmt: skip
    temperature: float = option(1.0, "sampling temperature; 0 is greedy", low=0)
    top_p: float = option(1.0, "nucleus sampling: smallest set with this mass", above=0, high=1)
    top_k: int = option(0, "sample among the k likeliest tokens; 0 is off", low=0)
    min_p: float = option(0.0, "drop tokens below this share of the likeliest one's probability", low=0, high=1)
    max_prompt_tokens: int = option(1024, "a longer prompt (in any view) is left out and counted", low=1)
    sample_batch: int = option(64, "episodes sampled side by side", low=1)

    served_timeout: float = option(60.0, "seconds a served teacher may take for one answer", above=0)
    served_tries: int = option(
        12,
        "times a served teacher is asked before the run stops, with pauses of half a second, doubled up to 30 s",
        low=1,
    )

    lora_rank: int = option(0, "LoRA rank; 0 trains all weights", low=0)
    lora_alpha: float | None = option(None, "LoRA alpha; none means twice the rank", above=0)
    dtype: str = option(
        "float32",
        "what the layers compute in; weights, optimiser and log-probs stay float32",
        choices=("float32", "bfloat16", "auto"),
    )
    micro_batch_tokens: int = option(512, "tokens in one forward pass of the update", low=1)
    checkpointing: bool = option(
        False, "keep one state a layer and make the others again in the backward pass: less memory, slower"
    )

    eval_samples: int = option(0, "samples per held-out prompt for avg@k and pass@k beside greedy; 0 is off", low=0)
    eval_temperature: float = option(1.0, "temperature of those samples", above=0)
    utility: bool = option(True, "measure teacher utility (accuracy with context minus without) with each evaluation")
