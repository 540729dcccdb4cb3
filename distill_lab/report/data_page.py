"""What `distill data` found, as a page: Profile -> one HTML file that needs nothing else.

    write_data_page(found, Path("data.html"))

The page loads nothing and runs no script; everything that the data says is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from distill_lab.data.contamination import Overlap
from distill_lab.data.near_duplicates import MAX_COMPARED
from distill_lab.data.profile import MAX_MEASURED, PERCENTILES, Piece, Profile, percentile
from distill_lab.formatting import shown
from distill_lab.report.document import document, write_document
from distill_lab.report.overlap import first_of_each, overlap_pairs
from distill_lab.report.style import PAGE_STYLE

DATA_STYLE = """
mark{background:var(--good-bg);color:var(--good);border-radius:4px;box-decoration-break:clone;
-webkit-box-decoration-break:clone;padding:1px 2px}
h1{overflow-wrap:anywhere}
.example pre{white-space:pre-wrap;overflow-wrap:anywhere}td.text{max-width:34ch;overflow-wrap:anywhere}
"""
MAX_CHARS = 4000
"""Characters of an example that are shown."""
PAIRS_SHOWN = 6
TEXT = ' class="text"'
LONG_CELL = 20
"""Cells with more characters are text: they start at the left and break anywhere."""


def write_data_page(found: Profile, path: Path) -> None:
    """Write the page, atomically."""
    sections = [_head(found), _tiles(found), _examples(found), _columns(found), _lengths(found), _marks(found)]
    sections += [_duplicates(found), _overlaps(found), _problems(found)]
    body = f"<main>{''.join(filter(None, sections))}</main>"
    write_document(path, document(f"distill data: {found.path}", body, style=PAGE_STYLE + DATA_STYLE))


def _head(found: Profile) -> str:
    read_by = ", ".join(f"{name} ({number:,})" for name, number in found.adapters.most_common())
    parts = "; ".join(f"{number:,} rows have {part}" for part, number in found.parts.items() if number)
    return (
        f'<p class="eyebrow">Data · {shown(found.split)}</p><h1>{shown(found.path)}</h1>'
        f"<p>Read by the adapter {shown(read_by)}. {shown(parts[:1].upper() + parts[1:])}.</p>"
    )


def _tiles(found: Profile) -> str:
    dropped = found.counts.rows_in - found.counts.kept
    near = f"{found.num_near:,} near duplicates"
    if found.duplicates.num_compared == MAX_COMPARED:
        near += f" among the first {MAX_COMPARED:,} prompts"
    tiles = [
        _tile("Rows", f"{found.counts.kept:,}", [f"{dropped:,} cannot be read" if dropped else "all can be read"]),
        _tile("Repeated prompts", f"{found.duplicates.num_same:,}", [near]),
    ]
    if found.row_lengths:
        notes = [f"{found.unit}, the median of the prompt: {percentile(found.prompt_lengths, 50):,}"]
        tiles.insert(1, _tile("Median length", f"{percentile(found.row_lengths, 50):,}", notes))
    if found.test:
        notes = [f"of {found.num_test:,} prompts in {found.test}"]
        tiles.append(_tile("Overlap with the test", f"{found.overlaps.total():,}", notes))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _tile(title: str, value: str, notes: Iterable[str]) -> str:
    small = "".join(f'<span class="small muted">{shown(note)}</span>' for note in notes)
    return f'<section class="card tile"><h3>{shown(title)}</h3><span class="number">{value}</span>{small}</section>'


def _examples(found: Profile) -> str:
    if not found.examples:
        return ""
    how = "through its chat template" if found.unit == "tokens" else "without a chat template (give --student)"
    cards = "".join(
        f'<article class="card example"><span class="small muted">{shown(name)}</span>'
        f'<pre dir="auto">{_marked(pieces)}</pre></article>'
        for name, pieces in found.examples
    )
    return (
        f'<h2>The first rows as the student sees them</h2><p class="muted">Shown {how}. What the student learns to '
        f"write is <mark>marked</mark>.</p>{cards}"
    )


def _marked(pieces: Iterable[Piece]) -> str:
    left, parts = MAX_CHARS, []
    for piece in pieces:
        text = shown(piece.text[:left])
        parts.append(f"<mark>{text}</mark>" if piece.trained else text)
        left -= len(piece.text)
        if left <= 0:
            parts.append('<span class="muted"> [… cut here]</span>')
            break
    return "".join(parts)


def _columns(found: Profile) -> str:
    rows = [
        (
            name,
            f"{column.filled:,}",
            "not used"
            if name in found.unused
            else f"{column.filled - column.unused:,} rows"
            if column.unused
            else "used",
            column.example[:120],
        )
        for name, column in found.columns.items()
    ]
    note = '<p class="muted">What is not used stays in each prompt\'s meta; the model never sees it.</p>'
    return f"<h2>Columns</h2>{note if found.unused else ''}" + _table(("Column", "Filled", "Used", "Example"), rows)


def _lengths(found: Profile) -> str:
    if not found.row_lengths:
        return ""
    rows = [
        (title, *(f"{percentile(lengths, share):,}" for share in PERCENTILES))
        for title, lengths in (("Prompt", found.prompt_lengths), ("Prompt and answer", found.row_lengths))
    ]
    titles = ("", *("longest" if share == 100 else "median" if share == 50 else f"{share}%" for share in PERCENTILES))
    notes = [f"In {found.unit}."]
    if found.unit == "tokens":
        share = found.num_cut / len(found.row_lengths)
        notes.append(
            f"Rows longer than train.max_length {found.max_length:,}, which training drops: {found.num_cut:,} ({share:.1%})."
        )
    if len(found.row_lengths) >= MAX_MEASURED:
        notes.append(f"Measured on the first {MAX_MEASURED:,} rows.")
    return f'<h2>Lengths</h2>{_table(titles, rows)}<p class="small muted after">{shown(" ".join(notes))}</p>'


def _marks(found: Profile) -> str:
    parts = []
    for title, counts, meaning in (
        ("Control tokens in texts", found.control, "They are encoded as plain text, so they end no turn."),
        (
            "Thinking tags in texts",
            found.thinking,
            "They were not read as thinking, and the student sees them as text.",
        ),
    ):
        if counts:
            rows = [(name, f"{number:,}") for name, number in counts.most_common(20)]
            parts.append(f'<h2>{title}</h2><p class="muted">{meaning}</p>{_table(("Token", "Rows"), rows)}')
    return "".join(parts)


def _duplicates(found: Profile) -> str:
    pairs = [*found.duplicates.pairs, *found.near]
    if not pairs:
        return ""
    note = "Texts are compared without case, spacing, punctuation and system prompt."
    return f'<h2>Duplicates</h2><p class="muted">{note}</p>{_pairs(pairs, ("Row", "Earlier row"))}'


def _overlaps(found: Profile) -> str:
    if not found.test:
        return ""
    if not found.overlaps:
        text = f"No prompt overlaps with the {found.num_test:,} of {found.test}."
        return f"<h2>Overlap with the test</h2><p>{shown(text)}</p>"
    rows = [(reason, f"{number:,}") for reason, number in found.overlaps.most_common()]
    pairs = _pairs(found.overlap_pairs, ("Row", "Test"))
    return f"<h2>Overlap with the test</h2>{_table(('Reason', 'Prompts'), rows)}{pairs}"


def _pairs(pairs: Iterable[tuple[str, Overlap]], titles: tuple[str, str]) -> str:
    rows = [{"id": name, **pair.to_json()} for name, pair in pairs]
    return overlap_pairs(list(first_of_each(rows, "reason", PAIRS_SHOWN // 2)), titles=titles)


def _problems(found: Profile) -> str:
    lines = [f"Rows that the chat template refuses: {number:,} ({reason})" for reason, number in found.refused.items()]
    lines += [str(error) for error in found.invalid[:10]]
    return (
        f"<h2>Rows that cannot be used</h2><ul>{''.join(f'<li>{shown(line)}</li>' for line in lines)}</ul>"
        if lines
        else ""
    )


def _table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = "".join(f'<th scope="col"{TEXT if title == "Example" else ""}>{title}</th>' for title in titles)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="card scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    return f'<td{TEXT if len(text) > LONG_CELL else ""} dir="auto">{shown(text)}</td>'
