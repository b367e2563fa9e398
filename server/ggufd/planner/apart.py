"""Plan of a model for the server, made in a process of its own: the server's process loads no C library.

The settings go in as JSON, and the plan, or what is wrong with it, comes out: `python -m ggufd.planner.apart`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from ggufd.errors import GgufdError, ModelError, Unavailable
from ggufd.settings.config import Config

_TIMEOUT_S = 60.0
"""A model on a hub is read over the network: its header only."""


async def plan_apart(config: Config) -> dict[str, Any]:
    """The plan of the model that `config` names, as `ggufd plan --json` tells it.

    Raises ModelError, or Unavailable when it takes too long.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "ggufd.planner.apart"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(config.model_dump_json().encode()), _TIMEOUT_S)
    except TimeoutError:
        raise Unavailable(f"the plan took longer than {_TIMEOUT_S:g} s; try again", retry_after_s=10) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        answer: dict[str, Any] = json.loads(out)
    except ValueError:
        raise ModelError("the plan of this model could not be made: see `ggufd plan`") from None
    if "error" in answer:
        raise ModelError(answer["error"])
    return answer


def main() -> None:
    """Read settings from standard input, and write their plan."""
    from ggufd.planner.command import plan_of

    try:
        answer = plan_of(Config.model_validate_json(sys.stdin.read()))
    except GgufdError as error:
        answer = {"error": error.message}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
