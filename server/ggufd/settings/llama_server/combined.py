"""Settings that several of llama-server's flags make together: where a model comes from, variables of the template."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ggufd.settings.llama_server import readings

Parts = Sequence[tuple[str, Any]]
"""Names and values of the parts of a group, in the order in which they were given."""

_HUB_FILE = re.compile(r"https://(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)/resolve/main/([^?#:]+\.gguf)(?:\?.*)?")


def _model(parts: Parts) -> dict[str, Any]:
    """As in llama-server a repository goes before a URL, and that before a path. Several paths are several models."""
    given = dict(parts)
    if repo := given.get("repo"):
        return {"model": _of_hub(repo, given.get("file"))}
    if given.get("file"):
        raise ValueError("--hf-file names a file of a repository: --hf-repo OWNER/REPO is missing")
    if url := given.get("url"):
        return {"model": _of_url(url)}
    first, *more = (value for name, value in parts if name == "path")
    return {"model": first, "more_models": list(dict.fromkeys(more))} if more else {"model": first}


def _draft(parts: Parts) -> dict[str, Any]:
    given = dict(parts)
    if repo := given.get("repo"):
        return {"model_draft": _of_hub(repo, given.get("path"))}
    return {"model_draft": given["path"]}


def _of_hub(repo: str, file: str | None) -> str:
    return f"hf:{repo.partition(':')[0]}/{file}" if file else f"hf:{repo}"


def _of_url(url: str) -> str:
    """The hub's name of a file whose URL is the hub's; other URLs stay, and are refused where models are found."""
    found = _HUB_FILE.fullmatch(url)
    return f"hf:{found[1]}/{found[2]}" if found else url


def _template(parts: Parts) -> dict[str, Any]:
    """Variables for the template; null takes one away."""
    values: dict[str, Any] = {}
    for _, part in parts:
        values |= part
    return {"chat_template_kwargs": json.dumps({name: value for name, value in values.items() if value is not None})}


def _strings(parts: Parts) -> dict[str, Any]:
    """Strings that escape sequences may stand in: breakers of DRY, of which `none` takes all away, and stops."""
    escapes = dict(parts).get("escape", True)
    read = readings.unescaped if escapes else str
    made: dict[str, Any] = {}
    for name, value in parts:
        match name:
            case "breaker":
                before = [] if value == "none" else made.get("dry_sequence_breakers", [])
                made["dry_sequence_breakers"] = before if value == "none" else [*before, read(value)]
            case "stop":
                made["stop"] = [*made.get("stop", []), read(value)]
    return made


def _cpus(parts: Parts) -> dict[str, Any]:
    """A mask and a range complement each other."""
    return {"cpus": ",".join(value for _, value in parts)}


GROUPS: Mapping[str, Callable[[Parts], dict[str, Any]]] = {
    "model": _model,
    "draft": _draft,
    "template": _template,
    "strings": _strings,
    "cpus": _cpus,
}
"""A group -> the settings that its parts make. Each raises ValueError in words."""
