"""Ollama Modelfiles: the Go template renders what the model's own template does, stops and settings are the model's."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from distill_lab.errors import UserError
from distill_lab.export._modelfile import Family, family_of, go_template, modelfile
from distill_lab.tiny import FAMILY

GO = """
package main
import ("encoding/json"; "os"; "strings"; "text/template")
type Message struct { Role, Content, Thinking string }
type Case struct { Template, System string; Messages []*Message; IsThinkSet, Think bool }
func main() {
	var cases []Case
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil { panic(err) }
	out := []string{}
	for _, c := range cases {
		var b strings.Builder
		values := map[string]any{"System": c.System, "Messages": c.Messages, "IsThinkSet": c.IsThinkSet, "Think": c.Think}
		if err := template.Must(template.New("").Parse(c.Template)).Execute(&b, values); err != nil { panic(err) }
		out = append(out, b.String())
	}
	json.NewEncoder(os.Stdout).Encode(out)
}
"""
CHECKED = "7ed7d3557024"
"""Digest of the templates that were last rendered with Go; run this file where Go is installed after changing one."""
CONVERSATIONS = (
    [{"role": "user", "content": "Hi\n there "}],
    [
        {"role": "system", "content": "Be <b>brief</b>.\n"},
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y"},
        {"role": "user", "content": "z"},
    ],
)


def tiny() -> Any:
    return AutoTokenizer.from_pretrained(FAMILY / "student")


def templates() -> list[str]:
    return [
        go_template(Family(None, thinks), thinking=mode) for thinks in (True, False) for mode in (None, True, False)
    ]


def test_the_templates_are_those_that_go_rendered() -> None:
    assert hashlib.sha256("\0".join(templates()).encode()).hexdigest()[:12] == CHECKED


@pytest.mark.skipif(
    not shutil.which("go"), reason="no Go here; the digest above holds the templates to what it rendered"
)
@pytest.mark.parametrize("name", ["tiny", "qwen2.5", "qwen3"])
def test_go_renders_what_the_models_own_template_does(name: str, tmp_path: Path, request: Any) -> None:
    folder = FAMILY / "student" if name == "tiny" else request.getfixturevalue("shared_data") / "tokenizers" / name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    family = family_of(tokenizer)
    cases, expected = [], []
    switches = ((False, False), (True, False), (True, True))
    for thinking, talk, (is_set, think) in itertools.product((None, False), CONVERSATIONS, switches):
        given = talk[0]["role"] == "system"
        system = talk[0]["content"] if given else (family.system or "")
        whole = talk if given or not system else [{"role": "system", "content": system}, *talk]
        rows = [
            {"Role": row["role"], "Content": row["content"], "Thinking": "hm" * (row["role"] == "assistant")}
            for row in whole
        ]
        case = {"Template": go_template(family, thinking=thinking), "System": system, "Messages": rows}
        cases.append(case | {"IsThinkSet": is_set, "Think": think})
        mode = think if is_set else thinking
        settings = {} if mode is None else {"enable_thinking": mode}
        expected.append(tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False, **settings))
    (tmp_path / "main.go").write_text(GO)
    done = subprocess.run(
        ["go", "run", "main.go"], input=json.dumps(cases), cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == expected


def test_a_modelfile_has_the_file_stops_and_settings_of_the_model() -> None:
    text = modelfile(
        tiny(), "s-Q8_0.gguf", {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.05}, thinking=False
    )
    lines = text.splitlines()
    assert lines[0] == "FROM ./s-Q8_0.gguf"
    assert [line for line in lines if line.startswith("PARAMETER")] == [
        'PARAMETER stop "<|im_end|>"', 'PARAMETER stop "<|endoftext|>"', "PARAMETER temperature 0.7", "PARAMETER top_p 1",
        "PARAMETER top_k 20", "PARAMETER min_p 0", "PARAMETER repeat_penalty 1.05",
    ]  # fmt: skip
    assert "SYSTEM" not in text
    assert "PARAMETER temperature 0\n" in modelfile(tiny(), "s.gguf", {}, thinking=None)


def test_a_default_system_message_goes_into_the_modelfile(shared_data: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "qwen2.5")
    family = family_of(tokenizer)
    assert family.system is not None
    assert family.system.startswith("You are Qwen")
    assert f'SYSTEM """{family.system}"""' in modelfile(tokenizer, "s.gguf", {}, thinking=None)
    tokenizer.chat_template = str(tokenizer.chat_template).replace("You are Qwen,", 'You are """Qwen,')
    with pytest.raises(UserError, match='contains """'):
        modelfile(tokenizer, "s.gguf", {}, thinking=None)


@pytest.mark.parametrize(
    "change",
    [
        ("'<|im_start|>' + message.role", "'<|im_start|>' + message.role | upper"),
        ("content + '<|im_end|>\\n'", "content | trim + '<|im_end|>\\n'"),
        ("<think>\\n\\n</think>\\n\\n", "<think></think>"),
        ("'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n<think>\\n'"),
    ],
)
def test_a_template_of_another_family_is_refused(change: tuple[str, str]) -> None:
    tokenizer = tiny()
    before = str(tokenizer.chat_template)
    tokenizer.chat_template = before.replace(*change)
    assert tokenizer.chat_template != before
    with pytest.raises(UserError, match="neither ChatML nor Qwen3's"):
        family_of(tokenizer)
