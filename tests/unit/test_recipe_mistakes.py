"""Mistakes: all at once, each in one line with what to change and the nearest valid names."""

import pytest

from squall.errors import InputError
from squall.recipe import Recipe, load, override, parse

GOOD = {"epochs": 90, "global_batch_size": 128, "worker_batch_size": 16, "lr": 0.1}


def mistakes(given):
    with pytest.raises(InputError) as caught:
        Recipe(**given)
    return dict(caught.value.rows)


def of(**changed):
    return mistakes({**GOOD, **changed})


def test_the_command_lines_mistakes_print_as_designed():
    with pytest.raises(InputError) as caught:
        override(load("cifar10"), ["worker=32", "optimizer.name=adamx"])
    assert caught.value.exit_status == 2
    head, first, second, last = caught.value.render().splitlines()
    assert head == "squall: 2 mistakes in cifar10".ljust(97) + "(exit 2)"
    assert first == (
        "  worker=32              no such field. Near: worker_batch_size (32), virtual_workers (8); "
        "loader processes are data.num_workers (0); processes of a run are the flag --processes"
    )
    assert second == (
        "  optimizer.name=adamx   not known. One of: adagrad adam adamw lamb lars rmsprop sgd, "
        'or "package.module:Class"'
    )
    assert last == "all fields: squall recipes cifar10 --fields"


def test_the_bare_key_workers_is_explained():
    (rule,) = of(workers=8).values()
    assert "virtual_workers (8)" in rule
    assert "data.num_workers" in rule
    assert "--processes" in rule


def test_nothing_hides_another_mistake():
    found = of(
        seed=-1, last_batch="shot", strategy="hogwild", ema=2.0, model={"name": "resnet9", "widht": 3},
        data={"name": "idx", "train": [{"random_crp": 3}]}, optimizer={"name": "adam", "momentum": 0.9},
        lr={"base": -1, "milestones": [30, 95], "schedule": "cosine"}, compute={"fuse": 0, "precision": "bf17"},
    )  # fmt: skip
    assert set(found) == {
        "seed=-1", "last_batch=shot", "strategy=hogwild", "ema=2.0", "model.name=resnet9", "data.root",
        "data.train[0]={random_crp = 3}", "optimizer.momentum=0.9", "lr.base=-1", "lr.milestones=[30, 95]",
        "compute.fuse=0", "compute.precision=bf17",
    }  # fmt: skip
    assert "short" in found["last_batch=shot"]
    assert "resnet8" in found["model.name=resnet9"]
    assert "random_crop" in found["data.train[0]={random_crp = 3}"]


def test_there_is_no_default_rate():
    assert "no default rate" in mistakes({key: value for key, value in GOOD.items() if key != "lr"})["lr"]
    assert "no default rate" in of(lr={"schedule": "cosine"})["lr"]


def test_missing_epochs_and_batch_sizes_are_asked_for():
    found = mistakes({"lr": 0.1})
    assert "give two of" in found["batch sizes"]
    assert "how many passes" in found["epochs"]
    assert "one more is needed" in mistakes({"lr": 0.1, "epochs": 1, "global_batch_size": 8})["global_batch_size=8"]


@pytest.mark.parametrize(
    ("sizes", "label", "rule"),
    [
        ((128, 16, 4), "global_batch_size=128", "contradicts worker_batch_size=16 x virtual_workers=4 = 64"),
        ((128, None, 3), "global_batch_size=128", "no multiple of virtual_workers=3"),
        ((16, 32, None), "worker_batch_size=32", "larger than global_batch_size=16"),
        ((-128, 16, None), "global_batch_size=-128", "at least 1"),
        ((128, 1.5, None), "worker_batch_size=1.5", "a whole number"),
        ((128, None, 0), "virtual_workers=0", "at least 1"),
    ],
)
def test_contradicting_batch_sizes(sizes, label, rule):
    names = ("global_batch_size", "worker_batch_size", "virtual_workers")
    given = {name: value for name, value in zip(names, sizes, strict=True) if value is not None}
    found = mistakes({"epochs": 1, "lr": 0.1, **given})
    assert list(found) == [label]
    assert rule in found[label]


@pytest.mark.parametrize(
    ("lr", "label", "rule"),
    [
        ({"milestones": [30, 90]}, "lr.milestones=[30, 90]", "not before the end: the run has 90 epochs"),
        ({"milestones": [30, 30]}, "lr.milestones=[30, 30]", "must rise"),
        ({"schedule": "step"}, "lr.schedule=step", "needs milestones"),
        ({"warmup": "gradual"}, "lr.warmup=gradual", "needs warmup_epochs"),
        ({"warmup": "none", "warmup_epochs": 2}, "lr.warmup_epochs=2", "contradicts"),
        ({"warmup_from": "top"}, "lr.warmup_from=top", 'at least 0, or "base"'),
        ({"warmup_from": -0.1}, "lr.warmup_from=-0.1", 'at least 0, or "base"'),
        ({"warmup": "constant", "warmup_epochs": 2}, "lr.warmup_from=0.0", "trains nothing"),
        ({"milestones": [3], "warmup_epochs": 5}, "lr.milestones=[3.0]", "inside the warm-up"),
        ({"bse_batch_size": 3}, "lr.bse_batch_size=3", "lr.base_batch_size"),
        ({"scaling": "square"}, "lr.scaling=square", "linear sqrt none"),
    ],
)
def test_rates_that_cannot_be(lr, label, rule):
    found = of(lr={"base": 0.1, **lr})
    assert list(found) == [label]
    assert rule in found[label]


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("epochs", 1.5, "a whole number"),
        ("epochs", True, "a whole number"),
        ("epochs", "90", "a whole number"),
        ("clip_grad_norm", "x", "a number"),
        ("clip_grad_norm", 0, "above 0"),
        ("name", 3, "a word or text"),
        ("name", "", "at least 1 character"),
    ],
)
def test_values_of_a_wrong_kind(field, value, rule):
    assert rule in of(**{field: value})[f"{field}={value if value is not True else 'true'}"]


def test_tables_that_are_none():
    found = of(data=7, compute=[1], lr={"base": "fast"})
    assert found["compute=[1]"] == "must be a table"
    assert found["lr.base=fast"] == "must be a number"
    assert found["data.name=7"] == "must be a word or text in quotes"


def test_fields_of_another_rule():
    assert "Read by: adam adamw lamb" in of(optimizer={"betas": [0.9, 0.99]})["optimizer.betas=[0.9, 0.99]"]
    assert "momentum" in of(optimizer={"nesterov": True})["optimizer.nesterov=true"]


def test_a_worker_loss_needs_passes_of_one_worker():
    assert "loss_over" in of(loss_over="worker", fuse=2)["compute.fuse=2"]


def test_a_field_in_two_forms_is_given_twice():
    assert "given twice" in of(optimizer={"weight_decay": 0.1}, weight_decay=0.2)["weight_decay=0.2"]


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("epoch", "epochs"),
        ("batch_size", "worker_batch_size"),
        ("wieght_decay", "weight_decay"),
        ("momentun", "momentum"),
    ],
)
def test_unknown_keys_name_their_neighbours(key, near):
    (rule,) = of(**{key: 3}).values()
    assert near in rule


def test_every_key_of_an_unknown_table_is_named():
    assert set(of(optimiser={"name": "sgd", "momentum": 0.9})) == {"optimiser.name=sgd", "optimiser.momentum=0.9"}


def test_own_classes_are_named_by_module():
    recipe = Recipe(**GOOD, model="mine.nets:Net", optimizer="mine.rules:Rule", loss="mine:loss", data="mine:sets")
    assert recipe.lr.scaling == "none"
    assert "package.module:Class" in of(optimizer="mine.rules.Rule")["optimizer.name=mine.rules.Rule"]


def test_groups_are_checked():
    found = of(optimizer={"groups": [{"lr_scale": 10}, {"match": "a", "rate": 1}]})
    assert "match is missing" in found["optimizer.groups[0]"]
    assert "lr_scale" in found["optimizer.groups[1].rate=1"]


def test_errors_name_where_they_stand():
    with pytest.raises(InputError, match=r"1 mistake in mine\.toml"):
        parse({**GOOD, "epochs": 0}, "mine.toml")


def test_weights_skip_needs_weights() -> None:
    with pytest.raises(InputError, match="1 mistake in digits") as error:
        override(load("digits"), ['model.weights_skip=["fc"]'])
    assert dict(error.value.rows) == {"model.weights_skip=[fc]": "needs model.weights: a file or a run to start from"}
    assert override(load("digits"), ['model.weights_skip=["fc"]', "model.weights=runs/base"]).model is not None
