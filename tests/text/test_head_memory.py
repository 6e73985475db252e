"""Law 7, in memory that a process really has: the head's peak does not grow with the number of steps."""

from __future__ import annotations

import subprocess
import sys

import pytest

MEASURE = """
import re, torch
from pathlib import Path
from redistill.core.signal import DivergenceOf, LogProb, Teacher
from redistill.core.specs import DivergenceKind, Support, TeacherWeights
from redistill.text.head import TeacherPart, TeacherStates, measure
from redistill.text.models import Head

def now(what):
    return int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1e6

STEPS, VOCABULARY, WIDTH = 768, 262_144, 4
teacher = Teacher(TeacherWeights.parse("frozen"), ((1,),))
quantities = {quantities}
hidden, weight = torch.randn(STEPS, WIDTH).requires_grad_(), torch.randn(VOCABULARY, WIDTH).requires_grad_()
states = {{teacher: TeacherStates([TeacherPart(1.0, hidden.detach(), Head(weight.detach()))], torch.ones(STEPS) > 0)}}
before = now("VmRSS")
found = measure(hidden, Head(weight), torch.zeros(STEPS, dtype=torch.int64), torch.ones(STEPS), states, quantities)
sum(value.mean() for value in found.values()).backward()
print(now("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("quantities", "buffers"),
    [
        ("(LogProb(),)", 1),
        (
            "(DivergenceOf(teacher, DivergenceKind.parse('jsd(0.5)'), Support.parse('top_k(100, of=student, tail=true)')),)",
            2,
        ),
    ],
    ids=["log-prob", "top-k"],
)
def test_peak_is_a_few_chunks_however_many_steps(quantities: str, buffers: int) -> None:
    """768 steps are 0.8 GB of logits; a chunk is 0.13 GB. What is kept of a block must not keep the place of its large
    tensors: that once made the process grow by a block at each of them."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE.format(quantities=quantities)], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 0.13 * buffers + 0.15
