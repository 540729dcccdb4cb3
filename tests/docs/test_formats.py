"""docs/formats.md: every example is read as the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from distill_lab.config import DataConfig
from distill_lab.data import adapters
from distill_lab.data.columns import TARGETS
from distill_lab.data.records import Records
from distill_lab.data.sources import KINDS
from tests.helpers import ROOT

PAGE = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"(?ms)^```json\n(.*?)\n(.*?)\n```", PAGE)


@pytest.mark.parametrize(("row", "said"), EXAMPLES)
def test_an_example_is_read_as_the_page_says(tmp_path: Path, row: str, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(row, encoding="utf-8")
    (record,) = Records(DataConfig(path=str(path)))
    completion = record.completion[0] if record.completion else {}
    wanted = json.loads(said)
    found = {
        "prompt": record.prompt.messages[-1]["content"],
        "completion": completion.get("content"),
        "thinking": completion.get("thinking"),
        "answer": record.prompt.answer,
    }
    assert found == {"thinking": None, **wanted}


def test_the_page_has_every_adapter_suffix_and_target() -> None:
    seen = {adapters.choose(json.loads(row)) for row, _ in EXAMPLES}
    # OmniThought's and Self-Instruct's rows are long; their adapters have examples.
    assert set(adapters.names()) - seen == {"omnithought", "self_instruct"}
    assert {suffix for suffix in KINDS if f"`{suffix}`" not in PAGE} == {".jsonlines", ".feather"}
    assert all(f"`{target}`" in PAGE for target in TARGETS)
