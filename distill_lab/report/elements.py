"""Small parts of every page: marks, tables that scroll, lists of facts. Text must be escaped by the caller unless said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from distill_lab.formatting import shown


def badge(text: str, kind: str, *, sign: bool = True) -> str:
    """A small mark on the page. kind: good, bad, open or empty."""
    mark = {"good": "✓ ", "bad": "✗ ", "open": "? "}.get(kind, "") if sign else ""
    return f'<span class="badge {kind}">{mark}{text}</span>'


def table(label: str, heads: Iterable[str], rows: Iterable[str], *, classes: str = "") -> str:
    """A table in a card that scrolls, also with the keyboard, if it is too wide.

    label: what it shows, escaped here. heads: HTML of the head's cells, `<th>` included. rows: HTML of each row's cells.
    """
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="card scroll {classes}" tabindex="0" role="region" aria-label="{shown(label)}"><table>'
        f"<thead><tr>{''.join(heads)}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def head(title: str, kind: str = "") -> str:
    """A cell of a table's head; title: escaped here."""
    if not title:
        return "<td></td>"
    named = f' class="{kind}"' if kind else ""
    return f'<th scope="col"{named}>{shown(title)}</th>'


def row_head(title: str) -> str:
    """The first cell of a row; title: HTML."""
    return f'<th scope="row">{title}</th>'


def facts(found: Mapping[str, str]) -> str:
    """Names and values as a list, both escaped here; a fact without a value is left out."""
    parts = "".join(
        f"<div><dt>{shown(name)}</dt><dd><bdi>{shown(value)}</bdi></dd></div>" for name, value in found.items() if value
    )
    return f'<dl class="facts">{parts}</dl>' if parts else ""


def contents(sections: Iterable[tuple[str, str]]) -> str:
    """Links to the parts of a page: (id, title)."""
    links = "".join(f'<li><a href="#{name}">{shown(title)}</a></li>' for name, title in sections)
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>'
