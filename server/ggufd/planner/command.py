"""`ggufd plan`: a model file or a folder in; tables, Markdown or JSON out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ggufd.errors import ModelError
from ggufd.models import hub
from ggufd.planner import report, table
from ggufd.planner.machine import this_machine
from ggufd.settings import adapters, engine_settings, model_files
from ggufd.settings.config import Config


def run(target: str, config: Config, *, as_json: bool) -> None:
    """Plan the model that `target` or the settings name, or every model of a folder. Raises ModelError."""
    target = target or config.model.model
    models = [hub.with_metadata(model, engine_settings.metadata_of(config)) for model in hub.find_all(target, _warn)]
    models = [_completed(config, model) for model in models]
    for model in models:
        adapters.check(config, model)
    machine = this_machine(engine_settings.engine_config(config, models[0]))
    context = engine_settings.context_params(config)
    reports = [report.make(model, config, context, machine) for model in models]
    is_folder = Path(target).expanduser().is_dir() if target else False
    if as_json:
        values = [report.as_json(one) for one in reports]
        print(json.dumps(values if is_folder else values[0], indent=2))
    elif is_folder:
        print(table.markdown(reports))
    else:
        table.show(reports[0])


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
