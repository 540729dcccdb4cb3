"""What the answers of servers cost, for the report: summary.json's `spending` -> a table by stage."""

from __future__ import annotations

from distill_lab.evaluation.summary_parts import Paid
from distill_lab.formatting import shown
from distill_lab.generation.prices import Spending, money
from distill_lab.report.elements import head, row_head, table


def spending_section(found: Paid | None) -> str:
    """The table, with a line for all stages; empty if no server was asked."""
    if not found:
        return ""
    rows = {**found.stages, "All": found.total}
    titles = ("Answers of servers", "Requests", "Prompt tokens", "From the prompt cache", "Answer tokens", "Cost")
    body = (row_head(shown(name)) + _cells(row) for name, row in rows.items())
    notes = [
        "In the currency of the prices. Answers from the lab's cache were paid by an earlier run and do not count."
    ]
    if found.total.batched:
        notes.append(f"{found.total.batched:,} requests were sent in batches, at half the price.")
    if found.total.estimated:
        notes.append(f"{found.total.estimated:,} requests are estimated from the lengths of the texts.")
    return (
        f"<h2>Paid to servers</h2>{table('Paid to servers', map(head, titles), body)}"
        f'<p class="small muted after">{" ".join(notes)}</p>'
    )


def _cells(row: Spending) -> str:
    counts = [f"{number:,}" for number in (row.requests, row.input_tokens, row.cached_tokens, row.output_tokens)]
    return "".join(f"<td>{text}</td>" for text in [*counts, "–" if row.cost is None else money(row.cost)])
