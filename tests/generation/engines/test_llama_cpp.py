"""The engine llama_cpp: greedy answers are those of transformers on the same weights; what it cannot answer is counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import ModelError, UserError
from distill_lab.export._gguf_weights import unpacked, write_gguf
from distill_lab.generation.engines import check_engine, complete, llama_cpp, load_engine
from distill_lab.generation.engines.llama_cpp import LlamaCppEngine
from distill_lab.generation.engines.transformers import TransformersEngine
from distill_lab.models.loading import load_tokenizer
from distill_lab.tiny import FAMILY
from distill_lab.types import Prompt
from tests.helpers import by_id, make_prompts, tiny_prompts

pytestmark = pytest.mark.slow
pytest.importorskip("gguf")
TINY = ModelConfig(model="tiny:student")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "student.gguf"
    write_gguf(FAMILY / "student", path, "Q8_0", name="student")
    return path


def test_answers_and_tokens_are_those_of_transformers(file: Path) -> None:
    pytest.importorskip("xllamacpp")
    tokenizer = load_tokenizer(TINY)
    engine = LlamaCppEngine(str(file), tokenizer, context=4096)
    other = TransformersEngine(unpacked(file, FAMILY / "student"), tokenizer)
    sampling = SamplingConfig(max_new_tokens=24, thinking=False)
    prompts = tiny_prompts(20)
    ours, theirs = by_id(complete(engine, prompts, sampling)), by_id(complete(other, prompts, sampling))
    alike = [ours[name] == theirs[name] for name in theirs]
    assert sum(alike) >= 19
    # The next token after every beginning of an answer is that of one forward pass, but for near ties.
    same = compared = 0
    for prompt in prompts[:6]:
        prompt_ids, _, _ = engine.io.request(prompt, sampling, context=4096)
        ids = [*prompt_ids, *tokenizer.encode("apple 7 banana river", add_special_tokens=False)]
        with torch.inference_mode():
            expected = other.model(input_ids=torch.tensor([ids])).logits[0, len(prompt_ids) - 1 : -1].argmax(-1)
        found = engine.next_tokens(ids, len(prompt_ids))
        assert len(found) == len(expected)
        compared += len(found)
        same += sum(ours == theirs for ours, theirs in zip(found, expected.tolist(), strict=True))
    assert same >= 0.9 * compared > 30
    talk = [{"role": "user", "content": "12 apples, naïve 漢字\n\n\tdef f(): ½ 1234"}]
    text = tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    assert isinstance(text, str)
    assert engine.token_ids(text) == tokenizer.encode(text, add_special_tokens=False)


def test_samples_limits_stops_and_control_tokens_in_a_message(file: Path) -> None:
    pytest.importorskip("xllamacpp")
    engine = LlamaCppEngine(str(file), load_tokenizer(TINY), context=64)
    sampling = SamplingConfig(max_new_tokens=4, temperature=1.5, num_samples=3, thinking=False)
    rows = by_id(engine.generate(make_prompts(2, longest=5), sampling))
    assert {name for name, _ in rows} == {"p-0", "p-1"}
    assert len(rows) == 6
    assert all(0 < row.num_tokens <= 4 for row in rows.values())
    assert len({row.content for row in rows.values()}) > 1
    [row] = engine.generate(make_prompts(1, seed=3, longest=4)[:1], SamplingConfig(max_new_tokens=2, thinking=False))
    assert (row.finish_reason, row.num_tokens) == ("length", 2)
    long = Prompt("long", [{"role": "user", "content": "apple " * 200}])
    [row] = engine.generate([long], sampling.model_copy(update={"num_samples": 1}))
    assert row.finish_reason == "error"
    assert "context is 64" in str(row.error)
    [whole] = engine.generate(tiny_prompts(1), SamplingConfig(max_new_tokens=24, thinking=False))
    assert len(whole.content) > 3
    [cut] = engine.generate(
        tiny_prompts(1), SamplingConfig(max_new_tokens=24, thinking=False, stop=(whole.content[2:4],))
    )
    assert (cut.content, cut.finish_reason) == (whole.content[:2], "stop")
    # Spelled in a message, the end of a turn is plain text: the prompt has one turn.
    spelled = Prompt("spelled", [{"role": "user", "content": "a<|im_end|>b"}])
    ids, _, _ = engine.io.request(spelled, sampling, context=64)
    assert ids.count(engine.io.end_ids[0]) == 1
    [row] = engine.generate([spelled], SamplingConfig(max_new_tokens=4, thinking=False))
    assert row.finish_reason in ("stop", "length")


def test_it_is_used_by_name_for_gguf_files_only(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert llama_cpp.preference() == 0
    config = EngineConfig(engine="llama_cpp")
    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install xllamacpp"):
        check_engine(TINY, config)
    monkeypatch.undo()
    pytest.importorskip("xllamacpp")
    with pytest.raises(ModelError, match="reads GGUF files; `distill export --to gguf` makes one"):
        load_engine(TINY, config)


def test_a_file_that_is_not_one_is_named(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + bytes(64))
    engine = LlamaCppEngine(str(path), load_tokenizer(TINY), context=64)
    with pytest.raises(ModelError, match=r"bad\.gguf: llama\.cpp cannot open it"):
        list(engine.generate(make_prompts(1, longest=3), SamplingConfig()))
