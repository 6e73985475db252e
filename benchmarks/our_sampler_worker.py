"""Sampling with Redistill's embedded sampler, alone."""

from __future__ import annotations

import sys
import time
from importlib.metadata import version

import torch
from redistill.text.models import load_model
from redistill.text.sampling import Sampling, sample

from benchmarks.port import Port, peak, settings_of, start_peak


def main() -> None:
    """Load the model, then sample as the driver asks: `prompts` are token ids, one response each, log-probs included."""
    port, settings = Port(), settings_of(sys.argv)
    lm = load_model(settings["model"], dtype=settings["dtype"])
    lm.eos_ids = ()  # nothing cuts a response short
    start_peak()
    port.say(versions={name: version(name) for name in ("redistill", "torch")}, threads=torch.get_num_threads())
    call = 0
    while True:
        command = port.hear()
        prompts, spec = command["prompts"], Sampling(1.0, 1.0, 0, 0.0, command["new_tokens"])
        keys = [(0, call, index) for index in range(len(prompts))]
        began = time.perf_counter()
        groups = sample(lm, prompts, group_size=1, sampling=spec, keys=keys, max_batch=settings["batch"])
        total = time.perf_counter() - began
        call += 1
        port.say(seconds={"total": total}, sampled=sum(len(row.ids) for group in groups for row in group), **peak())


if __name__ == "__main__":
    main()
