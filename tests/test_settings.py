"""Settings: every field says what it is, and a typing mistake is not a silent default."""

from collections.abc import Iterator
from typing import Any

import pydantic
import pytest
from pydantic import BaseModel, ValidationError

from safety_neurons.settings import Settings


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
        (("tune", "patience"), 0),
        (("tune", "patience"), 1.5),
        (("tune", "validate_every"), 0),
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


def test_sections_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().find.percent = 50  # type: ignore[misc]
