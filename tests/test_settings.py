"""Settings: every field says what it is, and a typing mistake is not a silent default."""

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pydantic
import pytest
from pydantic import BaseModel, ValidationError

import safety_neurons as sn
from safety_neurons.calibration.config import CalibrationConfig, GuardConfig
from safety_neurons.core.config import Config
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.evaluation.config import EvaluationConfig
from safety_neurons.explanation.config import ExplainConfig
from safety_neurons.neurons.config import FindConfig
from safety_neurons.settings import PROFILES, Settings
from safety_neurons.tuning.config import TuningConfig


def fields(section: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, type | None]]:
    """(path, field, the section that it is, if it is one) of all settings, sections included."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        inner = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
        yield (*path, name), field, inner
        if inner is not None:
            yield from fields(inner, (*path, name))


ALL = list(fields(Settings))
VALUES = [(path, field) for path, field, inner in ALL if inner is None]
SECTIONS = [((), Settings), *((path, inner) for path, _, inner in ALL if inner is not None)]


@pytest.mark.parametrize(
    ("path", "field"), VALUES, ids=lambda value: ".".join(value) if isinstance(value, tuple) else ""
)
def test_every_setting_says_what_it_is(path: tuple[str, ...], field: Any) -> None:
    assert field.description, path
    assert field.description.rstrip().endswith((".", ")"))
    assert len(field.description) > 15


@pytest.mark.parametrize(("path", "section"), SECTIONS, ids=str)
def test_every_section_says_what_it_is(path: tuple[str, ...], section: type[BaseModel]) -> None:
    assert section.__doc__
    assert section.__doc__.strip()


def nested(path: tuple[str, ...], value: Any) -> Any:
    for name in reversed(path):
        value = {name: value}
    return value


@pytest.mark.parametrize(("path", "section"), SECTIONS, ids=str)
def test_unknown_names_are_refused(path: tuple[str, ...], section: type[BaseModel]) -> None:
    with pytest.raises(pydantic.ValidationError, match="tpyo"):
        Settings.model_validate(nested((*path, "tpyo"), 1))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("find", "percent"), 0),
        (("find", "percent"), 100.1),
        (("find", "positions"), 0),
        (("find", "scope"), "galaxy"),
        (("calibrate", "alpha_rejection"), -1),
        (("calibrate", "generated_tokens"), -1),
        (("tune", "learning_rate"), 0),
        (("tune", "epochs"), 0),
        (("tune", "max_over_refusal"), -0.1),
        (("tune", "max_over_refusal"), 1.5),
        (("tune", "validation_prompts"), 0),
        (("tune", "samples"), -1),
        (("tune", "temperature"), 0),
        (("tune", "largest_share"), 0),
        (("tune", "largest_share"), 1.1),
        (("tune", "kl"), -0.1),
        (("tune", "schedule"), "sudden"),
        (("evaluate", "attacks"), []),
        (("evaluate", "answer_tokens"), 0),
        (("batch_size",), 0),
        (("dtype",), "float8"),
    ],
    ids=str,
)
def test_values_without_meaning_are_refused(path: tuple[str, ...], value: Any) -> None:
    with pytest.raises(pydantic.ValidationError, match=path[-1]):
        Settings.model_validate(nested(path, value))


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize(
    "path",
    [
        ("find", "percent"),
        ("calibrate", "alpha_rejection"),
        ("calibrate", "alpha_conformity"),
        ("tune", "learning_rate"),
    ],
    ids=".".join,
)
def test_numbers_are_finite(path: tuple[str, ...], value: float) -> None:
    """They are written to run.json, which knows no NaN and no infinity."""
    with pytest.raises(pydantic.ValidationError, match=path[-1]):
        Settings.model_validate(nested(path, value))


def test_defaults_survive_their_own_record() -> None:
    """What run.json holds is read again as the same settings."""
    dumped = Settings().model_dump(mode="json")
    assert Settings.model_validate(dumped) == Settings()
    changed = Settings.model_validate({"find": {"percent": 7}, "chat_template": "a/b.jinja", "thinking": False})
    assert Settings.model_validate(changed.model_dump(mode="json")) == changed


def test_defaults_fit_together() -> None:
    """Calibration asks for no more positions than finding keeps."""
    settings = Settings()
    assert isinstance(settings.calibrate.prompt_positions, int)
    assert settings.calibrate.prompt_positions <= settings.find.positions


FUNCTIONS: dict[str, tuple[Any, type[Config]]] = {
    "find": (sn.find, FindConfig),
    "explain": (sn.explain, ExplainConfig),
    "calibrate": (sn.calibrate, CalibrationConfig),
    "tune": (sn.tune, TuningConfig),
    "guard": (sn.fit_guard, GuardConfig),
    "evaluate": (sn.evaluate, EvaluationConfig),
}


@pytest.mark.parametrize("section", FUNCTIONS)
def test_the_library_has_the_settings_defaults(section: str) -> None:
    """`sn.tune(model, neurons, corpus)` is what `safety-neurons tune` does."""
    function, config = FUNCTIONS[section]
    settings = getattr(Settings(), section)
    shared = config().model_dump()
    assert shared.items() <= settings.model_dump().items()
    parameters = inspect.signature(function).parameters
    if section != "evaluate":
        assert parameters["config"].default == config()
        assert not parameters.keys() & shared.keys() - {"neurons"}
    # A default of its own would be a second one.
    own = parameters.keys() & shared.keys() - {"neurons"}
    assert {name: parameters[name].default for name in own} == dict.fromkeys(own)


def test_options_override_the_config_and_a_wrong_one_is_an_error() -> None:
    config = TuningConfig(epochs=3, kl=0.5)
    assert config.override({"kl": 1}) == TuningConfig(epochs=3, kl=1.0)
    assert config.override({}) is config
    with pytest.raises(SafetyNeuronsError, match=r"^There is no option epoch\. Did you mean epochs.*\?$"):
        config.override({"epoch": 1})
    with pytest.raises(SafetyNeuronsError, match=r"^epochs cannot be 0: input should be greater than or equal to 1\.$"):
        config.override({"epochs": 0})
    with pytest.raises(
        SafetyNeuronsError, match=r"^prompt_positions cannot be 'some': [^:]*; or [^:]*'template' or 'all'"
    ):
        CalibrationConfig().override({"prompt_positions": "some"})


def test_problems_of_settings_name_the_section() -> None:
    given = {"find": {"percent": 500, "percnt": 3}, "calibrate": {"layers": (2, 1)}}
    with pytest.raises(SafetyNeuronsError) as caught:
        Settings.checked(given)
    told = str(caught.value)
    assert all(part in told for part in ("find.percent cannot be 500", "no option find.percnt", "layers are the first"))


def test_sections_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().find.percent = 50  # type: ignore[misc]


def test_the_quick_profile_differs_from_the_defaults() -> None:
    found, full = Settings.checked(PROFILES["quick"]).model_dump(), Settings().model_dump()
    for section, values in PROFILES["quick"].items():
        for field in values:
            assert found[section][field] != full[section][field], (section, field)


def protocol() -> list[dict[str, str]]:
    """The rows of the table of docs/paper.md, by column."""
    page = (Path(__file__).parents[1] / "docs" / "paper.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    columns = next(row for row in rows if "setting" in row)
    body = [row for row in rows[rows.index(columns) + 2 :] if len(row) == len(columns)]
    return [dict(zip(columns, row, strict=True)) for row in body]


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings by dotted name."""
    return {
        path: value
        for name, own in values.items()
        for path, value in (
            {f"{name}.{key}": one for key, one in own.items()} if isinstance(own, dict) else {name: own}
        ).items()
    }


def shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    return " ".join(value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)


@pytest.mark.parametrize("profile", ["paper", "paper-released"])
def test_the_protocol_of_the_paper_is_the_table_of_the_docs(profile: Any) -> None:
    found, default = (
        flat(values) for values in (Settings.checked(PROFILES[profile]).model_dump(), Settings().model_dump())
    )
    rows = {row["setting"].strip("`"): row for row in protocol() if row["setting"] != "-"}
    for name, row in rows.items():
        assert (name, row[f"`{profile}`"], row["default"]) == (name, shown(found[name]), shown(default[name]))
    assert {name for name in found if found[name] != default[name]} <= flat(PROFILES[profile]).keys() <= rows.keys()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seed": 2**64}, "^seed is too large: give a number of at most 4294967295\\.$"),
        ({"seed": -1}, "^seed cannot be -1"),
        ({"guard": {"layer": 10**24}}, "^layer is too large"),
        ({"calibrate": {"layers": (0, 10**24)}}, "^layers is too large"),
        ({"batch_size": 16**5000}, "^batch_size is too large"),
        ({"find": {"percent": 16**5000}}, "^find.percent cannot be a number of so many digits"),
        ({"tune": {"temperature": 1e-308}}, "^tune.temperature cannot be 1e-308: .*0.01"),
    ],
)
def test_numbers_that_nothing_could_compute_with(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SafetyNeuronsError, match=said):
        Settings.checked(options)
