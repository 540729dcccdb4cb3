"""Plain American English: words that docstrings, messages and documentation do not use, and what to write instead.

Read are docstrings and texts of three or more words in the package, in `distill_app.py`, `examples/` and `scripts/`, the
documentation, the notebook's text and the Makefile's help. Code in backticks and in code blocks is not read. Files that
still use such words are in STILL_OPEN: no file may join them, and one that is clean has to leave.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.architecture import PACKAGE, ROOT

COUNTED = "tokens|rows|prompts|completions|requests|characters|bytes|lines|positions|rooms|samples|answers|steps|digits"
AMERICAN = {
    "ise": r"(summar|normal|optim|initial|serial|recogn|general|token|quant|organ|minim|maxim|special|util)"
    r"is(e|es|ed|ing|ation)",
    "our": r"(col|behavi|fav|neighb|hon|lab)ours?(ed|ing|s|hood)?|neighbour\w+|behavioural|colour\w+|favour\w+",
    "re": r"centre[sd]?|fibre|metre[s]?",
    "l": r"label(led|ling)|model(led|ling)|travel(led|ling)|distils?|signall(ed|ing)|cancell(ed|ing)",
    "c": r"licence[sd]?|defence|offence|catalogue[sd]?|analyse[sd]?|artefacts?|whilst",
}


@dataclass(frozen=True)
class Word:
    """A word that is not used: how it is listed in CONTRIBUTING.md, what finds it, and what to write."""

    listed: str
    pattern: str
    better: str


WORDS = (
    Word("is told, are told", r"(?i)\b(is|are|was|were|be|been) told\b(?! apart)", "gets, receives, knows"),
    Word(
        "stands in, stands beside", r"(?i)\b(stands?|stood|standing)\b(?!-alone| for\b)", "is in, is next to, follows"
    ),
    Word("of its own, of their own", r"(?i)\bof (its|their|our|your|one's) own\b", "its, their, a separate"),
    Word("anew", r"(?i)\banew\b", "again"),
    Word("for ever", r"(?i)\bfor ever\b", "forever"),
    Word("is asked for", r"(?i)\b(is|are|was|were|be|been) asked for\b", "is requested, is set, the user gives"),
    Word("mend", r"(?i)\bmend(s|ed|ing)?\b", "fix"),
    Word("most tokens of, fewest rows", rf"(?i)(?<!at )\b(most|least|fewest) ({COUNTED})\b", "maximum, minimum"),
    Word("is none, are none", r"(?<!there )\b(is|are|was|were) none\b", "is not one, has no"),
    Word("is no number", r"(?i)(?<!there )\bis no\b(?! longer\b| more\b| less\b)", "is not a, must be a"),
    Word(
        "where, meaning if", r"(?i)\bwhere (there (is|are|was|were)|none|needed|asked|given|possible|no)\b", "if, when"
    ),
    Word("raises X where", r"\b[Rr]aises [A-Z]\w+ where\b|\bNone where\b", "raises X if, None if"),
    Word("bears, is borne", r"(?i)\b(bears?|borne)\b", "can take, survives"),
    Word("so many, every so manyth", r"(?i)\b(first|every|these|in|of) so many(th)?\b", "the first n, every nth"),
    Word("for want of", r"(?i)\bfor want of\b", "because there is no"),
    Word(
        "summarise, normalise, labelled, colour, centre, licence",
        rf"(?i)\b({'|'.join(AMERICAN.values())})\b",
        "summarize, normalize, labeled, color, center, license",
    ),
)

STILL_OPEN = frozenset(
    """
    distill_lab/grading/graders/judge.py
    distill_lab/recipes/_traces.py
    distill_lab/recipes/verified.py
    distill_lab/train/objectives/_chunked_head.py
    """.split()
)
"""Files that still use words of the list. Remove a file when it is clean; never add one."""

DATA = ("distill_lab/tiny/",)
"""Folders whose texts are data for models; their docstrings are read all the same."""


def without_code(markdown: str) -> str:
    """Markdown without fenced and indented blocks and without code in backticks."""
    text = re.sub(r"(?ms)^```.*?^```", "", markdown)
    text = re.sub(r"(?m)^ {4}.*$", "", text)
    return re.sub(r"``.*?``|`[^`\n]*`", "`code`", text)


def texts_of_python(path: Path) -> str:
    """Docstrings, and string constants and f-strings of three or more words."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: list[str] = []
    inside: set[int] = set()
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    only_docstrings = path.relative_to(ROOT).as_posix().startswith(DATA)
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside.update(id(part) for part in node.values)
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            text = node.value
        else:
            continue
        if id(node) in docstrings or (len(text.split()) >= 3 and not only_docstrings):
            found.append(re.sub(r"``.*?``|`[^`]*`", "`code`", text))
    return "\n\n".join(found)


def text_of(path: Path) -> str:
    if path.suffix == ".py":
        return texts_of_python(path)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    if path.name == "Makefile":
        return "\n".join(re.findall(r"##(.*)", text))
    text = without_code(text)
    # The list itself names the words.
    return text.split("\n## Words\n")[0] if path.name == "CONTRIBUTING.md" else text


FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        *PACKAGE.rglob("*.py"), *(ROOT / "scripts").rglob("*.py"), *(ROOT / "examples").glob("*.py"),
        *(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md"), *(ROOT / "benchmarks").glob("*.md"),
        *(ROOT / ".github").rglob("*.md"), ROOT / "distill_app.py", ROOT / "notebook.ipynb", ROOT / "Makefile",
    )
)  # fmt: skip


def offenses(name: str) -> list[str]:
    """What is wrong with a file, each with the words around it and what to write."""
    text = text_of(ROOT / name)
    return [
        f"{name}: {' '.join(text[max(0, found.start() - 40) : found.end() + 30].split())!r}: write {word.better}"
        for word in WORDS
        for found in re.finditer(word.pattern, text)
    ]


@pytest.mark.parametrize("name", [name for name in FILES if name not in STILL_OPEN])
def test_words(name: str) -> None:
    found = offenses(name)
    assert not found, "\n".join(found)


def test_files_that_are_clean_leave_the_list() -> None:
    clean = {name for name in STILL_OPEN if name not in FILES or not offenses(name)}
    assert not clean, f"remove from STILL_OPEN: {sorted(clean)}"


def test_contributing_lists_the_words() -> None:
    section = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("\n## Words\n")[1].split("\n## ")[0]
    rows = [
        tuple(cell.strip() for cell in line.strip("|").split("|")) for line in re.findall(r"^\|.*\|$", section, re.M)
    ]
    assert rows[2:] == [(word.listed, word.better) for word in WORDS]


@pytest.mark.parametrize(
    "text",
    [
        "The engine is told its size.", "What stands in the file.", "A thread of its own.", "Chosen anew.",
        "Waits for ever.",
        "What is asked for by name.", "Errors to mend.", "Most tokens of one completion.", "A share of 12 is none.",
        "'x' is no number.", "None where there is none.", "As many as it bears.", "It is normalised.", "The colours.",
    ],
)  # fmt: skip
def test_the_list_finds(text: str) -> None:
    assert [word for word in WORDS if re.search(word.pattern, text)]


@pytest.mark.parametrize(
    "text",
    [
        "There is no such file.", "It is no longer needed.", "At most tokens.", "The standard library.",
        "A stand-alone file.", "It stands for the first one.", "One that has none.", "None if there is none.",
        "Understands most of it.", "It stops where it was killed.", "Returns None.", "alibaba-pai/DistilQwen_100k",
        "Your own data.", "Most users.", "otherwise, precise, exercise", "It is None.", "four hours",
    ],
)  # fmt: skip
def test_the_list_leaves_alone(text: str) -> None:
    assert not [word for word in WORDS if re.search(word.pattern, text)]
