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


def require(trainer_class: type, name: str) -> None:
    """Raises ValueError if `trainer_class` has no method `name`, on which one of its extensions builds."""
    if not callable(getattr(trainer_class, name, None)):
        raise ValueError(
            f"{trainer_class.__name__} of trl {version('trl')} has no method {name}, on which posttrain builds: "
            "install the version of trl that pyproject.toml names"
        )
