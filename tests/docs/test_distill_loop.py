"""examples/distill_loop.py: it runs on the tiny family, learns, and needs nothing else of the lab."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent.parent
FILE = ROOT / "examples" / "distill_loop.py"


@pytest.fixture(scope="module")
def loop() -> Any:
    spec = importlib.util.spec_from_file_location("distill_loop", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_of_the_lab_it_takes_the_directory_of_the_tiny_family_alone() -> None:
    imported = [ast.unparse(node) for node in ast.walk(ast.parse(FILE.read_text())) if isinstance(node, ast.ImportFrom)]
    assert [line for line in imported if "distill_lab" in line] == ["from distill_lab.tiny import FAMILY"]


def test_it_distills_and_saves_a_student(loop: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = loop.main(["--rows", "128", "--test", "8", "--epochs", "2", "--out", str(tmp_path / "student")])
    assert 0 <= before <= 1
    assert 0 <= after <= 1
    losses = [float(found) for found in re.findall(r"epoch \d: ([\d.]+) nats", capsys.readouterr().out)]
    assert losses[1] < losses[0]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "student").config.num_hidden_layers == 2


def test_training_and_test_share_no_prompt(loop: Any) -> None:
    prompts = loop.make_prompts(500, seed=0)
    assert len(set(prompts)) == 500
    assert prompts == loop.make_prompts(500, seed=0)


def test_only_the_answer_is_trained(loop: Any) -> None:
    seen: list[Any] = []

    class Student(loop.torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = loop.torch.nn.Embedding(16, 16)

        def forward(self, ids: Any, use_cache: bool) -> Any:
            seen.append(ids)
            return type("Output", (), {"logits": self.table(ids)})

    class Tokenizer:
        pad_token_id = 0

        def apply_chat_template(self, messages: Any, **settings: Any) -> str:
            return messages[0]["content"]

        def __call__(self, text: str, **settings: Any) -> Any:
            return type("Encoding", (), {"input_ids": [int(word) for word in text.split()]})

    student = Student()
    loop.train(student, Tokenizer(), ["1 2 3", "4", "5"], [[6, 7], [8, 7], None], epochs=1, learning_rate=0.1)
    assert sorted(map(tuple, seen[0].tolist())) == [(1, 2, 3, 6, 7), (4, 8, 7, 0, 0)]
    changed = (student.table.weight.grad != 0).any(1).nonzero().flatten().tolist()
    # The tokens before an answer's tokens, the last of the prompt among them; nothing inside the prompt.
    assert changed == [3, 4, 6, 8]
