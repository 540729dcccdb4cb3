"""Say what this machine has and what will be used: processor, memory, GPU, libraries, hub.

In: nothing. Out: a list, each line with what follows from it.

    distill doctor
"""

from __future__ import annotations

import os
import platform
import shutil

from distill_lab import config as settings


class Config(settings.Config):
    """`distill doctor` has no settings."""


def main(config: Config) -> None:
    """Look and print."""
    import torch

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
    else:
        print("GPU         none: computes in fp32; preset tiny. Real Qwen sizes want a GPU (Colab's free T4 will do)")
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    print(f"hub         {'off (HF_HUB_OFFLINE is set)' if offline else 'on; HF_HUB_OFFLINE=1 turns it off'}")
    print("libraries   " + ", ".join(f"{name} {version}" for name, version in installed_versions().items()))
