"""Command line: `serve`, `check`, `plan`, `fetch`, `keys`, `cluster`, `replay`, `bench`. Errors are one line, code 1.

Every child process imports it again, so nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial, update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ggufd import __version__
from ggufd.errors import GgufdError

if TYPE_CHECKING:
    import typer

    from ggufd.daemon.prestart import PrestartedProcesses
    from ggufd.settings.config import Config
    from ggufd.settings.llama_server.translation import CommandLine

_INTERRUPTED = 130
_HELP = {"-h", "--help"}
_TOP_LEVEL = {*_HELP, "--version"}
_SHOWS = {*_TOP_LEVEL, "--usage", "--list-devices"}
"""Options that show something instead of serving."""

_UNKNOWN_OPTION = 2


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script; `serve` is the default command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in _TOP_LEVEL):
        arguments = ["serve", *arguments]
    try:
        with _prestarted(arguments) as prestarted:
            line = _translated(arguments)
            build_app(arguments[0], prestarted, line.notes)(line.arguments, prog_name="ggufd")
    except KeyboardInterrupt:
        # Ctrl-C while a command is still being imported.
        sys.exit(_INTERRUPTED)


def _translated(arguments: list[str]) -> CommandLine:
    """The command line in our own words: what llama-server's says is translated."""
    from ggufd.settings.llama_server import translation

    command, known, environ = _with_settings(arguments)
    if not command:
        return translation.CommandLine(arguments)
    try:
        line = translation.command_line(arguments[len(command) :], known, environ)
        if command[0] == "cluster":
            _tell_of_cluster(line)
    except translation.UnknownOption as error:
        _fail(error, _UNKNOWN_OPTION)
    except GgufdError as error:
        _fail(error)
    os.environ.update(line.exports)
    if line.shows == "devices":
        _show_devices()
    line.arguments = {"": [*command, *line.arguments], "help": [*command, "--help"]}.get(line.shows, ["--version"])
    return line


def _with_settings(arguments: list[str]) -> tuple[list[str], Mapping[str, bool], Mapping[str, str]]:
    """The words of a command that takes every setting, with its options and the variables it reads; else none."""
    if arguments[0] in ("serve", "check"):
        from ggufd.settings import flags

        return arguments[:1], flags.options(), os.environ
    if arguments[0] == "cluster" and len(arguments) > 1:
        from ggufd import cluster_cli

        if known := cluster_cli.options(arguments[1]):
            # A roll changes what is given with it, and leaves the rest as it is deployed.
            return arguments[:2], known, {} if arguments[1] == "roll" else os.environ
    return [], {}, {}


def _tell_of_cluster(line: CommandLine) -> None:
    """What a command line of a cluster has that changes nothing. Raises ConfigError for what replicas cannot have."""
    from ggufd.cluster.serving import cluster_settings

    cluster_settings.check_exports(line.exports, os.environ)
    for note in () if line.shows else line.notes:
        print(f"ggufd: {note}", file=sys.stderr)


def _show_devices() -> NoReturn:
    """The devices that llama.cpp can offload to, under the names that --device takes."""
    from ggufd.llama.log import problems_only
    from ggufd.llama.model import system

    with problems_only():
        devices = system.device_memory()
    print("Available devices:")
    for one in devices:
        print(f"  {one.name}: {one.description} ({one.total >> 20} MiB, {one.free >> 20} MiB free)")
    sys.exit(0)


def _prestarted(arguments: list[str]) -> AbstractContextManager[PrestartedProcesses | None]:
    """Child processes of a server, started while the settings are read; None for other commands."""
    if arguments[0] != "serve" or not _SHOWS.isdisjoint(arguments):
        return nullcontext()
    # Imports leave no garbage, and looking for some takes a tenth of the start. When it serves, the daemon does.
    gc.disable()
    from ggufd.daemon import prestart

    return prestart.started()


def build_app(command: str, prestarted: PrestartedProcesses | None = None, notes: Sequence[str] = ()) -> typer.Typer:
    """Typer application, with only the imports that `command` needs. `notes` are about its command line."""
    import typer

    app = typer.Typer(
        help="Serve one GGUF model to many clients at once, over an OpenAI-compatible API.",
        epilog="`ggufd --model FILE` is short for `ggufd serve --model FILE`.\n\nAll settings: `ggufd serve -h`.\n\n"
        "llama-server's flags and LLAMA_ARG_* variables are understood too.",
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    app.callback()(_top())
    functions: dict[str, Callable[..., None]] = {
        "serve": update_wrapper(partial(serve, prestarted, notes), serve),
        "check": update_wrapper(partial(check, notes), check),
        "plan": plan,
        "fetch": fetch,
    }
    for name, function in functions.items():
        if name == command:
            _add_with_settings(app, name, function)
        else:
            app.command(name)(_placeholder(function.__doc__))
    further = {"ignore_unknown_options": True, "allow_extra_args": True}
    app.command("replay", context_settings=further)(_replay(command))
    app.add_typer(_bench(command), name="bench")
    app.add_typer(_keys(command), name="keys")
    app.add_typer(_cluster(command), name="cluster")
    return app


def _add_with_settings(app: typer.Typer, name: str, function: Callable[..., None]) -> None:
    """Add a command with a flag for each setting: to read their definitions takes longer than all else here."""
    from ggufd.settings.flags import CommandWithSections, with_settings

    if name in ("serve", "check"):
        app.command(name, cls=CommandWithSections)(with_settings(function))
    elif name == "plan":
        app.command(name)(with_settings(function, ("model", "context"), _plan_options()))
    else:
        app.command(name)(with_settings(function, ("model",)))


def _placeholder(description: str | None) -> Callable[..., None]:
    """Command that is only listed, since another one runs."""

    def placeholder() -> None:
        pass

    placeholder.__doc__ = description
    return placeholder


def _top() -> Any:
    """Callback for options before any command: `--version`."""
    from typing import Annotated

    import typer

    def show_version(wanted: bool) -> None:
        if wanted:
            typer.echo(f"ggufd {__version__}")
            raise typer.Exit

    option = typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")

    def top(version: bool = False) -> None:
        pass

    top.__annotations__["version"] = Annotated[bool, option]
    return top


def serve(
    prestarted: PrestartedProcesses | None, notes: Sequence[str], config_file: Path | None, flags: dict[str, Any]
) -> None:
    """Load the model and serve it until Ctrl-C (the default command)."""
    try:
        config = _load(config_file, flags)
        from ggufd import console, logs
        from ggufd.daemon import daemon
        from ggufd.settings import access

        logs.set_up(config.server.log_level, config.server.log_format, config.server.log_file)
        console.log_settings(_file(config_file), notes)
        code = daemon.run(config, access.of(config.server), prestarted)
    except GgufdError as error:
        _fail(error)
    except KeyboardInterrupt:
        code = _INTERRUPTED
    sys.exit(code)


def check(notes: Sequence[str], config_file: Path | None, flags: dict[str, Any]) -> None:
    """Check settings and model file, and show what would be run."""
    try:
        config = _load(config_file, flags)
        from ggufd.daemon.known_models import find_known
        from ggufd.planner import check as planned
        from ggufd.settings import access, listen, model_files

        known = find_known(config)
        config = config if known is None else known.configs[known.first]
        keys = access.of(config.server)
        listen.check_tls(config.server.ssl_key_file, config.server.ssl_cert_file)
        model = model_files.find_model(config, may_fetch=False)
        model_files.chat_template(config)
        planned.run(config, model, _file(config_file), 0 if keys is None else len(keys.ring))
        if known is not None and known.are_several:
            print(f"  Known models: {', '.join(one.name for one in known.catalogue)}")
        for note in notes:
            print(f"  {note}")
    except GgufdError as error:
        _fail(error)


def plan(config_file: Path | None, flags: dict[str, Any], *, target: str, as_json: bool) -> None:
    """Show how much memory a model needs, and what fits here.

    Only the model's header is read, nothing is loaded. For a folder: a Markdown table, as on model cards.
    """
    try:
        config = _load(config_file, flags)
        from ggufd.daemon.known_models import find_kept
        from ggufd.planner import command

        command.run(target, config, as_json=as_json, kept=find_kept(config))
    except GgufdError as error:
        _fail(error)


def fetch(config_file: Path | None, flags: dict[str, Any]) -> None:
    """Download the model, and the draft model, and print their paths.

    What is on this machine already is not downloaded again. Nothing is loaded.
    """
    try:
        config = _load(config_file, flags)
        from ggufd import logs
        from ggufd.settings import model_files

        logs.set_up(config.server.log_level, config.server.log_format, config.server.log_file)
        model = model_files.find_model(config)
        for one in (model, *([] if model.draft is None else [model.draft])):
            print(one.path)
    except GgufdError as error:
        _fail(error)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def _plan_options() -> dict[str, tuple[Any, Any]]:
    from typing import Annotated

    import typer

    file = typer.Argument(
        metavar="[FILE|FOLDER]", help="The model, or a folder of models; default: --model, else the demo model."
    )
    return {
        "target": (Annotated[str, file], ""),
        "as_json": (Annotated[bool, typer.Option("--json", help="Print all numbers as JSON.")], False),
    }


def _file(config_file: Path | None) -> Path | None:
    from ggufd.settings import sources

    return sources.find_file(config_file, os.environ)


def _load(config_file: Path | None, flags: dict[str, Any]) -> Config:
    from ggufd.settings import sources

    return sources.load(config_file, flags)


def _fail(error: GgufdError, code: int = 1) -> NoReturn:
    print(f"ggufd: {error.message}", file=sys.stderr)
    sys.exit(code)


def _keys(command: str) -> typer.Typer:
    """Commands of `ggufd keys`; a placeholder with the same help when another command runs."""
    if command == "keys":
        from ggufd.cli_keys import app

        return app
    import typer

    return typer.Typer(help="Create, list and revoke API keys.")


def _cluster(command: str) -> typer.Typer:
    """Commands of `ggufd cluster`; a placeholder with the same help when another command runs."""
    if command == "cluster":
        from ggufd.cluster_cli import app

        return app
    import typer

    return typer.Typer(help="Run several servers behind one address, on Ray Serve.")


def _replay(command: str) -> Callable[..., None]:
    """The command `ggufd replay`; a placeholder with the same help when another command runs."""
    if command == "replay":
        from ggufd.replay.command import replay

        return replay

    return _placeholder("Compute a deterministic answer again, and compare the texts.")


def _bench(command: str) -> typer.Typer:
    """Commands of `ggufd bench`; a placeholder with the same help when another command runs."""
    if command == "bench":
        from ggufd.bench.app import app

        return app
    import typer

    return typer.Typer(help="Benchmark an OpenAI-compatible server, or compare two.")
