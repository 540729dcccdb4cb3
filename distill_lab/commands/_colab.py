"""The notebook's first cells: install what the lab needs beside the torch that is there, and choose the folder to work in.

    install()                  does nothing if everything is there; never changes torch or torchvision
    workspace(on_drive=True)   Google Drive on Colab, so that a lost session loses nothing

Runs before the lab's packages are installed, so it imports the standard library alone. A person gets a sentence (SystemExit)
in place of a traceback.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

LEFT_ALONE = ("torch", "torchvision", "torchaudio", "triton")
"""Colab's builds belong together and to its driver: another torch takes gigabytes, and torchvision then fails on import."""
NAME = "qwen-distillation-lab"
DRIVE = Path("/content/drive")


def install(root: Path | None = None) -> None:
    """Install the packages that the lab in `root` needs and that are missing or too old.

    root: a checkout; default: that of this file. Raises SystemExit with a sentence if this cannot be done here, or if the
    session must be restarted because a package was loaded before its newer version came.
    """
    root = root or Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").is_file():
        return  # installed as a package, with everything it needs
    missing = list(unmet(requirements(root)))
    if not missing:
        return
    for line in missing:
        name = name_of(line)
        if name in LEFT_ALONE and (found := version(name)):
            raise SystemExit(
                f"The lab needs {line}, and this session has {found}, which is left as it is because other packages "
                "here were built for it. Choose a newer runtime (on Colab: Runtime > Change runtime type), then run "
                "this cell again."
            )
    print(f"installing {len(missing)} packages, about a minute: {', '.join(map(name_of, missing))}")
    before = versions()
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "constraints.txt"
        pins.write_text("".join(f"{name}=={found}\n" for name in LEFT_ALONE if (found := version(name))))
        words = ["install", "--quiet", "--no-warn-conflicts", "--constraint", str(pins), *missing]
        done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True)
    importlib.invalidate_caches()
    if done.returncode or (missing := list(unmet(requirements(root)))):
        print(*(done.stderr or done.stdout).strip().splitlines()[-5:], sep="\n")
        raise SystemExit(f"These packages could not be installed: {', '.join(missing)}. pip's last lines are above.")
    if stale := sorted(loaded_in_an_old_version(before, versions())):
        raise SystemExit(
            f"Restart the session (on Colab: Runtime > Restart session), then run this cell again: {', '.join(stale)} "
            "had been loaded before the newer version was installed."
        )


def requirements(root: Path) -> list[str]:
    """The lab's dependencies, as pyproject.toml has them (read as text: Python 3.10 has no TOML reader)."""
    block = re.search(r"(?ms)^dependencies = \[\n(.*?)^\]", (root / "pyproject.toml").read_text(encoding="utf-8"))
    assert block, "pyproject.toml lists no dependencies"
    return re.findall(r'(?m)^\s*"(.*)",$', block[1])


def unmet(lines: Iterable[str]) -> Iterator[str]:
    """Those that the installed packages do not meet; those for other machines are met."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        from pip._vendor.packaging.requirements import Requirement
    for line in lines:
        needed = Requirement(line)
        if needed.marker is None or needed.marker.evaluate():
            found = version(needed.name)
            if found is None or not needed.specifier.contains(found, prereleases=True):
                yield line.partition(";")[0].strip()


def name_of(line: str) -> str:
    """The package of a dependency."""
    found = re.match(r"[\w.-]+", line)
    assert found, line
    return found[0]


def version(name: str) -> str | None:
    """The installed version; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Every installed package and its version."""
    return {each.name: each.version for each in metadata.distributions() if each.name}


def loaded_in_an_old_version(before: dict[str, str], now: dict[str, str]) -> set[str]:
    """Packages whose version has changed and whose modules this process has loaded."""
    changed = {name for name, old in before.items() if now.get(name) != old}
    packages = metadata.packages_distributions()
    return {name for module, names in packages.items() if module in sys.modules for name in names} & changed


def workspace(*, on_drive: bool = False, drive: Path = DRIVE) -> Path:
    """The folder to work in, made the current one: on Google Drive on Colab, else where the notebook is.

    Everything that the lab writes is below it. In a new session the same cells go on there: what is finished is found
    again by its content, an interrupted training at its last checkpoint.
    """
    if not on_drive:
        return Path.cwd()
    try:
        mount = importlib.import_module("google.colab.drive").mount
    except ImportError:
        print("There is no Google Drive outside of Colab; everything stays in this folder.")
        return Path.cwd()
    mount(str(drive))
    folder = drive / "MyDrive" / NAME
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    return folder
