"""Tables for other programs: columns and rows -> CSV, GitHub's Markdown, or LaTeX (booktabs).

    found = TextTable(("run", "score"), [("runs/a", 0.9)])
    found.csv()           run,score / runs/a,0.9
    found.markdown()      | run | score | ...
    found.latex("Runs")   \\begin{table} ...

Text from models, data and paths stays text: in CSV it cannot become a formula, in Markdown and LaTeX no markup.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from distill_lab.formatting import clean

Cell = str | int | float | None
FORMULA = "=+-@\t\r"
"""What a cell begins with that a spreadsheet computes."""
LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}", "×": r"$\times$",
    "–": "--", "≥": r"$\geq$", '"': r"''", "→": r"$\to$",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TextTable:
    """Columns and rows; numbers are numbers, None is an empty cell."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]

    def csv(self) -> str:
        """Comma-separated, with the columns in the first line. Numbers have all their digits."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(map(csv_cell, self.columns))
        writer.writerows([csv_cell(cell) for cell in row] for row in self.rows)
        return stream.getvalue()

    def markdown(self) -> str:
        """GitHub's form; columns of numbers at the right."""
        heads = [markdown_text(column) for column in self.columns]
        lines = [_line(heads), _line("---:" if right else "---" for right in self._right())]
        lines += [_line(map(markdown_text, map(text_of, row))) for row in self.rows]
        return "\n".join(lines) + "\n"

    def latex(self, caption: str, label: str) -> str:
        """A table environment for the package booktabs."""
        shape = "".join("r" if right else "l" for right in self._right())
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{latex_text(caption)}}}", rf"\label{{{label}}}"]
        lines += [rf"\begin{{tabular}}{{{shape}}}", r"\toprule", _latex_row(self.columns), r"\midrule"]
        lines += [_latex_row(map(text_of, row)) for row in self.rows]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"

    def _right(self) -> list[bool]:
        """Whether a column holds numbers, as they are or written with their unit; the first column has names."""
        columns = list(zip(*self.rows, strict=True)) or [() for _ in self.columns]
        return [place > 0 and bool(of) and all(map(_like_number, of)) for place, of in enumerate(columns)]


def _like_number(cell: Cell) -> bool:
    return not isinstance(cell, str) or not cell or bool(re.match(r"[-+–<]?\s?\d|–$", cell))


def text_of(cell: Cell) -> str:
    """A cell for people: numbers with at most four digits after the point."""
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:,.4f}".rstrip("0").rstrip(".")
    return f"{cell:,}" if isinstance(cell, int) else " ".join(clean(cell).split())


def csv_cell(cell: Cell) -> Cell:
    """A cell that no spreadsheet computes: text that looks like a formula gets an apostrophe in front."""
    if not isinstance(cell, str):
        return "" if cell is None else cell
    text = clean(cell).replace("\n", " ")
    return f"'{text}" if text.lstrip(" ")[:1] in tuple(FORMULA) or cell[:1] in ("\t", "\r") else text


def markdown_text(text: str) -> str:
    """Text for one cell or line of Markdown: no markup, no HTML, no table of it."""
    text = " ".join(clean(text).split())
    text = re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"(?i)(https?|ftp)(:)|(www)(\.)|(@)", lambda found: "".join(_broken(found)), text)


def _broken(found: re.Match[str]) -> list[str]:
    """The parts of what GitHub would make a link or a mention of, with a mark between that shows as nothing."""
    parts = [part for part in found.groups() if part]
    return [*parts[:-1], "<!-- -->", parts[-1]] if len(parts) > 1 else [parts[0], "<!-- -->"]


def latex_text(text: str) -> str:
    """Text for LaTeX, in which nothing is a command."""
    return "".join(LATEX.get(letter, letter) for letter in " ".join(clean(text).split()))


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(map(latex_text, cells)) + r" \\"
