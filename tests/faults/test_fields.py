"""Whatever value a field of a method, attack or metric has, making the object raises nothing but an EffaceError."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efface import registry
from efface.errors import BadInput, EffaceError
from efface.util import ranges

REGISTERED = [(kind, name) for kind in ("methods", "attacks", "metrics") for name in registry.names(kind)]
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**30, -(10**30), 10**400, -1, 0]),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=4),
    st.sampled_from(["", "\0", "a" * 5000, "{}", "{} {}", "\ud800", "../x", "1e308"]),
    st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=4), st.none()), max_size=3).map(tuple),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.just(object()),
)


def remade(cls: type[Any], values: dict[str, Any]) -> Any:
    """Make an object with these values, past the type checks of the tests."""
    made = cls()
    for name, value in values.items():
        object.__setattr__(made, name, value)
    made.__post_init__()
    return made


@pytest.mark.parametrize(("kind", "name"), REGISTERED)
@given(data=st.data())
def test_only_our_errors_come_out(kind: str, name: str, data: st.DataObject):
    cls = registry.get(kind, name)
    fields = registry.describe(cls)
    if not fields:
        return
    chosen = data.draw(st.lists(st.sampled_from(fields), min_size=1, max_size=3, unique_by=lambda f: f.name))
    values = {field.name: data.draw(ODD, label=field.name) for field in chosen}
    made, said = None, ""
    try:
        made = remade(cls, values)
    except EffaceError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 1500
    for field in fields if made else ():
        registry.check_field(field, getattr(made, field.name), field.name)


@pytest.mark.parametrize(("kind", "name"), REGISTERED)
def test_every_number_states_its_range_and_its_defaults_lie_in_it(kind: str, name: str):
    cls = registry.get(kind, name)
    for field in registry.describe(cls):
        if field.type not in (int, float):
            continue
        low, high, from_low, to_high = ranges.interval(field.range)  # raises for a field without one
        for step, inside in ((low, from_low), (high, to_high)):
            for value, fits in ((step, inside), (step - 1 if step == low else step * 2 + 1, False)):
                one = int(value) if field.type is int else float(value)
                given = (one,) if field.many else one
                if fits:
                    registry.check_field(field, given, field.name)
                else:
                    with pytest.raises(BadInput, match=f"{field.name} must be"):
                        registry.check_field(field, given, field.name)
        for value in (float("nan"), float("inf"), -float("inf")):
            with pytest.raises(BadInput):
                registry.check_field(field, (value,) if field.many else value, field.name)
    for preset in cls.PRESETS:
        cls.preset(preset)


def test_products_that_fill_memory_are_refused():
    gradient = registry.get("attacks", "gradient")
    with pytest.raises(BadInput, match=r"restarts \* noises must be from 1 to 4096, got 16777216"):
        gradient(restarts=4096, noises=4096)
    assert gradient(restarts=64, noises=64)


def test_intervals_are_read_and_said():
    for text in ("", "0, 1", "[1, 0]", "[a, b]", "[0, 1"):
        with pytest.raises(ValueError, match="is not an interval"):
            ranges.interval(text)
    assert ranges.words("[0, 1]") == "from 0 to 1"
    assert ranges.words("(0, 1e10)") == "above 0 and below 1e+10"
    assert ranges.words("[0.5, 1)") == "at least 0.5 and below 1"
    assert [ranges.within(v, "(0, 1]") for v in (0, 1e-9, 1, 1.1, float("nan"))] == [False, True, True, False, False]
    assert ranges.short(10**5000) == "a number of thousands of digits"
    with pytest.raises(BadInput, match="x must be a finite number, got inf"):
        ranges.check(float("inf"), "", "x")
