"""The API key in no byte of what is written, whatever a server does with it."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from distill_lab import cli
from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import UserError
from distill_lab.files.jsonl import write_jsonl
from distill_lab.files.redact import Redactor
from distill_lab.generation.engines.openai_api import OpenAIEngine
from distill_lab.pipeline.stages import Pipeline
from distill_lab.run import Run
from distill_lab.settings.secrets import MARK
from tests.hostile_server import KEY, HostileServer, Reply, answer, prompts

BEARER = f"Bearer {KEY}"
HALF = len(KEY) // 2
FORMS = {
    "plain": KEY,
    "header": f"Authorization: {BEARER}",
    "upper": KEY.upper(),
    "percent of some": quote(KEY.replace("-", "/"), safe="").replace("%2F", "%2d"),
    "percent of all": "".join(f"%{ord(c):02X}" for c in KEY),
    "percent twice": "".join(f"%25{ord(c):02x}" for c in KEY),
    "json escapes": "".join(f"\\u{ord(c):04x}" for c in KEY),
    "json in json": json.dumps(json.dumps({"key": KEY})),
    "escapes in json": json.dumps("".join(f"\\u{ord(c):04X}" for c in KEY)),
    "hexadecimal escapes": "".join(f"\\x{ord(c):02x}" for c in KEY),
    "octal escapes": "".join(f"\\{ord(c):03o}" for c in KEY),
    "entities": "".join(f"&#{ord(c)};" for c in KEY),
    "hexadecimal entities": "".join(f"&#x{ord(c):X};" for c in KEY),
    "one entity": KEY.replace("-", "&#45;"),
    "mixed": KEY.replace("-", "%2D").replace("0", "&#48;").replace("1", "\\u0031"),
    "quoted-printable": "".join(f"={ord(c):02X}" for c in KEY),
    "base64": base64.b64encode(KEY.encode()).decode(),
    "base64 of the header": base64.b64encode(BEARER.encode()).decode(),
    "base64 of a user": base64.b64encode(f"me:{KEY}@host".encode()).decode(),
    "base64 for addresses": base64.urlsafe_b64encode(f"?{KEY}?".encode()).decode(),
    "base64 in lines": "\n".join(re.findall(".{1,16}", base64.b64encode(BEARER.encode()).decode())),
    "hexadecimal": KEY.encode().hex(),
    "hexadecimal with colons": KEY.encode().hex(":"),
    "hexadecimal numbers": " ".join(hex(ord(c)) for c in KEY),
    "numbers": str(list(KEY.encode())),
    "bytes": repr(bytearray(KEY.encode())),
    "spaces": " ".join(KEY),
    "lines": "\n".join(KEY),
    "two lines": f"{KEY[:HALF]}\r\n {KEY[HALF:]}",
    "strings": f'"{KEY[:9]}" + "{KEY[9:]}"'.replace(" + ", ""),
    "invisible": "\u200b".join(KEY),
    "dashes": "-".join(KEY),
    "first half": KEY[:HALF],
    "second half": KEY[HALF:],
    "backwards": KEY[::-1],
    "all but one": KEY[:-1],
    "escaped dashes": KEY.replace("-", "\\-"),
}


def decoded(text: str) -> str:
    """Letters and digits of a text with its escapes read, as someone who looks for the key would."""
    for _ in range(3):
        text = re.sub(r"%([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), text, flags=re.IGNORECASE)
        text = re.sub(r"\\+u00([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), text, flags=re.IGNORECASE)
        text = re.sub(r"&#(\d+);", lambda found: chr(int(found[1])), text)
    return re.sub(r"[^0-9a-z]", "", text.lower())


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_key_is_taken_out(name: str) -> None:
    redact = Redactor(KEY)
    text = redact(f"before {FORMS[name]} after")
    assert MARK in text
    assert FORMS[name] not in text
    assert decoded(KEY[:HALF]) not in decoded(text)
    assert decoded(KEY[HALF:]) not in decoded(text)
    assert redact(text) == text


def test_what_stands_around_a_key_stays() -> None:
    redact = Redactor(KEY)
    assert redact(f"you sent {KEY}, twice: {KEY}!") == f"you sent {MARK}, twice: {MARK}!"
    assert redact(f"key={quote(KEY)}&n=1") == f"key={MARK}&n=1"
    for text in ("", "12 + 5 = 17 \\frac{1}{2} 50% &amp; x=3D", "sk-", "0123456789", "你好 secret", KEY[: HALF - 4]):
        assert redact(text) == text


def test_a_short_key_is_taken_out_whole_and_a_placeholder_is_none() -> None:
    redact = Redactor("12345678")
    assert redact("1, 2, 3, 4, 5, 6, 7, 8") == "1, 2, 3, 4, 5, 6, 7, 8"
    assert redact("x12345678") == f"x{MARK}"
    for placeholder in ("", "EMPTY", "ollama"):
        assert Redactor(placeholder)(f"EMPTY {placeholder} ollama") == f"EMPTY {placeholder} ollama"


def test_long_texts_take_no_time_to_speak_of() -> None:
    redact = Redactor(KEY)
    for text in ("s " * 100_000, "sk-secret-012345 " * 20_000, "%73" * 60_000, "\\" * 200_000, "0x73 " * 40_000):
        redact(text)  # the whole test has a limit


# --- a server that repeats it


def http(status: str = "200 OK", header: str = "X: y", body: str = "{}") -> bytes:
    return f"HTTP/1.1 {status}\r\n{header}\r\nContent-Length: {len(body.encode())}\r\n\r\n{body}".encode()


def error(words: Any, status: int = 400) -> Reply:
    return Reply(status=status, body={"error": words})


REPLIES = {
    "malformed status line": Reply(raw=f"HTTP/1.1 {BEARER}\r\n\r\n".encode()),
    "no status line": Reply(raw=f"{BEARER}\r\n\r\n".encode()),
    "status that is no number": Reply(raw=http(f"2{KEY} OK")),
    "reason": Reply(raw=http(f"500 {KEY}", body="")),
    "malformed header": Reply(raw=http(header=f"Authorization {BEARER}")),
    "header with a control character": Reply(raw=http(header=f"A: {KEY}\x01\x00")),
    "header name": Reply(raw=http(header=f"{BEARER} : x")),
    "length": Reply(raw=f"HTTP/1.1 200 OK\r\nContent-Length: {KEY}\r\n\r\n{{}}".encode()),
    "two lengths": Reply(raw=http(header=f"Content-Length: {KEY}")),
    "transfer encoding": Reply(raw=f"HTTP/1.1 200 OK\r\nTransfer-Encoding: {KEY}\r\n\r\n".encode()),
    "chunk size": Reply(raw=f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{KEY}\r\n".encode()),
    "content encoding": Reply(raw=http(header="Content-Encoding: gzip", body=KEY)),
    "redirect": Reply(status=307, headers={"Location": f"http://host/{quote(KEY)}"}),
    "redirect, escaped": Reply(status=301, headers={"Location": f"/?k={FORMS['percent of all']}"}),
    "retry-after": Reply(status=429, headers={"Retry-After": KEY}),
    "cookie": Reply(status=500, headers={"Set-Cookie": f"key={KEY}"}),
    "content type": Reply(status=500, headers={"Content-Type": f"text/plain; charset={KEY}"}, body=b"x"),
    "error name": error({KEY: 1}),
    "error in lists": error([{"x": [{KEY: KEY}]}]),
    "error code": error({"code": KEY, "message": "no"}),
    "detail": Reply(status=422, body={"detail": [{"loc": ["body"], "input": KEY}]}),
    "page": Reply(status=502, body=f"<html><pre>{BEARER}</pre></html>".encode()),
    "latin-1": Reply(status=500, body=f"\xff {KEY} \xff".encode("latin-1")),
    "unauthorized": error({"message": f"Incorrect API key provided: {KEY}"}, 401),
    "quota": error({"message": KEY, "code": "insufficient_quota"}, 429),
    "not found": error({"message": f"no model for {KEY}"}, 404),
    "cut short": error({"message": f"{'x' * 287} {KEY}"}),
    "answer": Reply(body=answer(f"you sent {KEY}")),
    "thinking": Reply(body=answer("yes", reasoning_content=FORMS["base64"])),
    "thinking in tags": Reply(body=answer(f"<think>{KEY}</think>yes")),
    "finish reason": Reply(body=answer("yes", finish_reason=KEY)),
    "answer that is an object": Reply(body=answer({KEY: KEY})),
    "error beside an answer": Reply(body={**answer("yes"), "error": {"message": KEY}}),
}
REPLIES |= {f"answer: {name}": Reply(body=answer(f"you sent {form}")) for name, form in FORMS.items()}
REPLIES |= {f"refusal: {name}": error({"message": f"bad key {form}"}) for name, form in FORMS.items()}
REPLIES |= {f"thinking: {name}": Reply(body=answer("yes", reasoning_content=form)) for name, form in FORMS.items()}
REPLIES |= {f"server error: {name}": error({"message": form}, 503) for name, form in FORMS.items()}
ENDING = [name for name, reply in REPLIES.items() if reply.status in (301, 307, 401, 404)] + ["quota"]
"""Answers that end a run."""
ONE = SamplingConfig(max_new_tokens=4)


def test_there_are_many_ways_to_repeat_a_key() -> None:
    assert len(REPLIES) >= 150


@pytest.mark.parametrize("name", REPLIES)
def test_no_answer_and_no_error_holds_the_key(name: str) -> None:
    with HostileServer(rule=lambda request: REPLIES[name]) as server:
        engine = OpenAIEngine("m", EngineConfig(max_retries=1), base_url=server.url, key=KEY, first_wait_s=0.001)
        said = []
        try:
            said += [str(row.to_json()) for row in engine.generate(prompts("a"), ONE)]
        except UserError as error:
            said.append(str(error))
        assert server.requests[0].headers["authorization"] == BEARER
    assert said
    for text in said:
        assert decoded(KEY[:HALF]) not in decoded(text), text
        assert decoded(KEY[HALF:]) not in decoded(text), text
        for form in FORMS.values():
            assert form not in text


@pytest.mark.slow
def test_no_byte_of_a_command_is_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One `generate` over all that a server may do, then one for each answer that ends the run."""
    data, place = tmp_path / "data.jsonl", tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("DISTILL_LAB_CACHE", str(place / "cache"))
    # A good answer after each bad one: twenty failures in a row would end the run.
    asks = [each for name in REPLIES if name not in ENDING for each in (name, f"ok {name}")]
    printed = ""
    with HostileServer(rule=lambda request: REPLIES.get(request.text)) as server:
        flags = ["--engine.base-url", server.url, "--engine.max-retries", "0", "--sampling.max-new-tokens", "4"]
        flags += ["--engine.max-concurrency", "1"]
        for number, names in enumerate([asks, *([name] for name in ENDING)]):
            write_jsonl(data, ({"messages": [{"role": "user", "content": name}]} for name in names))
            out = ["--out", f"{number}.jsonl", "--cot", f"{number}.cot.jsonl"]
            code = cli.main(["generate", "--model", "openai:m", "--data", str(data), *out, *flags])
            assert code == (2 if number else 0)
            told = capsys.readouterr()
            printed += told.out + told.err
        assert {request.text for request in server.requests} >= set(REPLIES)
    written = [path for path in place.rglob("*") if path.is_file()]
    assert len(written) >= 5
    assert MARK.encode() in (place / "0.jsonl").read_bytes()
    for content in (printed.encode(), *(path.read_bytes() for path in written)):
        assert KEY.encode() not in content
        assert KEY[:HALF].encode() not in content
        assert KEY[::-1].encode() not in content
        assert base64.b64encode(KEY.encode())[:24] not in content
        assert KEY.encode().hex().encode() not in content


HIDDEN = {
    "api_key": "zq8-first-secret-4411",
    "extra_headers": {"X-Team": "zq8-second-secret-4411", "Authorization": "Bearer zq8-third-secret-4411"},
    "nested": [{"password": "zq8-fourth-secret-4411"}],
    "user": "zq8-first-secret-4411",
}
"""Fields of requests in which a user gave keys; each has a part that nothing else has."""


def repeating(request: Any) -> Reply:
    """A server that repeats each key that it got: in the answer, in an error and in a status line."""
    keys = (
        f"{request.body['api_key']} {json.dumps(request.body['extra_headers'])} {request.body['nested'][0]['password']}"
    )
    if request.text == "refused":
        return Reply(status=400, body={"error": {"message": keys}})
    if request.text == "raw":
        return Reply(raw=f"HTTP/1.1 {keys}\r\n\r\n".encode())
    return Reply(body=answer(f"you sent {keys}", reasoning_content=keys))


@pytest.mark.slow
def test_a_key_among_the_fields_of_requests_is_written_to_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("DISTILL_LAB_CACHE", str(place / "cache"))
    data = tmp_path / "data.jsonl"
    write_jsonl(data, (prompt.to_json() for prompt in prompts("a", "refused", "b", "raw", "c")))
    with HostileServer(rule=repeating) as server:
        flags = [
            "--engine.base-url",
            server.url,
            "--engine.max-retries",
            "0",
            "--engine.extra-body",
            json.dumps(HIDDEN),
        ]
        flags += ["--engine.max-concurrency", "1", "--sampling.max-new-tokens", "4", "--data", str(data)]
        assert cli.main(["generate", "--model", "openai:m", "--out", "a.jsonl", *flags]) == 0
        assert server.requests[0].body["api_key"] == HIDDEN["api_key"]
        assert server.requests[0].body["extra_headers"] == HIDDEN["extra_headers"]
        config = EngineConfig(base_url=server.url, extra_body=json.dumps(HIDDEN), max_retries=0)
        with Run.open(place / "run", recipe="r", config={"engine": config.model_dump()}) as run:
            asked = place / "a.prompts.jsonl"
            Pipeline(run, engine=config).answers("answers", ModelConfig(model="openai:m"), asked, ONE)
        # Another key is not another model: the answers are those of the first command.
        before, other = len(server.requests), json.dumps(HIDDEN | {"api_key": "zq8-other", "user": "zq8-other"})
        flags[flags.index(json.dumps(HIDDEN))] = other
        assert cli.main(["generate", "--model", "openai:m", "--out", "a.jsonl", *flags]) == 0
        assert {request.text for request in server.requests[before:]} <= {"refused", "raw"}
    told = capsys.readouterr()
    written = [path for path in place.rglob("*") if path.is_file()]
    assert len(written) >= 5
    assert MARK in (place / "a.jsonl").read_text()
    assert MARK in (place / "run" / "run.json").read_text()
    for content in (told.out.encode(), told.err.encode(), *(path.read_bytes() for path in written)):
        assert b"zq8" not in content.lower()
