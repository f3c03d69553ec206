"""Where a process stands in its job, read from environments as torchrun, srun and our launcher set them."""

import re

import pytest

from squall.cluster.place import Place, find, first_host, is_loopback, tasks_per_node
from squall.errors import InputError

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "10.0.0.7",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
SRUN = {
    "SLURM_PROCID": "4",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
    "SLURM_JOB_ID": "81234",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_STEP_NODELIST": "gpu[003-004,9],cpu1",
}


def test_an_empty_environment_is_a_job_of_one() -> None:
    assert find({}) == Place()
    assert find({}).one_machine


def test_torchrun_environment_is_taken_as_it_is() -> None:
    place = find(TORCHRUN)
    assert place == Place(5, 8, 1, 4, "1", ("10.0.0.7", 29500), True)
    assert not place.one_machine


def test_ranks_started_by_hand_on_loopback_need_no_local_numbers() -> None:
    place = find({"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": "4000"})
    assert (place.local_rank, place.local_size, place.one_machine, place.agent_store) == (1, 3, True, False)


def test_ranks_that_may_be_on_another_machine_need_local_numbers() -> None:
    with pytest.raises(InputError, match=r"MASTER_ADDR=10\.0\.0\.7 may be another machine"):
        find({"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "4000"})


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"])
def test_half_an_environment_is_an_error_that_names_the_missing_half(missing: str) -> None:
    with pytest.raises(InputError, match=rf"(?m)^ +{missing} +not set"):
        find({name: value for name, value in TORCHRUN.items() if name != missing})


def test_a_master_address_alone_does_not_make_a_job() -> None:
    assert find({"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500"}) == Place()


def test_all_mistakes_of_an_environment_are_listed_at_once() -> None:
    with pytest.raises(InputError) as caught:
        find({"RANK": "x", "WORLD_SIZE": "-2", "MASTER_PORT": "http"})
    assert {label for label, _ in caught.value.rows} == {"RANK=x", "WORLD_SIZE=-2", "MASTER_PORT=http", "MASTER_ADDR"}


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"RANK": "8"}, "rank 8"),
        ({"LOCAL_RANK": "4"}, "local rank 4"),
        ({"LOCAL_WORLD_SIZE": "9"}, "9 processes on this machine"),
        ({"MASTER_PORT": "70000"}, "port 70000"),
        ({"WORLD_SIZE": "0"}, "rank 5"),
    ],
)
def test_contradicting_numbers_are_refused(changed: dict[str, str], found: str) -> None:
    with pytest.raises(InputError, match=found):
        find(TORCHRUN | changed)


def test_srun_environment_gives_place_and_first_node_as_master() -> None:
    place = find(SRUN)
    assert (place.rank, place.size, place.local_rank, place.local_size, place.node) == (4, 5, 0, 1, "2")
    assert place.master is not None
    assert place.master[0] == "gpu003"
    assert not place.agent_store


def test_all_ranks_of_a_slurm_step_agree_on_the_master_and_two_steps_do_not_share_it() -> None:
    def master(**changed: str) -> tuple[str, int] | None:
        return find(SRUN | changed).master

    assert master() == master(SLURM_PROCID="0", SLURM_NODEID="0")
    assert master() != master(SLURM_STEP_ID="1") != master(SLURM_JOB_ID="81235")
    assert master(MASTER_PORT="4444") == ("gpu003", 4444)


def test_a_slurm_step_on_one_node_stays_on_loopback() -> None:
    place = find(SRUN | {"SLURM_NODEID": "0", "SLURM_STEP_TASKS_PER_NODE": "5", "SLURM_STEP_NODELIST": "gpu7"})
    assert place.one_machine
    assert place.master is not None
    assert place.master[0] == "127.0.0.1"


def test_the_shell_of_a_batch_script_is_alone() -> None:
    batch = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_ID": "9"}
    assert find(batch) == Place()
    assert find(SRUN | {"SLURM_STEP_NUM_TASKS": "1"}) == Place()


def test_torchrun_inside_slurm_counts_as_torchrun() -> None:
    assert find(SRUN | TORCHRUN) == find(TORCHRUN)


@pytest.mark.parametrize("name", ["SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_JOB_ID"])
def test_a_slurm_environment_with_a_hole_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=name):
        find({key: value for key, value in SRUN.items() if key != name})


def test_a_slurm_node_outside_its_list_is_refused() -> None:
    with pytest.raises(InputError, match="outside the 3 nodes"):
        find(SRUN | {"SLURM_NODEID": "3"})


@pytest.mark.parametrize(
    ("text", "counts"), [("4", [4]), ("2(x3),1", [2, 2, 2, 1]), ("1,2,3(x2)", [1, 2, 3, 3]), ("x", []), ("2(y3)", [])]
)
def test_run_lengths_of_tasks_are_unrolled(text: str, counts: list[int]) -> None:
    assert tasks_per_node(text) == counts
    if counts:  # the same by blunt text replacement
        plain = re.sub(r"(\d+)\(x(\d+)\)", lambda m: ",".join([m[1]] * int(m[2])), text)
        assert [int(word) for word in plain.split(",")] == counts


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("node[07-12]", "node07"),
        ("rack[3,5]-ib,x", "rack3-ib"),
        ("a.b.c[1-2].d,e", "a.b.c1.d"),
    ],
)
def test_first_host_of_a_node_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_loopback_is_told_from_addresses_and_names() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.3.2.1", "::1", "localhost"]))
    assert not any(map(is_loopback, ["10.0.0.1", "0.0.0.0", "node1", "localhost.evil"]))
