"""How a role is made, on its way to the process that makes it: pickled once, opened only there.

A role's plan holds whatever it takes to make it, for a replica the user's whole task: lambdas, classes of a script,
data sets in memory. Cloudpickle takes functions of a script (`__main__`) by value; those of a module by its name, under
which the other process must find it. A task's file was loaded by its path and may have no such name, and to run it
again would make its data sets again, others perhaps where nobody seeded them: so its functions travel by value too.

A role may hold plans of others: the coordinator holds that of replicas that join later. Such a plan stays sealed in its
hands, so that the coordinator needs neither torch nor the user's data.
"""

from __future__ import annotations

import importlib
import io
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

from squall.cluster.program import Plan, Role
from squall.engine.ray import surroundings
from squall.errors import InputError, SquallError


class Sealed:
    """A role's `make`, as bytes; calling it opens it and makes the role.

    Arguments:
        content: what cloudpickle made of it.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __call__(self) -> Role:
        """Makes the role.

        Raises:
            InputError: something in it cannot be found, or made again, in this process.
        """
        try:
            make: Callable[[], Role] = _cloudpickle().loads(self._content)
        except SquallError:
            raise
        except Exception as error:
            raise InputError(
                "a role's process cannot take over what the driver sends",
                [
                    ("found", f"{type(error).__name__}: {error}, on {socket.gethostname()}"),
                    ("rule", "modules beside the task are imported by the roles' processes too, under the same name"),
                    ("to do", "put them into the task's file, or install them on all machines"),
                ],
            ) from error
        return make()


def seal(make: Callable[[], Role], by_value: Sequence[ModuleType] = ()) -> Sealed:
    """Pickles how a role is made.

    Arguments:
        by_value: modules whose functions and classes travel with it; by name, if that is not possible.

    Raises:
        InputError: it cannot be pickled.
    """
    if isinstance(make, Sealed):
        return make
    with _by_value(by_value):
        try:
            return Sealed(_dumped(make))
        except SquallError:
            raise
        except Exception as error:
            first = error
    try:
        if by_value:  # a global of theirs may be what cannot travel
            return Sealed(_dumped(make))
    except Exception as error:
        first = error
    raise InputError(
        "the task cannot be sent to the processes of replicas",
        [
            ("found", f"{type(first).__name__}: {first}"),
            ("rule", "model, loss and data sets are pickled, as for the loader processes of a DataLoader"),
            ("to do", "open files and connections when they are first used, and not in the constructor of a data set"),
        ],
    ) from first


def _dumped(make: Callable[[], Role]) -> bytes:
    class Pickler(_cloudpickle().Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, Plan) and not isinstance(obj.make, Sealed):
                return replace(obj, make=Sealed(_dumped(obj.make))).__reduce_ex__(4)
            return super().reducer_override(obj)

    file = io.BytesIO()
    Pickler(file).dump(make)
    return file.getvalue()


@contextmanager
def _by_value(modules: Sequence[ModuleType]) -> Iterator[None]:
    cloudpickle = _cloudpickle()
    with ExitStack() as stack:
        for module in modules:
            cloudpickle.register_pickle_by_value(module)
            stack.callback(cloudpickle.unregister_pickle_by_value, module)
        yield


def _cloudpickle() -> Any:
    """Ray's copy: the one that its processes have for certain."""
    surroundings.library()
    return importlib.import_module("ray.cloudpickle")
