"""Train what redistill/assets/flow-digits holds: a class-conditional flow model of 8x8 digits and two digit classifiers.

The 1,797 digits of scikit-learn are put in the order of their content's hash: 397 are kept as real reference, the flow
model sees the other 1,400, each judge its own half of those. Less than 3 minutes on one core.

    python scripts/train_flow_digits.py [--out redistill/assets/flow-digits] [--updates 1200]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from redistill.core import rng
from redistill.core.noise import normal
from redistill.generation.models import ASSETS, JUDGES, FlowModel, fresh_module, save_model
from redistill.generation.networks import DitOptions, Judge
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor

REAL = 397
NO_CLASS_SHARE = 0.1
AVERAGE = 0.995
"""Decay of the running mean of the weights that is kept."""


def digits() -> tuple[Tensor, Tensor]:
    """All digits [1797, 8, 8] in [0, 1] and their labels, by the hash of their pixels."""
    data = load_digits()
    images = np.ascontiguousarray(data.images / 16.0, dtype=np.float32)
    order = sorted(range(len(images)), key=lambda i: hashlib.sha256(images[i].tobytes()).hexdigest())
    return torch.from_numpy(images[order]), torch.from_numpy(data.target[order]).long()


def batch_of(size: int, count: int, *key: object) -> Tensor:
    """Indices [size] drawn from range(count), keyed."""
    return torch.from_numpy((rng.uniform(*key, np.arange(size)) * count).astype(np.int64))


def train_flow(images: Tensor, labels: Tensor, updates: int, size: int = 256) -> FlowModel:
    """Flow matching with a tenth of the labels dropped; returns the running mean of the weights."""
    options = DitOptions()
    module = fresh_module(options, torch.float32, "flow-digits")
    mean = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimiser = torch.optim.AdamW(module.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0.01)
    for update in range(updates):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1.0, (update + 1) / 50) * min(1.0, 2 * (1 - update / updates) + 0.02)
        at = batch_of(size, len(images), "flow-image", update)
        x0 = 2 * images[at] - 1
        eps = normal("flow-noise", update, np.arange(size)[:, None], np.arange(64)).float().view_as(x0)
        t = torch.from_numpy(rng.uniform("flow-time", update, np.arange(size))).float()
        dropped = torch.from_numpy(rng.uniform("flow-drop", update, np.arange(size)) < NO_CLASS_SHARE)
        label = torch.where(dropped, options.classes, labels[at])
        x_t = (1 - t[:, None, None]) * x0 + t[:, None, None] * eps
        loss = F.mse_loss(module(x_t, t, label), eps - x0)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        decay = min(AVERAGE, update / (update + 10))
        for name, p in module.named_parameters():
            mean[name].lerp_(p.detach(), 1 - decay)
        if update % 200 == 0:
            print(f"flow {update}: loss {float(loss):.4f}", flush=True)
    module.load_state_dict(mean)
    return FlowModel(module, options, {})


def train_judge(name: str, images: Tensor, labels: Tensor, updates: int = 800, size: int = 64) -> Judge:
    """Cross-entropy on images shifted by up to a pixel; the held-out judge also sees noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.bits("judge", name) >> 1))
        judge = Judge(8, 10, **JUDGES[name])
    optimiser = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.01)
    for update in range(updates):
        at = batch_of(size, len(images), "judge-image", name, update)
        down, right = (int(rng.uniform("judge-shift", name, update, axis) * 3) - 1 for axis in range(2))
        x = F.pad(images[at], (1, 1, 1, 1))[:, 1 + down : 9 + down, 1 + right : 9 + right]
        if name == "held_out":
            x = x + 0.1 * normal("judge-noise", update, np.arange(size)[:, None], np.arange(64)).float().view_as(x)
        loss = F.cross_entropy(judge(x), labels[at])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return judge


def main() -> None:
    """Train everything and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--updates", type=int, default=1200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    images, labels = digits()
    real, seen = (images[:REAL], labels[:REAL]), (images[REAL:], labels[REAL:])
    args.out.mkdir(parents=True, exist_ok=True)
    facts: dict[str, object] = {}
    judges = {}
    for half, name in enumerate(JUDGES):
        judges[name] = train_judge(name, seen[0][half::2], seen[1][half::2])
        facts[f"accuracy of judge {name}"] = float((judges[name](real[0]).argmax(-1) == real[1]).double().mean())
        save_file(judges[name].state_dict(), args.out / f"judge-{name}.safetensors")
    with torch.no_grad():
        features = judges["held_out"].features(real[0]).double()
    save_file(
        {
            "images": real[0].contiguous(), "labels": real[1].contiguous(), "mean": features.mean(0),
            "covariance": features.T.cov().contiguous(),
        },
        args.out / "real.safetensors",
    )  # fmt: skip
    save_model(train_flow(*seen, args.updates), args.out)
    facts["cpu seconds"] = round(time.process_time() - began, 1)
    (args.out / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(facts)


if __name__ == "__main__":
    main()
