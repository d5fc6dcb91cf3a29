"""Refuses an override of a trainer's method that the trainer does not have, and so would never call.

trl's trainers are extended by methods of theirs that may be renamed in any release. Without this, the extension would
then be lost without a word.
"""

from collections.abc import Callable
from importlib.metadata import version
from typing import TypeVar

Method = TypeVar("Method", bound=Callable)


def overrides(trainer_class: type) -> Callable[[Method], Method]:
    """Decorates a method that takes the place of one of `trainer_class`.

    Raises:
        ValueError: `trainer_class` has no method of this name.
    """

    def check(method: Method) -> Method:
        require(trainer_class, method.__name__)
        return method

    return check


def require(extended: type, name: str, *, library: str = "trl") -> None:
    """Raises ValueError if the class `extended` has no method `name`, on which one of its extensions builds."""
    if not callable(getattr(extended, name, None)):
        raise ValueError(
            f"{extended.__name__} of {library} {version(library)} has no method {name}, which posttrain relies on: "
            f"install the version of {library} that pyproject.toml names"
        )
