"""llama.cpp's quantizer: FILE in F16 -> FILE in another type, such as Q4_K_M.

    quantize(Path("student-F16.gguf"), Path("student-Q4_K_M.gguf"), "Q4_K_M")

The gguf package only reads these types. The program llama-quantize is taken from PATH, or from the package
ik-llama-cpp-python, whose wheel contains one.
"""

from __future__ import annotations

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

from distill_lab import activity
from distill_lab.errors import UserError

PROGRAM = "llama-quantize"
REMEDY = f"pip install ik-llama-cpp-python, or put llama.cpp's {PROGRAM} on PATH"


def quantizer() -> str | None:
    """The path of the program; None if there is none."""
    if found := shutil.which(PROGRAM):
        return found
    spec = find_spec("ik_llama_cpp")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if found := shutil.which(str(Path(folder) / "bin" / PROGRAM)):
            return found
    return None


def quantize(source: Path, path: Path, kind: str) -> None:
    """Write `source` to `path` in the type `kind`. Raises UserError if there is no program for it, or if it fails."""
    program = quantizer()
    if program is None:
        raise UserError(f"{kind} is written by llama.cpp's quantizer, which is not installed; {REMEDY}")
    with activity.doing(f"quantizing to {kind}"):
        done = subprocess.run(
            [program, str(source), str(path), kind], capture_output=True, text=True, errors="replace", check=False
        )
    if done.returncode or not path.is_file():
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise UserError(f"{program} could not write {kind}: {lines[-1] if lines else 'it gave no reason'}")
