"""TRL's steps, measured from inside its own training loop. Runs in TRL's environment (.bench/trl).

The trainer is TRL's, unchanged; a callback waits for the driver's word before each step and reports after it, and the
trainer's own methods are timed where they are called. See docs/performance.md for the settings and why.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from benchmarks.port import Port, peak, resident, settings_of, start_peak
from benchmarks.workload import CLOSING, SOLUTION, Workload, fingerprint, questions, reward

STEPS = 40
"""Steps that the trainer is told to do; the driver stops it before."""


class Clock:
    """Seconds by phase, and what the step sampled."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.prompts: list[list[int]] = []
        self.sampled: list[list[int]] = []

    def timed(self, phase: str, function: Callable[..., Any], when: Callable[[], bool] = lambda: True) -> Any:
        """`function`, its time added to a phase whenever `when()` holds."""

        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = function(*args, **kwargs)
            if when():
                self.seconds[phase] += time.perf_counter() - began
            return result

        return run


class Turns(TrainerCallback):
    """Waits for the driver before each optimiser step, reports after it."""

    def __init__(self, port: Port, clock: Clock) -> None:
        self.port, self.clock = port, clock
        self.given: list[list[int]] | None = None
        self.trainer: Any = None
        self.measuring = False
        self.began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait for a turn. Gradient accumulation stays inside one step."""
        command = self.port.hear()
        self.given = command.get("given")
        self.clock.seconds.clear()
        self.measuring = True
        self.began = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """The trainer's log of a step comes when the optimiser has stepped and teachers are synchronised."""
        if not self.measuring or "grad_norm" not in (logs or {}):
            return
        total = time.perf_counter() - self.began
        self.measuring = False
        seconds = dict(self.clock.seconds)
        phases = {"sample": seconds.get("generate", 0.0), "judge": seconds.get("judge", 0.0),
                  "score": seconds.get("score", 0.0)}  # fmt: skip
        self.port.say(
            seconds={**phases, "update": total - sum(phases.values()), "total": total},
            sampled=sum(map(len, self.clock.sampled)), rollouts=len(self.clock.sampled),
            prompts=fingerprint(sorted(self.clock.prompts)), prompt_tokens=sum(map(len, self.clock.prompts)),
            loss=float(logs["loss"]), grad_norm=float(logs["grad_norm"]), **peak(),
        )  # fmt: skip


def generation_watched(trainer: Any, clock: Clock, turns: Turns) -> None:
    """Time `_generate`; where the driver gave the tokens (to compare losses), hand those out instead of sampling. With vLLM
    it samples all the same: the trainer needs vLLM's log-probs of the tokens, which cannot be handed out."""
    inner = "_generate_single_turn" if hasattr(trainer, "_generate_single_turn") else "_generate"
    original = getattr(trainer, inner)

    def given_or_sampled(prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        if turns.given is None or getattr(trainer, "use_vllm", False):
            return original(prompt_ids, *args, **kwargs)
        if inner == "_generate":
            return prompt_ids, turns.given
        return (turns.given, None) if "num_generations" in original.__code__.co_varnames else turns.given

    setattr(trainer, inner, given_or_sampled)
    outer = clock.timed("generate", trainer._generate)

    def recorded(*args: Any, **kwargs: Any) -> Any:
        result = outer(*args, **kwargs)
        clock.prompts, clock.sampled = [list(ids) for ids in result[0]], [list(ids) for ids in result[1]]
        return result

    trainer._generate = recorded


def rewards(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
    """The workload's reward, as TRL calls it."""
    return [reward(completion[0]["content"]) for completion in completions]


def common(settings: dict[str, Any], work: Workload) -> dict[str, Any]:
    """TRL's arguments that all three trainers share. `rows` is the batch of one forward pass."""
    rows = settings["rows"]
    return {
        "output_dir": str(Path(".bench") / "trl-out"), "use_cpu": True, "bf16": settings["autocast"],
        "per_device_train_batch_size": rows, "gradient_accumulation_steps": work.rollouts // rows,
        "gradient_checkpointing": settings["checkpointing"], "learning_rate": 1e-6,
        "lr_scheduler_type": "constant", "max_steps": STEPS, "logging_steps": 1, "report_to": "none",
        "save_strategy": "no", "disable_tqdm": True, "seed": 0, "shuffle_dataset": False,
        "max_completion_length": work.new_tokens, "temperature": 1.0, "top_p": 1.0, "top_k": 0,
        **generation(settings),
    }  # fmt: skip


def generation(settings: dict[str, Any]) -> dict[str, Any]:
    """How TRL samples: by transformers (`generation`: more of its settings), or by vLLM in the same process (`vllm`: share of
    the memory). Either way the end of sequence stops nothing."""
    if "vllm" in settings:
        own = {"ignore_eos": True, "detokenize": False}
        return {
            "use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": settings["vllm"],
            "vllm_max_model_length": 1024, "generation_kwargs": own,
        }  # fmt: skip
    return {"generation_kwargs": {"eos_token_id": None, **settings.get("generation", {})}}


def build(settings: dict[str, Any], work: Workload, turns: Turns) -> Any:
    """The trainer of a method on the workload."""
    if settings.get("products"):
        torch.set_float32_matmul_precision(settings["products"])
    dtype = getattr(torch, settings["weights"])
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(settings["model"], padding_side="left")
    data = Dataset.from_list([{"prompt": chat} for chat in questions(work.prompts * STEPS)])
    shared = {"train_dataset": data, "processing_class": tokenizer, "callbacks": [turns]}
    arguments = common(settings, work)
    method = settings["method"]
    if method == "grpo":
        from trl import GRPOConfig, GRPOTrainer

        config = GRPOConfig(**arguments, num_generations=work.group, loss_type="grpo", beta=0.0, epsilon=0.2)
        return GRPOTrainer(model=model, reward_funcs=rewards, args=config, **shared)
    if method in ("opd-reverse_kl", "opd-jsd"):
        from trl import DistillationConfig, DistillationTrainer

        teacher = AutoModelForCausalLM.from_pretrained(settings["teacher"], dtype=dtype)
        config = DistillationConfig(**arguments, beta=1.0 if method == "opd-reverse_kl" else 0.5)
        return DistillationTrainer(model=model, teacher_model=teacher, args=config, **shared)
    from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

    config = SDPOConfig(
        **arguments, num_generations=work.group, distillation_mode="topk_logits", distillation_topk=100,
        distillation_alpha=0.5, distillation_add_tail=True, teacher_model_kind="ema", teacher_update_rate=0.05,
        reprompt_template="{prompt}{solution}{feedback}" + CLOSING,
        solution_template=SOLUTION.replace("{}", "{successful_previous_attempt}"),
    )  # fmt: skip
    return SDPOTrainer(model=model, reward_funcs=rewards, args=config, **shared)


def main() -> None:
    """Build the trainer, then do steps as the driver asks."""
    port, settings = Port(), settings_of(sys.argv)
    work = Workload(**settings["work"])
    clock = Clock()
    turns = Turns(port, clock)
    trainer = build(settings, work, turns)
    trainer.model.generation_config.eos_token_id = None
    trainer.eos_token_ids = [-1]  # nothing cuts a rollout short
    generation_watched(trainer, clock, turns)
    if hasattr(trainer, "_calculate_rewards"):
        trainer._calculate_rewards = clock.timed("judge", trainer._calculate_rewards)
    teacher_forward = "_forward_logits" if settings["method"] == "sdpo" else "_get_last_hidden_state"
    if settings["method"] != "grpo":
        setattr(
            trainer, teacher_forward,
            clock.timed("score", getattr(trainer, teacher_forward), when=lambda: not torch.is_grad_enabled()),
        )  # fmt: skip
    start_peak()
    packages = ("trl", "torch", "transformers", "accelerate")
    port.say(
        versions={name: version(name) for name in packages}, resident_gb=resident(), threads=torch.get_num_threads()
    )
    trainer.train()


if __name__ == "__main__":
    main()
