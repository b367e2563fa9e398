"""The `lora` field: a scale for each adapter."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ggufd.api.request.sampling import Int
from ggufd.api.request.validation import Body
from ggufd.api.services.settings import MAX_SCALE


class AdapterScale(Body):
    """Scale of one adapter."""

    id: Annotated[Int, Field(ge=0)]
    scale: Annotated[float, Field(ge=-MAX_SCALE, le=MAX_SCALE)]
