"""docs/hardware.md: its tables are what the estimator says today, for every preset and machine."""

from __future__ import annotations

import pytest

from distill_lab.errors import UserError
from distill_lab.planning import hardware_table
from tests.helpers import ROOT

DOCUMENT = ROOT / "docs" / "hardware.md"


def test_the_tables_are_the_estimators() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert hardware_table.update_tables(text) == text, (
        "run python -m distill_lab.planning.hardware_table docs/hardware.md"
    )


def test_every_machine_and_preset_has_a_row_and_fits_a_gpu() -> None:
    rows = [line.split(" | ") for line in hardware_table.tables().splitlines() if line.startswith("| ")]
    presets = [row for row in rows if row[0][2:] in {card.name for card in hardware_table.CARDS}]
    assert len(presets) == 6 * 10
    assert all("does not fit" not in " ".join(row) for row in presets if "laptop" not in row[0])
    assert {row[-1].split()[1] for row in presets if "laptop" not in row[0]} == {"min"}
    assert all(row[-1].split()[0] == "-" for row in presets if "laptop" in row[0])  # no teacher, so no time


def test_a_changed_document_is_noticed() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert hardware_table.update_tables(text.replace("full fine-tune, 12.0 GB", "full fine-tune, 11.0 GB")) == text
    with pytest.raises(UserError, match="around the tables"):
        hardware_table.update_tables("no marks")


def test_the_readme_links_to_it() -> None:
    assert "(docs/hardware.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
