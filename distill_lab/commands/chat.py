"""Talk to a student, with its teacher's answers below its own, or to any model.

In: a run directory (what --run named), a model directory, a Hugging Face id, or openai:NAME on a server; questions from the
keyboard, or one per line from a pipe. Out: the answers, as they are generated. /help lists the commands; Ctrl-C stops an
answer, Ctrl-D or /exit ends the chat.

    distill chat runs/first
    distill chat runs/first --no-teacher
    echo "Sort these words from A to Z: pear, cat, hat" | distill chat tiny:student
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro
from pydantic import Field

from distill_lab import config as settings
from distill_lab.config import EngineConfig, ModelConfig, Quantization, SamplingConfig
from distill_lab.errors import UserError

if TYPE_CHECKING:
    from distill_lab.generation.streaming import Speaker
    from distill_lab.types import Fields, Message

HELP = """\
/help              this list
/reset             forget the conversation
/system TEXT       set the system message and start again; without TEXT, remove it
/thinking on|off   let the models think before they answer, or not; auto: as their templates do
/temperature X     sample at temperature X; 0: always the most likely token
/tokens N          at most N tokens per answer
/history           the conversation so far
/exit              end the chat
Ctrl-C stops an answer. Everything else you type is a question."""
DIM, NORMAL = "\x1b[2m", "\x1b[0m"


class Config(settings.Config):
    """Settings of `distill chat`."""

    run: Annotated[str, tyro.conf.Positional]
    """A run directory, a model directory, tiny:student, a Hugging Face id, or openai:NAME."""
    teacher: bool = True
    """With a run: its teacher answers, too."""
    against: str = ""
    """Another model that answers, too."""
    system: str = ""
    """System message."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 512
    """Maximum tokens per answer, including thinking."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Sampling temperature; 0: always the most likely token."""
    quantization: Quantization = "none"
    """Of the model given without a run."""
    engine: EngineConfig = EngineConfig()
    """The server of openai:NAME models (base_url, timeout_s)."""


@dataclass(slots=True)
class Voice:
    """A model in the chat, and the conversation as it sees it."""

    label: str
    speaker: Speaker
    system: str = ""
    suffix: str = ""
    """Text after every question, as in its training."""
    messages: list[Message] = field(default_factory=list)

    def ask(self, question: str, system: str) -> list[Message]:
        """The conversation with a new question."""
        text = f"{question}\n{self.suffix}" if self.suffix else question
        start: list[Message] = [{"role": "system", "content": system or self.system}] if system or self.system else []
        return [*start, *self.messages, {"role": "user", "content": text}]


class Chat:
    """Questions in, answers of every voice out. write: receives text for the screen."""

    def __init__(
        self, voices: list[Voice], sampling: SamplingConfig, *, system: str, write: Callable[[str], None], colors: bool
    ) -> None:
        self.voices, self.sampling, self.system = voices, sampling, system
        self._write, self._colors = write, colors

    def say(self, line: str) -> bool:
        """Carry out a command or answer a question; returns whether the chat goes on."""
        line = line.strip()
        if not line.startswith("/"):
            if line:
                self.answer(line)
            return True
        name, _, rest = line[1:].partition(" ")
        command = getattr(self, f"_{name}", None) if name in COMMANDS else None
        if name in ("exit", "quit"):
            return False
        if command is None:
            self._line(f"there is no command /{name}; /help lists them (a question cannot start with /)")
            return True
        try:
            command(rest.strip())
        except ValueError as error:
            self._line(f"/{name}: {error}")
        return True

    def answer(self, question: str) -> None:
        """Let every voice answer; Ctrl-C stops the answer that is being written, and the next voice goes on."""
        from distill_lab.chat import split_thinking

        for voice in self.voices:
            if len(self.voices) > 1:
                self._write(f"{voice.label}: ")
            text = ""
            pieces = voice.speaker.answer(voice.ask(question, self.system), self.sampling)
            try:
                for piece in pieces:
                    self._write(self._shown(piece, text))
                    text += piece
            except KeyboardInterrupt:
                self._line(" [stopped]" if not self._colors else f"{NORMAL} [stopped]")
            except UserError as error:
                self._line(f"no answer: {error}")
                continue
            finally:
                getattr(pieces, "close", lambda: None)()
            self._line(NORMAL if self._colors else "")
            thinking, content = split_thinking(text)
            reply: Message = {"role": "assistant", "content": content}
            voice.messages += [voice.ask(question, "")[-1], reply | ({"thinking": thinking} if thinking else {})]

    def _shown(self, piece: str, before: str) -> str:
        """A piece as it is printed: without control characters, and dim inside thinking."""
        piece = printable(piece)
        if not self._colors:
            return piece
        inside = "<think>" in before and "</think>" not in before
        piece = piece.replace("<think>", f"{DIM}<think>").replace("</think>", f"</think>{NORMAL}")
        return f"{DIM}{piece}" if inside else piece

    def _line(self, text: str) -> None:
        self._write(f"{text}\n")

    def _help(self, _: str) -> None:
        self._line(HELP)

    def _reset(self, _: str) -> None:
        for voice in self.voices:
            voice.messages.clear()
        self._line("the conversation is forgotten")

    def _system(self, text: str) -> None:
        self.system = text
        self._reset("")

    def _thinking(self, text: str) -> None:
        known = {"on": True, "off": False, "auto": None}
        if text not in known:
            raise ValueError("say on, off or auto")
        self.sampling = self.sampling.model_copy(update={"thinking": known[text]})

    def _temperature(self, text: str) -> None:
        value = float(text)
        if not 0 <= value < 100:
            raise ValueError("give a number from 0 on")
        self.sampling = self.sampling.model_copy(update={"temperature": value})

    def _tokens(self, text: str) -> None:
        if int(text) < 1:
            raise ValueError("give a number from 1 on")
        self.sampling = self.sampling.model_copy(update={"max_new_tokens": int(text)})

    def _history(self, _: str) -> None:
        for voice in self.voices:
            for message in voice.messages:
                name = voice.label if message["role"] == "assistant" else "you"
                self._line(f"{name}: {printable(message['content'])}")
        if not any(voice.messages for voice in self.voices):
            self._line("nothing has been said yet")


COMMANDS = ("help", "reset", "system", "thinking", "temperature", "tokens", "history")


def printable(text: str) -> str:
    """Text of a model for the terminal: control characters are removed, tabs become spaces."""
    from distill_lab.formatting import clean

    return clean(text.replace("\t", "    "))


def main(config: Config) -> None:
    """Load the models, and answer until the input ends."""
    from distill_lab.terminal import Terminal

    terminal = Terminal()
    interactive = sys.stdin.isatty()
    voices, sampling, notes = _voices(config)
    for note in notes:
        terminal.note(note)
    terminal.close()
    colors = terminal.console.is_terminal and not terminal.console.no_color
    chat = Chat(voices, sampling, system=config.system, write=_write, colors=colors)
    if interactive:
        print("/help lists the commands; Ctrl-C stops an answer, Ctrl-D ends the chat")
        _converse(chat)
        return
    for line in sys.stdin:
        if not chat.say(line):
            return
        for voice in voices:
            voice.messages.clear()  # in a pipe every line is a separate question


def _converse(chat: Chat) -> None:
    with suppress(ImportError):
        import readline  # noqa: F401 - makes the arrow keys work
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            continue
        if not chat.say(line):
            return


def _write(text: str) -> None:
    sys.stdout.write(text.encode(sys.stdout.encoding or "utf-8", "replace").decode(sys.stdout.encoding or "utf-8"))
    sys.stdout.flush()


def _voices(config: Config) -> tuple[list[Voice], SamplingConfig, list[str]]:
    """The models, loaded; how they are sampled; what to tell about it."""
    from pathlib import Path

    from distill_lab.export._source import find_source
    from distill_lab.generation.streaming import load_speaker
    from distill_lab.models.names import api_engine

    sampling = SamplingConfig(max_new_tokens=config.max_new_tokens, temperature=config.temperature)
    wanted: list[tuple[str, ModelConfig, str, str]] = []
    notes: list[str] = []
    if api_engine(config.run):
        wanted.append((config.run, ModelConfig(model=config.run), "", ""))
    else:
        source = find_source(config.run, quantization=config.quantization)
        made = source.config
        thinking = (made.get("test_sampling") or {}).get("thinking")
        sampling = sampling.model_copy(update={"thinking": thinking})
        suffix = str(made.get("instruction") or "")
        if suffix:
            notes.append(f"after every question, as in the training: {suffix}")
        wanted.append(("student" if source.run else source.name, source.model, "", suffix))
        if source.run and config.teacher:
            teacher = ModelConfig.model_validate(made["teacher"])
            wanted.append(("teacher", teacher, _teachers_system(made), suffix))
            notes.append(f"the teacher is {teacher.model}; --no-teacher leaves it out")
    if config.against:
        wanted.append((Path(config.against).name, ModelConfig(model=config.against), "", ""))
    voices = [
        Voice(label, load_speaker(model, config.engine), system, suffix) for label, model, system, suffix in wanted
    ]
    return voices, sampling, notes


def _teachers_system(made: Fields) -> str:
    """The prompt that a teacher of `distill prompt` has, and its student does not."""
    if not made.get("prompt_file"):
        return ""
    from distill_lab.training_data.prompt_distillation import read_system_prompt

    return read_system_prompt(str(made["prompt_file"]))
