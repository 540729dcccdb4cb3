"""The registry of GPU checks, and the program that runs one of them in a process of its own.

    python -m tests.gpu.checks flat-vs-generate --scratch /tmp/gpu             on the GPU, in real shapes
    python -m tests.gpu.checks flat-vs-generate --scratch /tmp/gpu --small     shapes of some thousand weights, anywhere

A check is a function of `Setting` that asserts what must hold and returns figures; the program prints them as JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distill_lab.device import best_device
from distill_lab.models.precision import compute_dtype

T4_BYTES = 15_600_000_000
"""Memory of a T4: checks that must fit one limit a larger GPU to it."""


@dataclass(frozen=True)
class Setting:
    """Where a check runs, and how large."""

    scratch: Path
    """Models are written here once and shared by the checks."""
    small: bool

    @property
    def device(self) -> torch.device:
        """The GPU where there is one."""
        return best_device()

    @property
    def dtype(self) -> torch.dtype:
        """What the device computes in."""
        return compute_dtype(self.device)

    @property
    def on_gpu(self) -> bool:
        """Whether memory can be limited and counted."""
        return self.device.type == "cuda"

    def peak_bytes(self) -> int:
        """The most that torch held since `reset_peak`; 0 on a CPU."""
        return torch.cuda.max_memory_allocated() if self.on_gpu else 0

    def reset_peak(self) -> None:
        """Count the peak from here."""
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()

    @contextmanager
    def limited(self, bytes_: int = T4_BYTES) -> Iterator[float]:
        """Let this process take no more of the GPU than `bytes_`; gives the share of the GPU that is."""
        share = min(1.0, bytes_ / torch.cuda.get_device_properties(self.device).total_memory) if self.on_gpu else 1.0
        if self.on_gpu:
            torch.cuda.set_per_process_memory_fraction(share)
        try:
            yield share
        finally:
            if self.on_gpu:
                torch.cuda.set_per_process_memory_fraction(1.0)


Check = Callable[[Setting], dict[str, Any]]
CHECKS: dict[str, Check] = {}
MODULES = ("decoding", "training", "whole")


def check(name: str) -> Callable[[Check], Check]:
    """Register a check by its name."""

    def register(function: Check) -> Check:
        CHECKS[name] = function
        return function

    return register


def load_all() -> dict[str, Check]:
    """Every check there is."""
    for module in MODULES:
        importlib.import_module(f"tests.gpu.{module}")
    return CHECKS


def main() -> None:
    """Run one check and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="the check to run")
    parser.add_argument("--scratch", type=Path, required=True, help="folder for models, shared by the checks")
    parser.add_argument("--small", action="store_true", help="shapes of some thousand weights")
    arguments = parser.parse_args()
    # As a program this file is __main__; the checks register with the module of its name.
    module = importlib.import_module("tests.gpu.checks")
    found = module.load_all()[arguments.name](module.Setting(arguments.scratch, arguments.small))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
