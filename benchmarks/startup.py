"""How long `distill --help` takes: wall-clock seconds of whole processes, and their median.

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


def main() -> None:
    """Time it and print one JSON object."""
    command = shutil.which("distill", path=str(Path(sys.executable).parent)) or "distill"
    subprocess.run([command, "--help"], check=True, capture_output=True)
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        subprocess.run([command, "--help"], check=True, capture_output=True)
        seconds.append(round(time.perf_counter() - start, 3))
    print(json.dumps({"command": "distill --help", "seconds": seconds, "median_s": median(seconds)}))


if __name__ == "__main__":
    main()
