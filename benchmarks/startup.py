"""How long the help takes: wall-clock seconds of whole processes, and their median, for the overview and for commands.

python -m benchmarks.startup
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

RUNS = 5
HELPS = (["--help"], ["system1", "--help"], ["generate", "--help-all"])


def main() -> None:
    """Time each and print a JSON object."""
    command = shutil.which("distill", path=str(Path(sys.executable).parent)) or "distill"
    for arguments in HELPS:
        subprocess.run([command, *arguments], check=True, capture_output=True)
        seconds = []
        for _ in range(RUNS):
            start = time.perf_counter()
            subprocess.run([command, *arguments], check=True, capture_output=True)
            seconds.append(round(time.perf_counter() - start, 3))
        name = " ".join(["distill", *arguments])
        print(json.dumps({"command": name, "seconds": seconds, "median_s": median(seconds)}))


if __name__ == "__main__":
    main()
