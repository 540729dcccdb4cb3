"""Show what this machine has and what the lab will use: processor, memory, GPU, libraries, hub.

In: nothing. Out: a list with the consequence of each item.

    distill doctor
"""

from __future__ import annotations

import os
import platform
import shutil
import sys

from distill_lab import config as settings

QWEN = ((1536, 8960), (1536, 8960), (8960, 1536))
"""Input and output features of the largest layers of Qwen2.5-1.5B."""


class Config(settings.Config):
    """`distill doctor` has no settings."""


def main(config: Config) -> None:
    """Print the list."""
    import torch

    from distill_lab.device import nvidia_gpus, why_torch_sees_none
    from distill_lab.generation.engines import _vllm_install
    from distill_lab.run import installed_versions

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else 0.0
    print(f"system      {platform.system()} {platform.machine()}, Python {platform.python_version()}")
    print(
        f"processor   {os.cpu_count()} cores, {torch.get_num_threads()} threads used by torch, {memory:.0f} GiB memory"
    )
    print(f"disk        {shutil.disk_usage('.').free / 2**30:.0f} GiB free here")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            kind = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
            print(
                f"GPU {index}       {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB: computes in {kind}; preset qwen2.5"
            )
    elif gpus := nvidia_gpus():
        print(f"GPU         torch sees none, the driver sees {'; '.join(gpus)}: {why_torch_sees_none()}")
    else:
        print("GPU         none: preset tiny. Real Qwen sizes need a GPU (Colab's free T4 is enough)")
        print(f"dtype       {_cpu_dtype()}")
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    print(f"hub         {'off (HF_HUB_OFFLINE is set)' if offline else 'on; HF_HUB_OFFLINE=1 turns it off'}")
    found = _vllm_install.installed()
    if found is None:
        print(f"vLLM        not in this environment ({sys.prefix}); {_vllm_install.REMEDY}")
    else:
        fit = (
            f"older than {_vllm_install.MIN_VERSION}, too old for the lab"
            if _vllm_install.is_too_old(found)
            else "used on a GPU by default"
        )
        print(f"vLLM        {found} in {sys.prefix}: {fit}")
    print("libraries   " + ", ".join(f"{name} {version}" for name, version in installed_versions().items()))


def _cpu_dtype() -> str:
    """The data type of generation on this CPU, and the timing behind it."""
    from distill_lab.device import MIN_GAIN, MIN_WEIGHTS, bf16_gain

    gain = bf16_gain(QWEN * 28)
    chosen = "bf16" if gain >= MIN_GAIN else "fp32"
    return (
        f"{chosen}: matrix products of Qwen2.5-1.5B's sizes, just timed, are {gain:.2g} times as fast in bf16 as in fp32. "
        f"Each model is timed with its own sizes; with fewer than {MIN_WEIGHTS / 1e6:.0f} million layer weights it uses "
        "fp32. --model.dtype overrides this"
    )
