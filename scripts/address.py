"""Write the repository's web address into every file that names it, so that links, clone commands and the Colab badge work.

In: an address such as https://github.com/someone/qwen-distillation-lab. Out: README.md, notebook.ipynb, CITATION.cff,
CHANGELOG.md and pyproject.toml changed in place. A second call with another address replaces the first. Until the first call
no file names an address: the badge opens Colab's page for GitHub notebooks, and the clone command says what to fill in.

    make address URL=https://github.com/someone/qwen-distillation-lab
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COLAB = "https://colab.research.google.com/github/"
FOLDER = "qwen-distillation-lab"
NAME = re.compile(r"https://github\.com/(?P<name>[\w-]+/[\w.-]+)")


def main(arguments: list[str]) -> int:
    """Change the files; returns the exit code."""
    url = arguments[0].rstrip("/").removesuffix(".git") if len(arguments) == 1 else ""
    if not re.fullmatch(r"https://[\w.-]+(/[\w.~-]+)+", url):
        print("usage: make address URL=https://github.com/someone/qwen-distillation-lab", file=sys.stderr)
        return 2
    for path in write(url, ROOT):
        print(f"changed {path}")
    return 0


def write(url: str, root: Path) -> list[str]:
    """Write `url` into the files of the checkout in `root`; returns the names of those that changed."""
    on_github = NAME.fullmatch(url)
    # Colab reads notebooks from GitHub alone; for another host the badge keeps leading to Colab's own page.
    colab = f"{COLAB}{on_github['name']}/blob/main/notebook.ipynb" if on_github else COLAB
    # Pattern and template of the replacement, as `re.sub` takes them.
    changes: dict[str, list[tuple[str, str]]] = {
        "README.md": [
            (re.escape(COLAB) + r"[^)\s]*", colab),
            (rf"git clone \S.*? {FOLDER}\b", f"git clone {url} {FOLDER}"),
        ],
        "notebook.ipynb": [
            (re.escape(COLAB) + r"[^)\s]*", colab),
            (r'REPOSITORY = \\"[^"]*\\"', rf'REPOSITORY = \\"{url}\\"'),
        ],
        "CITATION.cff": [(r"(?m)^(repository-code: .*\n)?version:", f"repository-code: {url}\nversion:")],
        "CHANGELOG.md": [
            (r"(?m)^\[Unreleased\]: .*$", f"[Unreleased]: {url}/commits/main"),
            (r"(?m)^\[(\d[\d.]*)\]: .*$", rf"[\1]: {url}/releases/tag/v\1"),
        ],
        "pyproject.toml": [
            (
                r"(?s)(\[project\.urls\]\n.*?\n\n)?\[project\.scripts\]",
                f'[project.urls]\nRepository = "{url}"\nChangelog = "{url}/blob/main/CHANGELOG.md"\n\n[project.scripts]',
            )
        ],
    }
    changed = []
    for name, replacements in changes.items():
        path = root / name
        text = before = path.read_text(encoding="utf-8")
        for pattern, new in replacements:
            text, number = re.subn(pattern, new, text)
            assert number, f"{name} has no place for the address: {pattern}"
        if text != before:
            path.write_text(text, encoding="utf-8")
            changed.append(name)
    return changed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
