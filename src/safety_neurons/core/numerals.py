"""Numbers in messages that the user is to enter."""

from decimal import ROUND_CEILING, Context, Decimal


def rounded_up(value: float, digits: int = 3) -> str:
    """The smallest number of so few significant digits that is not below `value`, without an exponent."""
    return f"{Context(prec=digits, rounding=ROUND_CEILING).create_decimal(Decimal(value)).normalize():f}"
