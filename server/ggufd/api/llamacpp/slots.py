"""llama-server's `POST /slots/{id}?action=...`: erase, save or restore the KV cache of an idle slot.

Files have plain names within one folder, which a setting names. Nothing else of the disk can be reached.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from fastapi import Depends, Request
from starlette.responses import Response

from ggufd.api.http.auth import admin_only
from ggufd.api.http.body import read_json
from ggufd.api.http.json_response import json_response
from ggufd.api.request.path_router import PathRouter
from ggufd.api.services.services import Services, services_of
from ggufd.engine.messages.requests import ActOnSlot, SlotAction
from ggufd.errors import InvalidRequest, NotFound, Unsupported

router = PathRouter(tags=["llama.cpp"], dependencies=[Depends(admin_only)])

_FILENAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_ACTIONS = {action.value: action for action in SlotAction}


@router.post("/slots/{slot}", include_in_schema=False)
async def act_on_slot(request: Request, slot: str) -> Response:
    """`?action=erase` forgets what an idle slot keeps; `save` and `restore` take `{"filename": ...}`."""
    services = services_of(request)
    name = str(request.query_params.get("action"))
    if name not in _ACTIONS:
        raise Unsupported(f"'action': {name[:40]!a} is none of {', '.join(_ACTIONS)}.", param="action")
    ready = services.require_ready()
    if not slot.isdecimal() or int(slot[:9]) >= ready.n_slots:
        raise NotFound(f"There is no slot {slot[:20]!a}. This server has 0 to {ready.n_slots - 1}.")
    action = _ACTIONS[name]
    if action is SlotAction.ERASE:
        done = await services.engine.reports.act_on_slot(ActOnSlot(int(slot), action))
        return json_response({"id_slot": int(slot), "n_erased": done.n_tokens})
    path = await _path(services, request)
    start_s = time.perf_counter()
    done = await services.engine.reports.act_on_slot(ActOnSlot(int(slot), action, str(path), ready.fingerprint))
    took_ms = round((time.perf_counter() - start_s) * 1000, 3)
    verb, moved = ("saved", "written") if action is SlotAction.SAVE else ("restored", "read")
    return json_response(
        {
            "id_slot": int(slot),
            "filename": path.name,
            f"n_{verb}": done.n_tokens,
            f"n_{moved}": done.n_bytes,
            "timings": {f"{name}_ms": took_ms},
        }
    )


async def _path(services: Services, request: Request) -> Path:
    """The file that the body names. Raises Unsupported without a folder, InvalidRequest for what is no plain name."""
    folder = services.config.slot_save_path
    if folder is None:
        raise Unsupported(
            "'action': slots are saved and restored where the server was started with --slot-save-path FOLDER. What a "
            "chat computed is found again without that, as long as the server runs.",
            param="action",
        )
    filename = (await read_json(request, services.config.max_body_bytes)).get("filename")
    if not isinstance(filename, str) or not _FILENAME.fullmatch(filename):
        raise InvalidRequest(
            "'filename': expected a plain name of up to 100 letters, digits and . _ -, without a folder.",
            param="filename",
        )
    return folder / filename
