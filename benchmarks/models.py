"""The models of the benchmark as ordinary transformers folders: the student as it is in our cache, and a teacher that is the
student with noise on its weights (a distillation loss between equal models would be 0 whatever the code does)."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from redistill.text.weights import resolve, weight_files
from safetensors.torch import load_file, save_file

from benchmarks.port import ROOT

NOISE = 0.1
"""Standard deviation of the teacher's noise on each matrix, as a share of that matrix's own."""


def student(name: str) -> Path:
    """The folder of the student."""
    return resolve(name)


def teacher(name: str) -> Path:
    """The folder of the noisy copy, made once."""
    source, folder = resolve(name), ROOT / ".bench" / "models" / f"{name}-teacher"
    if (folder / "done").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file() and file.suffix != ".safetensors" and file.name != "manifest.json":
            shutil.copy(file, folder)
    generator = torch.Generator().manual_seed(0)
    for file in weight_files(source):
        weights = load_file(file)
        for key, weight in weights.items():
            if weight.ndim == 2:
                weights[key] = weight + NOISE * weight.std() * torch.randn(weight.shape, generator=generator)
        save_file(weights, folder / file.name, metadata={"format": "pt"})
    (folder / "done").touch()
    return folder
