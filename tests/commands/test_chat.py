"""`distill chat`: questions from a pipe, commands, several models, Ctrl-C; text of models cannot harm a terminal."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from distill_lab.commands import chat as command
from distill_lab.commands.chat import Chat, Voice, printable
from distill_lab.config import SamplingConfig
from distill_lab.errors import UserError
from distill_lab.types import Message
from tests.helpers import finished_run, tiny_prompts

pytestmark = pytest.mark.slow


class Scripted:
    """Says what it was given; records what it was asked. An exception in the script is raised there."""

    def __init__(self, *pieces: Any) -> None:
        self.pieces, self.asked, self.sampled, self.closed = pieces, list[list[Message]](), list[SamplingConfig](), 0

    def answer(self, messages: Sequence[Message], sampling: SamplingConfig) -> Iterator[str]:
        self.asked.append(list(messages))
        self.sampled.append(sampling)
        try:
            for piece in self.pieces:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            self.closed += 1


def chat_of(*speakers: Scripted, colors: bool = False, **voice: Any) -> tuple[Chat, list[str]]:
    written: list[str] = []
    voices = [Voice(f"m{place}", speaker, **voice) for place, speaker in enumerate(speakers)]
    return Chat(voices, SamplingConfig(), system="", write=written.append, colors=colors), written


def test_every_model_keeps_its_own_conversation() -> None:
    one, two = Scripted("<think>\nhm\n</think>\n\nYes", "."), Scripted("No.")
    chat, written = chat_of(one, two, suffix="Step by step.")
    assert chat.say("first")
    assert chat.say(" second ")
    assert "".join(written).splitlines()[-1] == "m1: No."
    assert one.asked[1] == [
        {"role": "user", "content": "first\nStep by step."},
        {"role": "assistant", "content": "Yes.", "thinking": "hm"},
        {"role": "user", "content": "second\nStep by step."},
    ]
    assert two.asked[1][1] == {"role": "assistant", "content": "No."}
    assert chat.say("")
    assert len(one.asked) == 2


def test_ctrl_c_ends_an_answer_and_not_the_chat() -> None:
    one, two = Scripted("The sky", KeyboardInterrupt()), Scripted("Blue.")
    chat, written = chat_of(one, two)
    assert chat.say("why?")
    assert "m0: The sky [stopped]\n" in "".join(written)
    assert "m1: Blue." in "".join(written)
    assert (one.closed, two.closed) == (1, 1)
    assert chat.say("and now?")
    assert one.asked[1][1] == {"role": "assistant", "content": "The sky"}


def test_a_model_that_fails_does_not_end_the_chat() -> None:
    chat, written = chat_of(Scripted(UserError("no server")), Scripted("Blue."))
    assert chat.say("why?")
    assert "no answer: no server\n" in "".join(written)
    assert not chat.voices[0].messages
    assert chat.voices[1].messages


def test_commands() -> None:
    speaker = Scripted("x")
    chat, written = chat_of(speaker)
    for line in ("/help", "/system Be brief.", "/thinking off", "/temperature 0.5", "/tokens 9", "hello", "/history"):
        assert chat.say(line)
    said = "".join(written)
    for name in command.COMMANDS:
        assert f"/{name}" in command.HELP
    assert command.HELP in said
    assert "you: hello\nm0: x\n" in said
    assert speaker.asked[0][0] == {"role": "system", "content": "Be brief."}
    sampling = speaker.sampled[0]
    assert (sampling.thinking, sampling.temperature, sampling.max_new_tokens) == (False, 0.5, 9)
    assert chat.say("/reset")
    assert not chat.voices[0].messages
    assert not chat.say("/exit")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/foo bar", "there is no command /foo; /help lists them"),
        ("/", "there is no command /;"),
        ("/_line x", "there is no command /_line"),
        ("/answer x", "there is no command /answer"),
        ("/thinking maybe", "say on, off or auto"),
        ("/temperature warm", "/temperature: "),
        ("/temperature -1", "from 0 on"),
        ("/temperature nan", "from 0 on"),
        ("/tokens 0", "from 1 on"),
        ("/tokens x", "/tokens: "),
    ],
)
def test_mistakes_are_explained_and_change_nothing(line: str, said: str) -> None:
    speaker = Scripted("x")
    chat, written = chat_of(speaker)
    assert chat.say(line)
    assert said in "".join(written)
    assert chat.sampling == SamplingConfig()
    assert not speaker.asked


def test_text_of_models_does_nothing_to_the_terminal() -> None:
    nasty = "\x1b[2J\x1b]0;title\x07[bold]red[/x]\u202e\r\x00\ttab\x9b31m"
    chat, written = chat_of(Scripted(*nasty))
    chat.say("x")
    chat.say("/history")
    said = "".join(written)
    assert not {"\x1b", "\x07", "\r", "\x00", "\x9b", "\u202e", "\t"} & set(said)
    assert "[bold]red[/x]" in said
    assert printable("a\tb\nc") == "a    b\nc"


def test_thinking_is_dim_and_ends_dim() -> None:
    chat, written = chat_of(Scripted("<think>", "hm", "</think>", "Yes."), colors=True)
    chat.say("x")
    said = "".join(written)
    assert said.index("\x1b[2m") < said.index("hm") < said.index("</think>\x1b[0m") < said.index("Yes.")
    assert said.endswith("\x1b[0m\n")


def test_a_pipe_asks_one_question_per_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished_run(tmp_path / "run", rows=tiny_prompts(2))
    question = tiny_prompts(1)[0].messages[0]["content"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{question}\n\n/oops\n{question}\n/exit\nnever\n"))
    command.main(command.Config(run=str(run), max_new_tokens=24))
    lines = capsys.readouterr().out.splitlines()
    assert "the teacher is tiny:teacher" in lines[0]
    student = [line for line in lines if line.startswith("student: ")]
    teacher = [line for line in lines if line.startswith("teacher: ")]
    assert len(student) == len(teacher) == 2
    assert student[0] == student[1]  # a separate question each, not a conversation
    assert teacher[0].removeprefix("teacher: ") == tiny_prompts(1)[0].answer
    assert sum("no command /oops" in line for line in lines) == 1


def test_the_teacher_of_a_long_prompt_gets_it_and_the_student_does_not(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", prompt_file="tiny:labels", instruction="Think.")
    voices, sampling, notes = command._voices(command.Config(run=str(run)))
    assert [voice.label for voice in voices] == ["student", "teacher"]
    assert not voices[0].system
    assert len(voices[1].system) > 100
    assert [voice.suffix for voice in voices] == ["Think.", "Think."]
    assert sampling.thinking is False
    assert any("Think." in note for note in notes)
    alone, _, _ = command._voices(command.Config(run=str(run), teacher=False))
    assert [voice.label for voice in alone] == ["student"]
