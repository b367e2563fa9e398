"""`ggufd cluster`: several servers behind one address, on Ray Serve. Each command says what it waits for."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ggufd import console as terminal
from ggufd.cluster.serving import config_files
from ggufd.cluster.serving.cluster import Cluster, ClusterState
from ggufd.cluster.serving.cluster_settings import carried, replica_tables
from ggufd.cluster.serving.dashboard import DEFAULT_URL, Dashboard, RayError
from ggufd.cluster.serving.loads import Load, loads
from ggufd.cluster.serving.ray_head import PORTS, RayHead
from ggufd.cluster.serving.serve_config import SHRINK_AFTER_S, ClusterOptions
from ggufd.cluster.simulation.command import simulate
from ggufd.errors import ConfigError, GgufdError
from ggufd.settings import sources
from ggufd.settings.config import Config
from ggufd.settings.flags import CommandWithSections, with_settings

app = typer.Typer(
    help="Run several servers behind one address, on Ray Serve.", no_args_is_help=True, rich_markup_mode=None
)

_INTERRUPTED = 130

_Dashboard = Annotated[
    str,
    typer.Option(
        "--dashboard",
        metavar="URL",
        envvar="RAY_DASHBOARD_ADDRESS",
        show_envvar=False,
        show_default=False,
        help=f"Ray's dashboard, through which a cluster is deployed; default: RAY_DASHBOARD_ADDRESS, {DEFAULT_URL}.",
    ),
]


def _number(flag: str, help_text: str, metavar: str = "N") -> Any:
    return typer.Option(flag, metavar=metavar, help=help_text, show_default=False)


_SIZE: dict[str, tuple[Any, Any]] = {
    "replicas": (Annotated[int, _number("--replicas", "Servers to run. [1]")], 1),
    "max_replicas": (
        Annotated[int | None, _number("--max-replicas", "Scale with the load, from --replicas up to so many.")],
        None,
    ),
    "shrink_after_s": (
        Annotated[
            float,
            _number("--shrink-after-s", "With --max-replicas: seconds of less load before a server ends. [300]", "S"),
        ],
        SHRINK_AFTER_S,
    ),
    "ingresses": (Annotated[int, _number("--ingresses", "Ingresses in front of them, which share the load. [1]")], 1),
    "gpus_per_replica": (
        Annotated[float, _number("--gpus-per-replica", "GPUs of each server; 0.5 lets two share one. [0]", "X")],
        0.0,
    ),
    "replicas_per_node": (
        Annotated[int | None, _number("--replicas-per-node", "Most servers on one machine.")],
        None,
    ),
}
_PORTS_ARE_SHUT = Annotated[
    bool,
    typer.Option(
        "--ports-are-shut",
        help="A firewall keeps strangers from Ray's ports, which it opens on all addresses: needed to start Ray.",
    ),
]


_CONFIG: dict[str, tuple[Any, Any]] = {
    "kubernetes": (
        Annotated[bool, typer.Option("--kubernetes", help="A RayService of KubeRay in place of a Serve config.")],
        False,
    ),
    "image": (
        Annotated[str, typer.Option(metavar="NAME", help="Container image with ggufd[cluster].")],
        "ggufd-cluster:latest",
    ),
    "name": (Annotated[str, typer.Option(metavar="NAME", help="Name of the RayService.")], "ggufd"),
}
_DASHBOARD: dict[str, tuple[Any, Any]] = {"dashboard": (_Dashboard, DEFAULT_URL)}


def serve(
    config_file: Path | None,
    flags: dict[str, Any],
    *,
    replicas: int,
    max_replicas: int | None,
    shrink_after_s: float,
    ingresses: int,
    gpus_per_replica: float,
    replicas_per_node: int | None,
    ports_are_shut: bool,
    dashboard: str,
) -> None:
    """Deploy servers with any setting of `ggufd serve`, and wait until they are ready. Starts Ray where none runs.

    --host and --port are the address of the cluster. The servers take ports of their own.
    """
    with _errors_in_one_line():
        config = sources.load(config_file, flags)
        options = _options(
            config, replicas, max_replicas, shrink_after_s, ingresses, gpus_per_replica, replicas_per_node
        )
        ray = Dashboard(dashboard)
        _start_ray(ray, ports_are_shut)
        with _progress("deploying") as on_progress:
            state = Cluster(ray).deploy(options, on_progress)
        _show(state)


app.command("serve", cls=CommandWithSections)(
    with_settings(serve, own={**_SIZE, "ports_are_shut": (_PORTS_ARE_SHUT, False), **_DASHBOARD})
)


def roll(config_file: Path | None, flags: dict[str, Any], *, dashboard: str) -> None:
    """Start all servers anew, one after the other, with the settings that are given; others stay as they are.

    With --config all settings are read anew. No request fails where there are two servers or more.
    """
    with _errors_in_one_line():
        cluster = Cluster(Dashboard(dashboard))
        now = cluster.require().options
        config = sources.load(config_file, flags) if config_file is not None else _revised(now, flags)
        address = {"host": now.host, "port": now.port}
        config = config.model_copy(update={"server": config.server.model_copy(update=address)})
        with _progress("rolling") as on_progress:
            rolled = now.rolled(replica_tables(config), str(Path.cwd()), carried(os.environ))
            state = cluster.deploy(rolled, on_progress)
        _show(state)


app.command("roll", cls=CommandWithSections)(with_settings(roll, own=_DASHBOARD))


@app.command()
def status(dashboard: _Dashboard = DEFAULT_URL) -> None:
    """Show the replicas with their load."""
    with _errors_in_one_line():
        _show(Cluster(Dashboard(dashboard)).require())


@app.command()
def scale(
    replicas: Annotated[int, typer.Argument(metavar="N", help="Servers to run.")], dashboard: _Dashboard = DEFAULT_URL
) -> None:
    """Run so many servers. Those that end hand over their chats and finish their requests."""
    with _errors_in_one_line():
        cluster = Cluster(Dashboard(dashboard))
        options = cluster.require().options
        if options.max_replicas is not None:
            raise ConfigError(
                f"this cluster scales by its load, from {options.n_replicas} to {options.max_replicas} servers; "
                f"deploy it without --max-replicas to set their number"
            )
        options = options.scaled(replicas)
        with _progress("scaling") as on_progress:
            state = cluster.deploy(options, on_progress)
        _show(state)


@app.command()
def down(dashboard: _Dashboard = DEFAULT_URL) -> None:
    """Let all servers finish their requests and end, and end Ray, if `cluster serve` started it."""
    with _errors_in_one_line():
        ray, head = Dashboard(dashboard), RayHead()
        was_there = False
        if ray.is_there():
            with _progress("ending") as on_progress:
                was_there = Cluster(ray).remove(on_progress)
        elif head.process() is None:
            raise RayError("no Ray runs here, so there is nothing to end")
        with _progress("ending Ray"):
            was_started = head.stop()
        print("The cluster has ended." if was_there else "No cluster was deployed.", file=sys.stderr)
        print("Ray has ended." if was_started else "Ray was not started here, and runs on.", file=sys.stderr)


def config(
    config_file: Path | None,
    flags: dict[str, Any],
    *,
    replicas: int,
    max_replicas: int | None,
    shrink_after_s: float,
    ingresses: int,
    gpus_per_replica: float,
    replicas_per_node: int | None,
    kubernetes: bool,
    image: str,
    name: str,
) -> None:
    """Print the Serve config that `cluster serve` deploys, for `serve deploy FILE`; or a manifest for KubeRay."""
    with _errors_in_one_line():
        settings = sources.load(config_file, flags)
        size = (replicas, max_replicas, shrink_after_s, ingresses, gpus_per_replica, replicas_per_node)
        options = _options(settings, *size, are_elsewhere=kubernetes)
        text = config_files.ray_service(options, name, image) if kubernetes else config_files.serve_file(options)
        print(text, end="")


app.command("config", cls=CommandWithSections)(with_settings(config, own={**_SIZE, **_CONFIG}))


app.command("simulate")(simulate)


def options(command: str) -> dict[str, bool]:
    """Options of a command that takes every setting, and whether a value follows; of any other, none."""
    group: Any = typer.main.get_command(app)
    found = group.commands.get(command)
    if not isinstance(found, CommandWithSections):
        return {}
    settable: list[Any] = found.params
    known = {name: not one.is_flag for one in settable for name in (*one.opts, *one.secondary_opts)}
    return {"--help": False, "-h": False, **known}


@app.callback()
def needs_ray(context: typer.Context) -> None:
    """Run several servers behind one address, on Ray Serve."""
    if context.invoked_subcommand == "simulate":
        return
    missing = next((name for name in ("ray", "aiohttp") if importlib.util.find_spec(name) is None), None)
    if missing is not None:
        print(f"ggufd: cluster needs {missing}: pip install 'ggufd[cluster]'", file=sys.stderr)
        sys.exit(1)


def _options(
    config: Config,
    replicas: int,
    max_replicas: int | None,
    shrink_after_s: float,
    ingresses: int,
    gpus_per_replica: float,
    replicas_per_node: int | None,
    *,
    are_elsewhere: bool = False,
) -> ClusterOptions:
    return ClusterOptions(
        n_replicas=replicas,
        max_replicas=max_replicas,
        shrink_after_s=shrink_after_s,
        n_ingresses=ingresses,
        n_gpus=gpus_per_replica,
        per_node=replicas_per_node,
        host=config.server.host,
        port=config.server.port,
        tables=replica_tables(config, are_elsewhere=are_elsewhere),
        folder=str(Path.cwd()),
        variables=carried(os.environ),
    )


def _revised(now: ClusterOptions, flags: dict[str, Any]) -> Config:
    """The deployed settings with those that are given. Raises ConfigError."""
    deployed = Config.model_validate({**(now.tables or {}), "server": {**now.server, "host": now.host}})
    return sources.revise(deployed, flags)


def _start_ray(ray: Dashboard, ports_are_shut: bool) -> None:
    """Ray, unless one runs. Raises ConfigError without --ports-are-shut."""
    if ray.is_there():
        return
    if os.environ.get("RAY_ADDRESS"):
        raise RayError(
            f"RAY_ADDRESS is {os.environ['RAY_ADDRESS']}, and no dashboard answers at {ray.url}: name that Ray's "
            f"dashboard with --dashboard, or unset RAY_ADDRESS to start a Ray here"
        )
    if not ports_are_shut:
        raise ConfigError(_ports_text())
    with _progress("starting Ray"):
        RayHead().start(ray)


def _ports_text() -> str:
    lines = [f"  {numbers}: {what}" for numbers, what in PORTS]
    return (
        "no Ray runs here, and one that is started opens ports on all addresses of this machine, without a key:\n"
        + "\n".join(lines)
        + "\nKeep strangers from them with a firewall, then say so with --ports-are-shut. A Ray that runs is joined "
        "without it."
    )


def _show(state: ClusterState) -> None:
    """The address and a table of the replicas."""
    table = Table("replica", "machine", "state", "running", "waiting", "KV used", "address", box=None, pad_edge=False)
    table.header_style = "bold"
    told = loads()
    for row in state.replicas:
        table.add_row(row.replica_id, row.node, row.state.lower(), *_load_cells(told.get(row.replica_id)))
    url = state.options.url
    rows = [
        ("API", f"{url}/v1"),
        ("Chat", f"{url} in a browser"),
        ("Replicas", state.progress),
        ("Ingresses", f"{len(state.ingresses)}"),
    ]
    screen = Console()
    ready = "is ready" if state.is_ready else f"is {state.status.lower().replace('_', ' ')}"
    hints = ["", f"  {state.message}"] if state.message and not state.is_ready else []
    terminal.show(f"ggufd cluster {ready}", rows, hints, screen)
    screen.print()
    screen.print(table)


def _load_cells(load: Load | None) -> tuple[str, str, str, str]:
    if load is None:
        return "-", "-", "-", "-"
    return f"{load.running} of {load.n_slots}", str(load.waiting), f"{load.kv_used:.0%}", load.url


@contextmanager
def _progress(what: str) -> Iterator[Callable[[str], None]]:
    """A line that tells how far it is: on a terminal one that changes, elsewhere one for each change."""
    screen = Console(stderr=True)
    if screen.is_terminal:
        with screen.status(f"{what} ...") as line:
            yield lambda text: line.update(f"{what}: {text}")
        return
    said: list[str] = []

    def say(text: str) -> None:
        if said[-1:] != [text]:
            said.append(text)
            print(f"{what}: {text}", file=sys.stderr, flush=True)

    print(f"{what} ...", file=sys.stderr, flush=True)
    yield say


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except GgufdError as error:
        print(f"ggufd: {error.message}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("ggufd: interrupted; what was deployed goes on: see ggufd cluster status", file=sys.stderr)
        sys.exit(_INTERRUPTED)
