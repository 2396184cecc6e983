"""The model card of a merged model: what was tuned, on what, with which settings, and what was measured."""

import re
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from safety_neurons.models.presets import PRESETS
from safety_neurons.report import tables, text
from safety_neurons.report.rates import Arm, Rate
from safety_neurons.tuning.delta import NeuronDelta

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~$&])")


def model_card(delta: NeuronDelta, results: Mapping[str, Any] | None = None, command: str = "") -> str:
    """The card as Markdown text.

    Args:
        results: the content of the run's results.json; without it the card says what was tuned and no more.
        command: what merged the model.
    """
    results = results or {}
    run = results.get("run") or {}
    arms, comparisons = tables.comparisons(results.get("rows") or [])
    provenance = delta.neurons.provenance
    preset = PRESETS.get(provenance.model)
    environment = Environment(
        loader=PackageLoader("safety_neurons.report", ""),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "cell": escaped,
        "visible": text.visible,
        "rate": _rate,
        "count": text.count,
        "share": text.share,
    }
    return environment.get_template("card.md.j2").render(
        delta=delta,
        neurons=delta.neurons,
        provenance=provenance,
        hub_id=preset.hub_id if preset else None,
        rejection=sum(map(len, delta.neurons.rejection)),
        conformity=sum(map(len, delta.neurons.conformity)),
        share=delta.parameters / provenance.parameters_total,
        corpus=(results.get("training") or {}).get("corpus") or {},
        settings=_settings(run.get("settings") or {}),
        prompts=run.get("prompts") or {},
        versions=run.get("versions") or {},
        measured=[(one, *pair) for one in comparisons if any(pair := _before_and_after(arms, one.rates))],
        commands=[line for line in (run.get("command"), command) if line],
    )


def escaped(value: Any) -> str:
    """A value as one line of Markdown that shows just its characters, also within a table."""
    return _MARKDOWN.sub(r"\\\1", text.visible(value, 300))


def _settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the tuned weights and the results depend on, where they are set, by their dotted names."""
    named = {name: settings.get(name) for name in ("seed", "dtype", "quantize", "system", "thinking")}
    for section in ("find", "calibrate", "tune", "evaluate"):
        named |= {f"{section}.{name}": value for name, value in (settings.get(section) or {}).items()}
    return {name: value for name, value in named.items() if value is not None}


def _before_and_after(arms: list[Arm], found: tuple[Rate | None, ...]) -> tuple[Rate | None, Rate | None]:
    pairs = list(zip(arms, found, strict=True))
    return (
        next((rate for arm, rate in pairs if arm.base), None),
        next((rate for arm, rate in pairs if arm.tuned), None),
    )


def _rate(rate: Rate | None) -> str:
    """ "48% (40-56%, n = 100)", where the interval holds 95%."""
    if rate is None or rate.value is None:
        return "not measured"
    return f"{text.percent(rate.value)} ({text.interval(rate.low, rate.high)}, n = {rate.n})"
