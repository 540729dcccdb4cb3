"""The frame of a page: its policy allows its own style and script and nothing else, and no data can leave their block."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import unicodedata

import pytest

from distill_lab.formatting import clean
from distill_lab.report.document import document, fast_clean, json_block
from tests.made_runs import HOSTILE


def test_the_policy_names_exactly_the_style_and_the_script_of_the_page() -> None:
    page = document("t", "<main></main>", style="p{}", script="let x = 1;", data={"d": [1]})
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)[0]
    hashes = {
        kind: "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for kind, text in (("style", "p{}"), ("script", "let x = 1;"))
    }
    assert policy.startswith(f"default-src 'none'; style-src '{hashes['style']}'; script-src '{hashes['script']}';")
    assert "unsafe" not in policy
    assert "script-src 'none'" in document("t", "", style="p{}")


@pytest.mark.parametrize("text", [HOSTILE, "</script><script>x", "<!--<script>", "\u2028\u2029", "]]>", "&lt;"])
def test_data_stay_in_their_block_and_come_out_as_they_were(text: str) -> None:
    block = json_block({"text": [text]})
    assert not set("<>&\u2028\u2029") & set(block)
    assert json.loads(block) == {"text": [text]}
    assert document("t", "", style="", data={"d": text}).count("</script>") == 1


def test_the_fast_way_to_clean_is_the_same_as_the_slow_one() -> None:
    everything = "".join(map(chr, range(0x20000))) + HOSTILE
    assert fast_clean(everything).replace("\t", "") == clean(everything)
    assert fast_clean("a\tb") == "a\tb"
    assert unicodedata.category("\u202e") == "Cf"
    assert fast_clean("\u202e") == ""


def test_a_title_is_text() -> None:
    assert "<title>&lt;/title&gt;&lt;script&gt;</title>" in document("</title><script>", "", style="")
