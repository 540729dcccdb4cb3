"""What `distill data` prints: a Profile as text of at most 80 columns, or of the terminal's width if that is smaller."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from distill_lab.data.contamination import Overlap
from distill_lab.data.near_duplicates import MAX_COMPARED
from distill_lab.data.profile import MAX_MEASURED, PERCENTILES, Piece, Profile, percentile
from distill_lab.formatting import clean
from distill_lab.terminal import Terminal

MAX_WIDTH = 80
MAX_EXAMPLE_CHARS, MAX_PAIR_CHARS, PAIRS_SHOWN = 1200, 160, 3


def print_profile(terminal: Terminal, found: Profile) -> None:
    """Print all of it."""
    out = _Out(terminal)
    out.line(_head(found), style="bold")
    read_by = ", ".join(f"{name} ({number:,} rows)" for name, number in found.adapters.most_common())
    out.line(f"read by    {read_by}")
    parts = ", ".join(f"{part} in {number:,}" for part, number in found.parts.items() if number)
    out.line(f"holds      {parts}" if parts else "holds      prompts only")
    for error in found.invalid[:3]:
        out.line(f"not read   {error}", style="red")
    _columns(out, found)
    _examples(out, found)
    _lengths(out, found)
    _marks(out, found)
    _duplicates(out, found)
    _overlaps(out, found)


class _Out:
    """Prints lines that are wrapped between words."""

    def __init__(self, terminal: Terminal) -> None:
        self.console = terminal.console
        self.width = min(MAX_WIDTH, self.console.width)

    def line(self, text: str | Text, *, style: str = "", indent: int = 11) -> None:
        """A paragraph; its further lines are indented."""
        whole = text if isinstance(text, Text) else Text(clean(text), style=style)
        for number, line in enumerate(whole.wrap(self.console, self.width - indent if indent else self.width)):
            self.console.print(Text(" " * indent if number and indent else "") + line)

    def block(self, text: Text, *, indent: str = "  ") -> None:
        """Text as it is, wrapped, every line indented."""
        for line in text.wrap(self.console, self.width - len(indent)):
            line.rstrip()
            self.console.print(Text(indent) + line)

    def title(self, text: str) -> None:
        """A heading."""
        self.console.print()
        self.console.print(Text(text, style="bold cyan"))


def _head(found: Profile) -> str:
    counts = found.counts
    dropped = f", {counts.rows_in - counts.kept:,} cannot be read" if counts.kept < counts.rows_in else ""
    return f"{found.path}, {found.split}: {counts.kept:,} rows{dropped}"


def _columns(out: _Out, found: Profile) -> None:
    out.title("Columns")
    unused = found.unused
    longest = max((len(clean(name)) for name in found.columns), default=0)
    table = Table(box=None, pad_edge=False, show_header=False, width=out.width - 2)
    for width in (min(longest, 22), 8, 8):
        table.add_column("", min_width=width, max_width=width, overflow="ellipsis", no_wrap=True)
    table.add_column("", ratio=1, overflow="ellipsis", no_wrap=True)
    for name, column in found.columns.items():
        used = "not used" if name in unused else "in part" if column.unused else "used"
        example = " ".join(clean(column.example).split())
        style = "yellow" if name in unused else ""
        table.add_row(Text(clean(name)), Text(used, style=style), f"{column.filled:,}", Text(example, style="dim"))
    out.console.print(table, soft_wrap=False)
    if unused:
        out.line("What is not used stays in each prompt's meta; the model never sees it.", style="dim", indent=0)


def _examples(out: _Out, found: Profile) -> None:
    how = "through the chat template" if found.unit == "tokens" else "without a chat template (give --student)"
    marked = "in green" if out.console.color_system else "between [[ and ]]"
    out.title(f"The first rows, {how}")
    out.line(f"What the student learns to write is {marked}.", style="dim", indent=0)
    for name, pieces in found.examples:
        out.console.print(Text(f"{clean(name)}", style="bold"))
        out.block(marked_text(pieces, color=bool(out.console.color_system)))


def marked_text(pieces: Iterable[Piece], *, color: bool) -> Text:
    """The pieces as one text, those that are trained in green or in brackets."""
    text, left = Text(), MAX_EXAMPLE_CHARS
    for piece in pieces:
        shown = clean(piece.text[:left].expandtabs(4))
        if not piece.trained:
            text.append(shown)
        elif color:
            text.append(shown, style="green")
        else:
            text.append(f"[[{shown}]]")
        left -= len(piece.text)
        if left <= 0:
            text.append(" [... cut here]", style="dim")
            break
    text.rstrip()
    return text


def _lengths(out: _Out, found: Profile) -> None:
    if not found.row_lengths:
        return
    out.title(f"Lengths in {found.unit}")
    titles = ["longest" if share == 100 else "median" if share == 50 else f"{share}%" for share in PERCENTILES]
    table = Table("", *titles, box=None, pad_edge=False, header_style="dim")
    for column in table.columns[1:]:
        column.justify = "right"
    for title, lengths in (("prompt", found.prompt_lengths), ("prompt and answer", found.row_lengths)):
        table.add_row(title, *(f"{percentile(lengths, share):,}" for share in PERCENTILES))
    out.console.print(table)
    if found.unit == "tokens":
        share = found.num_cut / len(found.row_lengths)
        style = "yellow" if found.num_cut else ""
        text = f"rows longer than {found.max_length:,} tokens, which training drops: {found.num_cut:,} ({share:.1%})"
        out.line(text, style=style, indent=0)
    else:
        out.line("Give --student MODEL to count tokens, and rows that are too long.", style="dim", indent=0)
    if len(found.row_lengths) >= MAX_MEASURED:
        out.line(f"Measured on the first {MAX_MEASURED:,} rows.", style="dim", indent=0)
    for reason, number in found.refused.items():
        out.line(f"rows that the chat template refuses: {number:,} ({reason})", style="red", indent=0)


def _marks(out: _Out, found: Profile) -> None:
    for title, counts in (("Control tokens", found.control), ("Thinking tags", found.thinking)):
        if counts:
            out.title(f"{title} in texts, and how many rows have them (they stay plain text)")
            out.line(", ".join(f"{name} {number:,}" for name, number in counts.most_common(10)), indent=0)


def _duplicates(out: _Out, found: Profile) -> None:
    out.title("Duplicates")
    limit = f" (among the first {MAX_COMPARED:,})" if found.duplicates.num_compared == MAX_COMPARED else ""
    text = f"repeated prompts: {found.duplicates.num_same:,}, near duplicates{limit}: {found.num_near:,}"
    out.line(text, indent=0)
    _pairs(out, found.duplicates.pairs[:PAIRS_SHOWN])
    _pairs(out, found.near[:PAIRS_SHOWN])


def _overlaps(out: _Out, found: Profile) -> None:
    if not found.test:
        return
    out.title(f"Overlap with the test, {clean(found.test)} (prompts: {found.num_test:,})")
    for reason, number in found.overlaps.most_common():
        out.line(f"{reason}: {number:,}", style="yellow", indent=0)
    if not found.overlaps:
        out.line("no prompt overlaps with the test", indent=0)
    for reason in found.overlaps:
        _pairs(out, [pair for pair in found.overlap_pairs if pair[1].reason == reason][:PAIRS_SHOWN])


def _pairs(out: _Out, pairs: Sequence[tuple[str, Overlap]]) -> None:
    for name, pair in pairs:
        out.console.print(Text(f"  {clean(pair.reason)}: {clean(name)} and {clean(pair.test_id)}", style="bold"))
        for text in (pair.text, pair.test_text):
            short = " ".join(clean(text).split())
            out.block(Text(short if len(short) <= MAX_PAIR_CHARS else f"{short[:MAX_PAIR_CHARS]} ..."), indent="    ")
