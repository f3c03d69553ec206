"""What every table of a recipe is built from: a frozen base class, and the kinds of values that fields have.

A quantity with a unit stays the text that was written, so that a recipe reads back as it was; it is checked when the
recipe is built, and the table that holds it gives the number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from squall.units import to_bytes_per_second, to_seconds

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Words = Annotated[tuple[str, ...], Field(strict=False)]
Tables = Annotated[tuple[dict[str, Any], ...], Field(strict=False)]


class Spec(BaseModel):
    """A frozen table of a recipe; unknown fields and values of a wrong type are mistakes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


def quantity_rule(value: Any, read: Callable[[str], float], *, zero: bool) -> str:
    """What is wrong with a quantity, or nothing.

    Arguments:
        value: as written; a quantity is a text.
        read: gives its number, or raises ValueError with the valid forms.
        zero: whether it may be 0.
    """
    try:
        number = read(value if isinstance(value, str) else f"{value}")
    except ValueError as error:
        return "must be " + str(error).partition("Write ")[2]
    return "" if number > 0 or zero else "must be above 0"


def _quantity(read: Callable[[str], float], *, zero: bool = False) -> BeforeValidator:
    def check(value: Any) -> Any:
        if rule := quantity_rule(value, read, zero=zero):
            raise ValueError(rule)
        return value

    return BeforeValidator(check)


Time = Annotated[str, _quantity(to_seconds)]
TimeFromZero = Annotated[str, _quantity(to_seconds, zero=True)]
BytesPerSecond = Annotated[str, _quantity(to_bytes_per_second)]
