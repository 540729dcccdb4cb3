"""CONTRIBUTING.md lists the floors, the marks and the folders of the tests as they are; GitHub's files say what there is."""

from __future__ import annotations

import re

from scripts.architecture import PACKAGE, ROOT, floors

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_floors_are_those_of_the_layers() -> None:
    listed = [line.split() for line in re.findall(r"^ {4}(\S.*)$", section("Floors"), re.MULTILINE)]
    assert listed == floors()


def test_every_mark_is_listed() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    marks = re.findall(r'^ {4}"(\w+): ', project.split("markers = [")[1].split("]")[0], re.MULTILINE)
    assert re.findall(r"^\| `(\w+)` \|", section("Tests"), re.MULTILINE) == marks


def test_folders_of_tests_are_those_of_the_package() -> None:
    others = {"docs", "gpu", "interop"}
    for folder in (ROOT / "tests").iterdir():
        if folder.is_dir() and (folder / "__init__.py").exists() and folder.name not in others:
            assert (PACKAGE / folder.name).is_dir(), folder.name
    assert all(f"`tests/{name}/`" in section("Tests") for name in others)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for path in (ROOT / "CONTRIBUTING.md", *(ROOT / ".github").rglob("*.md"), *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\bmake ([a-z][a-z-]*)\b(?= |`|=|$)", path.read_text(encoding="utf-8"), re.MULTILINE):
            if re.search(r"`make [^`]*$|^ {4}make", f"`make {target}"):
                assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{path.name}: make {target}"


def test_links_lead_somewhere() -> None:
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / ".github").rglob("*.md")):
        for link, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([\w-]*))?\)", path.read_text(encoding="utf-8")):
            target = path.parent / link if link else path
            assert target.exists(), f"{path.relative_to(ROOT)}: {link}"
            if anchor:
                assert anchor in anchors(target.read_text(encoding="utf-8")), (
                    f"{path.relative_to(ROOT)}: {link}#{anchor}"
                )


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    titles = re.findall(r"(?m)^#+ (.*)$", re.sub(r"(?ms)^```.*?^```", "", text))
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_continuous_integration_runs_what_anyone_can_run() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert re.findall(r"^ +- run: (.*)$", workflow, re.MULTILINE) == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    [version] = re.findall(r'__version__ = "(.*)"', (PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    assert f"\nversion: {version}\n" in citation
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
