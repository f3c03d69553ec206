"""Machines of a cluster must have the same software; one that has not is named."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from squall.engine.ray import alike
from squall.errors import InputError
from squall.version import own_version


def test_the_same_versions_are_the_same_machines() -> None:
    assert alike.versions() == {"squall": own_version(), "torch": version("torch").partition("+")[0]}
    alike.check("shard-0", alike.versions(), "10.0.0.2")


@pytest.mark.parametrize("drivers", [{"squall": "9.9", "torch": "2.0.0"}, {**alike.versions(), "torch": "1.0.0"}])
def test_others_are_named_with_their_machine(drivers: dict[str, str]) -> None:
    with pytest.raises(InputError) as caught:
        alike.check("shard-0", drivers, "10.0.0.2")
    said = caught.value.render()
    assert "shard-0 is on a machine with other versions than the driver's" in said
    assert "(10.0.0.2)" in said
    assert all(f"{name} {number}" in said for name, number in {**alike.versions(), **drivers}.items())


def test_what_cannot_be_imported_is_found_in_rays_words() -> None:
    words = "Traceback ...\n  File 'x.py'\nModuleNotFoundError: No module named 'squall'\n\nAt least one of ..."
    said = alike.lacking("replica-1", "10.0.0.2", words).render()
    assert "replica-1 cannot run on the machine at 10.0.0.2" in said
    assert "ModuleNotFoundError: No module named 'squall'" in said
    assert alike.lacking("replica-1", "", "").headline == "replica-1 cannot run on a machine of the cluster"
