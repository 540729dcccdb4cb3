"""The `distill` command: finds a recipe or command by file name, reads its settings, runs it, turns errors into exit codes.

Settings: flags override the YAML file (--config), which overrides the preset (--preset). Exit codes: 0 done, 1 a bug in the
lab, 2 wrong usage or bad input, 130 after Ctrl-C, 143 after SIGTERM. Heavy libraries are imported only when needed, so that
`distill --help` answers at once.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from distill_lab.commands._spelling import (
    field_type,
    other_spellings,
    refuse_options,
    reject_empty_paths,
    spell_out,
    take_options,
)

if TYPE_CHECKING:
    from types import ModuleType

    from pydantic import BaseModel
    from pydantic_core import ErrorDetails

    from distill_lab.config import Config

C = TypeVar("C", bound="BaseModel")
S = TypeVar("S", bound="Config")
PACKAGES = {"recipes": "a whole method in one command", "commands": "single steps and helpers"}
GLOBAL_HELP = """\
In addition to the flags below:
  --preset NAME   start from these settings: {presets} (default: without a model or data, tiny on a machine without
                  a GPU and {default} on one with a GPU; with a model or data, the recipe's defaults)
  --config FILE   YAML settings that override the preset; flags override both
  --run DIR       the run directory (default: runs/{name}); run the same command again to resume

--teacher M is short for --teacher.model M; --student, --data, --test and --engine work the same way. --dtype D sets
teacher.dtype, student.dtype and train.dtype."""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    from distill_lab.files.streams import guarded_streams

    with guarded_streams() as streams, _signals():
        code = _main(sys.argv[1:] if argv is None else argv)
        if problem := streams.problem():
            print(f"\n{problem}; send it elsewhere, the files of the command are complete", file=sys.stderr)
            code = code or 2
    return code


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if arguments[0] == "--version":
        from distill_lab import __version__

        print(f"distill {__version__}")
        return 0
    try:
        return _run(arguments[0], arguments[1:])
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to resume", file=sys.stderr)
        return 130
    except Exception as error:  # the last place: only what can be explained ends without a traceback
        from distill_lab.errors import UserError
        from distill_lab.files.system_errors import explain
        from distill_lab.formatting import clean

        message = str(error) if isinstance(error, UserError) else explain(error)
        if message is None:
            # Printed here, because a traceback repeats text from outside too.
            print(f"{clean(traceback.format_exc())}\nthis is a fault of the lab; please report it", file=sys.stderr)
            return 1
        print(f"\n{clean(message)}", file=sys.stderr)
        return 2


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and the first Ctrl-C end the block with an exception, so that files are closed; a second Ctrl-C at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    signal.signal(signal.SIGTERM, _terminated)
    if before[1][1] is signal.default_int_handler:  # not in the background, where the shell has it ignored
        signal.signal(signal.SIGINT, _interrupted)
    try:
        yield
    finally:
        for number, handler in before:
            if handler is not None:  # one that was not set from Python cannot be set again
                signal.signal(number, handler)


def _interrupted(number: int, frame: object) -> NoReturn:
    signal.signal(signal.SIGINT, _interrupted_again)
    raise KeyboardInterrupt


def _interrupted_again(number: int, frame: object) -> NoReturn:
    # Files can take a kill at any moment. The escape sequence shows the cursor that the status line hid.
    shown = b"\x1b[?25h" if sys.stderr and sys.stderr.isatty() else b""
    with suppress(OSError):
        os.write(2, shown + b"\nstopped at once; run the same command again to resume\n")
    os._exit(130)


def _run(name: str, arguments: list[str]) -> int:
    try:
        package = _package_of(name)
        if asked := _help(name, package, arguments):
            print(asked)
            return 0
        return _recipe(name, arguments) if package == "recipes" else _command(name, arguments)
    finally:
        # Before an error is printed: remove the progress line.
        if "distill_lab.terminal" in sys.modules:
            sys.modules["distill_lab.terminal"].close_all()


def _help(name: str, package: str, arguments: list[str]) -> str:
    """The help that the arguments ask for, read from the command's file; empty if they ask for none."""
    flags = [each for each in arguments if each in ("-h", "--help", "--help-all")]
    if not flags:
        return ""
    from distill_lab.commands._help import help_text
    from distill_lab.commands._settings_file import docstring

    prog, path, about = f"distill {name}", _folder(package) / f"{name.replace('-', '_')}.py", ""
    recipe = arguments[0]
    if "TAKES_RECIPE = True" in path.read_text(encoding="utf-8") and _package_or_none(recipe) == "recipes":
        prog, about, package = f"{prog} {recipe}", docstring(path), "recipes"
        path = _folder(package) / f"{recipe.replace('-', '_')}.py"
    return help_text(prog, path, is_recipe=package == "recipes", everything="--help-all" in flags, about=about)


def _package_or_none(name: str) -> str | None:
    return next((package for package in PACKAGES if name.replace("-", "_") in _names(package)), None)


def overview() -> str:
    """What `distill --help` prints: every command with the first sentence of its file."""
    lines = ["distill: turn a big teacher into a small, fast student, and measure how much quality it keeps.", ""]
    lines += ["  distill COMMAND --help     inputs, outputs and the settings that matter first (--help-all: all)", ""]
    for package, title in PACKAGES.items():
        lines.append(f"{package} ({title})")
        for name in _names(package):
            lines.append(f"  {_spelled(name):<20}{_first_sentence(_folder(package) / f'{name}.py')}")
        lines.append("")
    lines += ["New here? `distill demo` shows everything on this machine in a few minutes, offline.", ""]
    return "\n".join(lines)


def _folder(package: str) -> Path:
    return Path(__file__).parent / package


def _names(package: str) -> list[str]:
    modules = pkgutil.iter_modules([str(_folder(package))])
    return sorted(module.name for module in modules if not module.name.startswith("_"))


def _spelled(name: str) -> str:
    return name.replace("_", "-")


def _first_sentence(path: Path) -> str:
    """The first line of a file's docstring; does not import the file."""
    with path.open(encoding="utf-8") as file:
        return file.readline().strip().strip('"').rstrip(".")


def _package_of(name: str) -> str:
    from difflib import get_close_matches

    from distill_lab.errors import UserError

    known = {_spelled(module): package for package in PACKAGES for module in _names(package)}
    if name in known:
        return known[name]
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}"
    raise UserError(f"distill: no command {name!r}; {hint}")


def _recipe(name: str, arguments: list[str]) -> int:
    from distill_lab.terminal import Terminal

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from distill_lab.errors import UserError

        raise UserError(
            f"distill {name} starts its training processes itself: run it without torchrun or accelerate launch, with "
            "--train.num-processes N; on several machines, launch `distill train`"
        )
    module, config, directory, notes = _recipe_settings(name, arguments, prog=f"distill {name}")
    terminal = Terminal()
    for note in notes:
        terminal.note(note)
    summary = module.run(config, directory, watch=terminal)
    terminal.summary(summary, directory)
    return 0


def _recipe_settings(name: str, arguments: list[str], *, prog: str) -> tuple[ModuleType, Config, Path, list[str]]:
    """A recipe's module, its settings from preset, YAML and flags, its run directory, and notes on where they come from."""
    module = importlib.import_module(f"distill_lab.recipes.{name.replace('-', '_')}")
    options, rest = take_options(arguments, ("preset", "config", "run"))
    from distill_lab.files.yaml_file import read_yaml
    from distill_lab.planning.presets import given, start

    yaml = read_yaml(Path(options["config"])) if "config" in options else {}
    named = given(yaml, spell_out(module.Config, rest))
    presets = getattr(module, "PRESETS", {})
    start_from, why, notes = start(presets, module.Config, preset=options.get("preset"), given=named)
    base = _from_yaml(start_from, options.get("config"))
    real = next((key for key in presets if key != "tiny"), "the recipe's defaults")
    help_text = GLOBAL_HELP.format(presets=", ".join(presets) or "none", default=real, name=name)
    config = _flags(type(base), base, rest, prog=prog, description=f"{module.__doc__}\n{help_text}")
    directory = Path(options.get("run") or f"runs/{name}")
    return module, config, directory, [f"{why}, run directory {directory}", *notes]


def _command(name: str, arguments: list[str]) -> int:
    module = importlib.import_module(f"distill_lab.commands.{name.replace('-', '_')}")
    if getattr(module, "TAKES_RECIPE", False) and arguments and not arguments[0].startswith("-"):
        recipe = arguments[0]
        if _package_of(recipe) != "recipes":
            from distill_lab.errors import UserError

            known = ", ".join(map(_spelled, _names("recipes")))
            raise UserError(f"distill {name}: {recipe} is not a recipe; choose from {known}")
        _, config, directory, notes = _recipe_settings(recipe, arguments[1:], prog=f"distill {name} {recipe}")
        return module.main(recipe, config, directory, notes) or 0
    refuse_options(getattr(module, "REFUSED", {}), arguments)
    arguments = other_spellings(getattr(module, "ALIASES", {}), arguments)
    config = _flags(module.Config, None, arguments, prog=f"distill {name}", description=module.__doc__ or "")
    return module.main(config) or 0


def _from_yaml(base: S, path: str | None) -> S:
    if path is None:
        return base
    from pydantic import ValidationError

    from distill_lab.config import AS_GIVEN
    from distill_lab.errors import UserError
    from distill_lab.files.yaml_file import merge_settings, read_yaml

    try:
        return type(base).model_validate(merge_settings(base.model_dump(context=AS_GIVEN), read_yaml(Path(path))))
    except ValidationError as error:
        problems = [f"{path}: {'.'.join(map(str, e['loc']))}: {_plain(e, type(base))}" for e in error.errors()]
        raise UserError("\n".join(problems)) from None


def _plain(error: ErrorDetails, kind: type[Config]) -> str:
    """What is wrong with a setting in a YAML file; for an unknown one, the name that it is close to."""
    from difflib import get_close_matches

    if error["type"] != "extra_forbidden":
        return error["msg"]
    *group, name = map(str, error["loc"])
    inside = field_type(kind, group)
    close = get_close_matches(name, getattr(inside, "model_fields", {}), n=1)
    return f"no such setting; did you mean {close[0]}?" if close else "no such setting"


def _flags(kind: type[C], base: C | None, arguments: list[str], *, prog: str, description: str) -> C:
    """The settings with the flags applied. tyro prints errors in flags itself and exits with 2."""
    os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")  # a link to pydantic's pages helps nobody with a setting
    import tyro

    arguments = spell_out(kind, arguments)
    reject_empty_paths(kind, arguments)
    if base is None:
        return tyro.cli(kind, args=arguments, prog=prog, description=description)
    return tyro.cli(kind, args=arguments, prog=prog, description=description, default=base)


def _terminated(number: int, frame: object) -> NoReturn:
    # An exception, so that files are closed and the run's lock is released on the way out.
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
