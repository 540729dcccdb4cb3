"""What a tokenizer's ids stand for, in bytes, so that two models can be compared id by id.

    names = token_bytes(tokenizer)                  {151643: b"<|endoftext|>", 9707: b"Hello", ...}
    refuse_other_ids(teacher_tokenizer, student_tokenizer, num_ids=151_936)

Qwen2.5's tokenizer is inside Qwen3's: every id that both have stands for the same bytes, so a Qwen3 teacher's probabilities
are a Qwen2.5 student's, id for id.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping

from transformers import PreTrainedTokenizerBase

from distill_lab.errors import UserError

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""A byte that a SentencePiece vocabulary has no character for."""
SPACE = "\u2581"
"""SentencePiece's mark for a space."""


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    """The bytes of every id that the tokenizer has a token for."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    spelled = {id: token for token, id in tokenizer.get_vocab().items() if id not in added}
    decoder = _decoder(tokenizer)
    spaced = False
    if "ByteLevel" in decoder:
        table = _bytes_of_characters()
        found = {id: _from_characters(token, table) for id, token in spelled.items()}
    else:
        spaced = SPACE in decoder or "Metaspace" in decoder
        found = {id: _from_pieces(token, spaced=spaced) for id, token in spelled.items()}
    # Gemma lists runs of its marks for spaces as added tokens; the decoder makes spaces of them all the same.
    plain = {id for id, token in added.items() if spaced and not token.special}
    return found | {
        id: _from_pieces(str(token), spaced=True) if id in plain else str(token).encode() for id, token in added.items()
    }


def is_byte_piece(token: str) -> bool:
    """Whether a token of a vocabulary, as it is spelled there, is a byte for which the vocabulary has no character."""
    return BYTE.fullmatch(token) is not None


def vocabulary_digest(names: Mapping[int, bytes]) -> str:
    """Identifies the map from ids to bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for id, name in sorted(names.items()):
        digest.update(id.to_bytes(4, "little") + len(name).to_bytes(4, "little") + name)
    return digest.hexdigest()


def refuse_other_ids(
    teacher: Mapping[int, bytes], student: Mapping[int, bytes], *, num_ids: int, names: tuple[str, str]
) -> None:
    """Raise UserError if an id below `num_ids` that both have stands for other bytes in one than in the other.

    teacher, student: `token_bytes` of each. names: of the two models, for the message.
    """
    shared, other = _compared(teacher, student, num_ids)
    if other or not shared:
        first = (
            f"id {other[0]} is {teacher[other[0]]!r} in one and {student[other[0]]!r} in the other; " if other else ""
        )
        raise UserError(
            f"the teacher {names[0]} and the student {names[1]} have different tokenizers: {first}{len(other):,} of "
            f"{len(shared):,} ids that both have differ. This objective compares their probabilities id by id. Use `distill "
            "logits --objective chunk_likelihood`, which compares chunks of text, choose a teacher with the student's "
            "tokenizer, or train on the teacher's answers (--train.objective cross_entropy)"
        )


def same_ids(teacher: Mapping[int, bytes], student: Mapping[int, bytes]) -> bool:
    """Whether each id that both have stands for the same bytes; then the probabilities can be compared id by id."""
    shared, other = _compared(teacher, student, 1 << 31)
    return bool(shared) and not other


def _compared(teacher: Mapping[int, bytes], student: Mapping[int, bytes], num_ids: int) -> tuple[list[int], list[int]]:
    """The ids below `num_ids` that both have, and those of them that stand for other bytes."""
    shared = [id for id in sorted(teacher.keys() & student.keys()) if id < num_ids]
    return shared, [id for id in shared if teacher[id] != student[id]]


def _decoder(tokenizer: PreTrainedTokenizerBase) -> str:
    """The settings of the decoder of a fast tokenizer, as text; empty for a slow one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "to_str"):
        return ""
    return json.dumps(json.loads(backend.to_str())["decoder"], ensure_ascii=False)


def _bytes_of_characters() -> dict[str, int]:
    """The bytes that byte-level tokenizers write as characters (Radford et al. 2019, GPT-2): printable ones as themselves,
    the others from U+0100 on, in their order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _from_characters(token: str, table: Mapping[str, int]) -> bytes:
    if all(character in table for character in token):
        return bytes(table[character] for character in token)
    return token.encode()


def _from_pieces(token: str, *, spaced: bool) -> bytes:
    if found := BYTE.fullmatch(token):
        return bytes([int(found[1], 16)])
    return (token.replace(SPACE, " ") if spaced else token).encode(errors="surrogatepass")
