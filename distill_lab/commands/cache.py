"""Show what the cache of completed requests holds, and make it smaller.

In: the cache that `distill generate` and the recipes ask before they ask a model: one file of the user, shared by all
runs. Out: what there is of each model, or what was removed of it. The folder is DISTILL_LAB_CACHE, else distill-lab in
the user's cache folder; DISTILL_LAB_CACHE=off does without, as `distill generate --no-cache` does once.

    distill cache                                   how many answers of which model, how large, how old
    distill cache --prune-days 30                   remove what was answered more than 30 days ago
    distill cache --prune-model tiny:teacher        remove the answers of one model, as the list names it
    distill cache --max-bytes 2000000000            remove the oldest until 2 GB are left
    distill cache --clear                           remove everything; also mends a damaged file
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from distill_lab import config as settings

if TYPE_CHECKING:
    from rich.text import Text

    from distill_lab.generation.request_cache import CacheFile, Held
    from distill_lab.terminal import Terminal


class Config(settings.Config):
    """Settings of `distill cache`; without any it only shows."""

    prune_days: Annotated[float, Field(ge=0)] | None = None
    """Remove answers older than this many days."""
    prune_model: str = ""
    """Remove the answers of this model."""
    max_bytes: Annotated[int, Field(ge=0)] | None = None
    """Remove the oldest answers until the others have no more bytes than this; the file is somewhat larger."""
    clear: bool = False
    """Remove all answers."""


def main(config: Config) -> None:
    """Remove what is asked for, and show what is there."""
    import sqlite3

    from distill_lab.errors import UserError
    from distill_lab.files.cache_folder import VARIABLE, is_off
    from distill_lab.generation.request_cache import CacheFile, cache_path, remove_file
    from distill_lab.terminal import Terminal

    terminal = Terminal()
    if is_off():
        terminal.print(f"there is no cache: {VARIABLE} is off")
        return
    path = Path(VARIABLE)
    try:
        path = cache_path()
        if not path.exists():
            terminal.print(f"the cache is empty: {path} does not exist yet")
            return
        with CacheFile(path) as file:
            if config.clear or config.prune_model or config.prune_days is not None or config.max_bytes is not None:
                _remove(config, file, terminal)
            _show(file, terminal)
    except (sqlite3.OperationalError, OSError) as error:
        raise UserError(f"{path}: {error}; may it be written, and does no other process hold it for long?") from None
    except sqlite3.DatabaseError as error:
        if not config.clear:
            raise UserError(
                f"{path}: {error}; `distill cache --clear` removes it, the next run makes a new one"
            ) from None
        remove_file(path)
        terminal.print(f"removed {path}, which could not be read ({error})")


def _remove(config: Config, file: CacheFile, terminal: Terminal) -> None:
    from distill_lab.errors import UserError

    names = [held.model for held in file.held()]
    if config.prune_model and config.prune_model not in names:
        raise UserError(f"--prune-model {config.prune_model}: the cache holds {', '.join(names) or 'nothing'}")
    removed: list[Held] = []
    if config.clear:
        removed += file.remove_all()
    if config.prune_model:
        removed += file.remove_model(config.prune_model)
    if config.prune_days is not None:
        removed += file.remove_older(config.prune_days)
    if config.max_bytes is not None:
        removed += file.remove_beyond(config.max_bytes)
    for held in removed:
        terminal.print(f"removed {_answers(held)} of {held.model}, {_size(held.num_bytes)}")
    if removed:
        file.shrink()
    else:
        terminal.print("nothing to remove")


def _show(file: CacheFile, terminal: Terminal) -> None:
    from rich.table import Table

    table = Table("model", "answers", "size", "oldest", "newest", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for held in file.held():
        table.add_row(
            _plain(held.model), f"{held.num_answers:,}", _size(held.num_bytes), _day(held.oldest), _day(held.newest)
        )
    if table.row_count:
        terminal.print(table)
    terminal.print(f"{_size(file.num_bytes())} in {file.path}")


def _answers(held: Held) -> str:
    return f"{held.num_answers:,} answer{'s' if held.num_answers > 1 else ''}"


def _plain(text: str) -> Text:
    """Without colours, whatever it holds."""
    from rich.text import Text

    from distill_lab.formatting import clean

    return Text(clean(text))


def _day(seconds: float) -> str:
    import time

    return time.strftime("%Y-%m-%d", time.localtime(seconds))


def _size(num_bytes: int) -> str:
    from rich.filesize import decimal

    return decimal(num_bytes)
