"""Show, check or prune the caches of model answers and of teachers' distributions.

In: the cache that `distill generate` and the recipes search before they run a model: one file per user, shared by all
runs; and the teacher caches that `distill logits --cache-mode` fills, a folder for each teacher and way of capturing.
Out: what they contain, what is damaged, or what was removed. The folder is DISTILL_LAB_CACHE, or distill-lab in the
user's cache folder; DISTILL_LAB_CACHE=off turns the caches off, `distill generate --no-cache` does so for one command.

    distill cache                                   number, size and age of each model's answers; each teacher's rows
    distill cache --check                           also read every byte of the teacher caches
    distill cache --folder my-cache --check         a teacher cache in another place
    distill cache --max-bytes 2000000000            remove the oldest answers until 2 GB are left
    distill cache --clear                           remove all answers; also fixes a damaged file
    distill cache --clear-teachers                  remove the teacher caches
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from distill_lab import config as settings

if TYPE_CHECKING:
    from rich.text import Text

    from distill_lab.generation.request_cache import CacheFile, ModelUsage
    from distill_lab.terminal import Terminal


class Config(settings.Config):
    """Settings of `distill cache`; without any, it only shows the contents."""

    max_bytes: Annotated[int, Field(ge=0)] | None = None
    """Remove the oldest answers until the rest take at most this many bytes; the file is slightly larger."""
    clear: bool = False
    """Remove all answers."""
    clear_teachers: bool = False
    """Remove all teacher caches in the shared folder."""
    check: bool = False
    """Read the teacher caches whole and compare them with their checksums; the command fails if one is damaged."""
    folder: str = ""
    """A teacher cache in another place to show, instead of those that all runs share."""


def main(config: Config) -> None:
    """Remove what was requested, then show what is left. Raises UserError for a damaged cache."""
    from distill_lab.files.cache_folder import VARIABLE, is_off
    from distill_lab.terminal import Terminal

    terminal = Terminal()
    if config.folder:
        _show_teachers([Path(config.folder).expanduser()], config, terminal)
        return
    if is_off():
        terminal.print(f"there is no cache: {VARIABLE} is off")
        return
    _answers_cache(config, terminal)
    _teacher_caches(config, terminal)


def _answers_cache(config: Config, terminal: Terminal) -> None:
    import sqlite3

    from distill_lab.errors import UserError
    from distill_lab.files.cache_folder import VARIABLE
    from distill_lab.generation.request_cache import CacheFile, cache_path, remove_file

    path = Path(VARIABLE)
    try:
        path = cache_path()
        if not path.exists():
            terminal.print(f"the cache is empty: {path} does not exist yet")
            return
        with CacheFile(path) as file:
            if config.clear or config.max_bytes is not None:
                _remove(config, file, terminal)
            _show(file, terminal)
    except (sqlite3.OperationalError, OSError) as error:
        raise UserError(f"{path}: {error}; check that it is writable and that no other process is using it") from None
    except sqlite3.DatabaseError as error:
        if not config.clear:
            raise UserError(
                f"{path}: {error}; `distill cache --clear` removes it, and the next run creates a new one"
            ) from None
        remove_file(path)
        terminal.print(f"removed {path}, which was unreadable ({error})")


def _teacher_caches(config: Config, terminal: Terminal) -> None:
    """Those in the folder that all runs share: removed, or shown."""
    import shutil

    from distill_lab.files.cache_folder import TEACHERS, cache_folder

    place = cache_folder() / TEACHERS
    folders = sorted(path.parent for path in place.glob("*/index.json"))
    if not config.clear_teachers:
        _show_teachers(folders, config, terminal)
        return
    for folder in folders:
        shutil.rmtree(folder)
        terminal.print(f"removed the teacher cache {folder}")
    if not folders:
        terminal.print("no teacher cache to remove")


def _show_teachers(folders: list[Path], config: Config, terminal: Terminal) -> None:
    if not folders:
        return
    from rich.table import Table

    from distill_lab.errors import UserError
    from distill_lab.train.teacher_cache import TeacherCache

    table = Table("teacher", "captured", "rows", "tokens", "size", "per token", "folder", box=None, pad_edge=False)
    for column in table.columns[2:6]:
        column.justify = "right"
    damage: list[str] = []
    for folder in folders:
        try:
            cache = TeacherCache.open(folder)
        except UserError as error:
            damage.append(str(error))
            continue
        damage += cache.check() if config.check else []
        identity, positions = cache.identity, cache.num_positions
        how = identity.mode + (f" {identity.size}" if identity.size else "")
        how += f", temperature {identity.temperature:g}" if identity.temperature != 1 else ""
        per_token = f"{cache.num_bytes / positions:.1f} B" if positions else ""
        row = (how, f"{len(cache):,}", f"{positions:,}", _size(cache.num_bytes), per_token, str(folder))
        table.add_row(_plain(identity.name), *map(_plain, row))
    if table.row_count:
        terminal.print(table)
    if damage:
        raise UserError("\n".join(damage))
    if config.check:
        terminal.print(f"teacher caches checked: {len(folders)}, nothing is damaged")


def _remove(config: Config, file: CacheFile, terminal: Terminal) -> None:
    removed = file.remove_all() if config.clear else file.remove_beyond(config.max_bytes or 0)
    for usage in removed:
        terminal.print(f"removed {_answers(usage)} of {usage.model}, {_size(usage.num_bytes)}")
    if removed:
        file.shrink()
    else:
        terminal.print("nothing to remove")


def _show(file: CacheFile, terminal: Terminal) -> None:
    from rich.table import Table

    table = Table("model", "answers", "size", "oldest", "newest", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for usage in file.usage():
        table.add_row(
            _plain(usage.model),
            f"{usage.num_answers:,}",
            _size(usage.num_bytes),
            _day(usage.oldest),
            _day(usage.newest),
        )
    if table.row_count:
        terminal.print(table)
    terminal.print(f"{_size(file.num_bytes())} in {file.path}")


def _answers(usage: ModelUsage) -> str:
    return f"{usage.num_answers:,} answer{'s' if usage.num_answers > 1 else ''}"


def _plain(text: str) -> Text:
    """`text` without colors or markup."""
    from rich.text import Text

    from distill_lab.formatting import clean

    return Text(clean(text))


def _day(seconds: float) -> str:
    import time

    return time.strftime("%Y-%m-%d", time.localtime(seconds))


def _size(num_bytes: int) -> str:
    from rich.filesize import decimal

    return decimal(num_bytes)
