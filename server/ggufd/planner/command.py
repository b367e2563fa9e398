"""`ggufd plan`: a model file or a folder in; tables, Markdown or JSON out."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ggufd.errors import ModelError
from ggufd.models import hub
from ggufd.placement.kept_plan import KeptUse
from ggufd.planner import report, table
from ggufd.planner.machine import this_machine
from ggufd.settings import adapters, engine_settings, model_files
from ggufd.settings.config import Config


def run(target: str, config: Config, *, as_json: bool, kept: Mapping[str, Config] | None = None) -> None:
    """Plan the model that `target` or the settings name, or every model of a folder. Raises ModelError.

    `kept` are the settings of the models that stay loaded beside it, by name.
    """
    target = target or config.model.model
    models = [hub.with_metadata(model, engine_settings.metadata_of(config)) for model in hub.find_all(target, _warn)]
    models = [_completed(config, model) for model in models]
    for model in models:
        adapters.check(config, model)
    machine = this_machine(engine_settings.engine_config(config, models[0]))
    context = engine_settings.context_params(config)
    beside = _kept(kept or {})
    reports = [
        report.make(model, config, context, machine, [use for path, use in beside if path != model.path])
        for model in models
    ]
    is_folder = Path(target).expanduser().is_dir() if target else False
    if as_json:
        values = [report.as_json(one) for one in reports]
        print(json.dumps(values if is_folder else values[0], indent=2))
    elif is_folder:
        print(table.markdown(reports))
    else:
        table.show(reports[0])


def _kept(configs: Mapping[str, Config]) -> list[tuple[Path, KeptUse]]:
    """File of each model that stays loaded, and the memory that it takes."""
    found: list[tuple[Path, KeptUse]] = []
    for name, config in configs.items():
        (model, *_) = hub.find_all(config.model.model, _warn)
        model = _completed(config, hub.with_metadata(model, engine_settings.metadata_of(config)))
        machine = this_machine(engine_settings.engine_config(config, model))
        beside = [use for _, use in found]
        plan = report.make(model, config, engine_settings.context_params(config), machine, beside)
        best = plan.choice.estimate
        vram = best.vram.total + (plan.images.vram if plan.images else 0)
        found.append((model.path, KeptUse(name, best.needed + (plan.images.ram if plan.images else 0), vram)))
    return found


def plan_of(config: Config) -> dict[str, Any]:
    """The plan of the one model that `config` names, as JSON. Raises ModelError."""
    (model, *_) = hub.find_all(config.model.model, _warn)
    model = _completed(config, hub.with_metadata(model, engine_settings.metadata_of(config)))
    adapters.check(config, model)
    machine = this_machine(engine_settings.engine_config(config, model))
    return report.as_json(report.make(model, config, engine_settings.context_params(config), machine))


def _completed(config: Config, model: hub.ModelFile) -> hub.ModelFile:
    """The model with its projector and its draft model."""
    return model_files.with_draft(config, model_files.with_projector(config, model, may_fetch=False), may_fetch=False)


def _warn(error: ModelError) -> None:
    print(f"ggufd: skipped: {error.message}", file=sys.stderr)
