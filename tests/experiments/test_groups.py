"""Groups of tasks, chosen in every way, trained and compared; the choices against brute force."""

import dataclasses
import itertools
import shutil

import jax
import numpy as np
import optax
import pytest
from helpers import gin_files, pictures, public_files, tiny

import ldro_jax
from ldro_jax import problems
from ldro_jax.experiments import group_runs, grouped
from ldro_jax.records import provenance, results
from ldro_jax.sharding import Layout
from ldro_jax.tasks import cifar100
from ldro_jax.training.batches import Batches
from ldro_jax.training.method import Method
from ldro_jax.training.schedule import Schedule

NAMES, SEEDS = ("rises", "rises too", "falls", "falls too"), (3, 4)
GROUPS = [g for n in range(1, 5) for g in itertools.combinations(range(4), n)]
AFFINITIES = (
    grouped.Affinity("First order", interval=2),
    grouped.Affinity("Cosine", kind="cosine", interval=2),
    grouped.Affinity("TAG", step_size=0.1, interval=2),
)


def squared(outputs, rows):
    return (outputs - rows["targets"]) ** 2


def problem(slopes=(1.0, 1.5, -1.0, -1.5), *, names=NAMES, loss_is_better=False):
    """Four regressions through three parameters, which not all can share."""
    rng = np.random.default_rng(0)

    def split():
        inputs = rng.normal(size=(4, 12, 3)).astype(np.float32)
        noise = 0.1 * rng.normal(size=(4, 12))
        targets = inputs.sum(axis=2) * np.array(slopes)[:, None] + noise
        data = zip(inputs, targets.astype(np.float32), strict=True)
        return dict(zip(names, data, strict=True))

    def init(key, inputs):
        return 0.1 * jax.random.normal(key, (inputs.shape[1],))

    return problems.from_arrays(
        split(),
        model=(init, lambda params, inputs: inputs @ params),
        loss=squared,
        metrics={problems.Metric("squared error", higher_is_better=False): squared}
        | ({problems.Metric("loss", higher_is_better=True): squared} if loss_is_better else {}),
        validation=split(),
        test=split(),
    )


def compared(directory, **options):
    options = {
        "problem": problem(),
        "method": tiny.GROUP_DRO,
        "choices": grouped.Choices(AFFINITIES, max_groups=(2, 3), every_group=True),
        "seeds": SEEDS,
        "optimizer": optax.sgd(0.05),
        "schedule": Schedule(8, 4, 8),
        "batches": Batches(16, runs_together=30),
        "output_dir": directory,
    } | options
    return grouped.compare_groups(**options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("groups") / "out"
    with pytest.MonkeyPatch.context() as patch:
        pictures.leave_out(patch)
        return compared(directory), directory


def losses_of(directory):
    """From group and seed to the losses of its members, by split, out of the saved records."""
    found = {}
    for file in (directory / "runs").glob("*.json"):
        (run,) = results.load_results(file).runs
        group = tuple(NAMES.index(name) for name in run.evaluations[0].per_task)
        for split in ("validation", "test"):
            *_, last = (e for e in run.evaluations if (e.split, e.metric) == (split, "loss"))
            if ", measured" not in run.method:
                found[group, run.seed, split] = [last.per_task[NAMES[t]] for t in group]
    return found


def covers(groups):
    return set(itertools.chain.from_iterable(groups)) == set(range(4))


def test_the_best_of_all_groups_is_that_of_brute_force(finished):
    record, directory = finished
    losses = losses_of(directory)
    assert {key[0] for key in losses} == set(GROUPS)
    for seed, most in itertools.product(SEEDS, (2, 3)):
        (run,) = (
            r
            for r in record.runs
            if (r.method, r.seed, r.hyperparameters.get("groups")) == (grouped.BEST, seed, most)
        )

        def served(groups, seed=seed):
            """For each task the group with the lowest loss on validation, and that loss."""
            by_task = [
                [(losses[g, seed, "validation"][g.index(t)], g) for g in groups if t in g]
                for t in range(4)
            ]
            return [min(each) for each in by_task]

        def score(groups, seed=seed, served=served):
            alone = [losses[(t,), seed, "validation"][0] for t in range(4)]
            found = zip(served(groups), alone, strict=True)
            return sum(1 - loss / own for (loss, _), own in found)

        candidates = [c for n in range(1, most + 1) for c in itertools.combinations(GROUPS, n)]
        best = max((c for c in candidates if covers(c)), key=score)
        expected = [losses[g, seed, "test"][g.index(t)] for t, (_, g) in enumerate(served(best))]
        *_, tested = (e for e in run.evaluations if (e.split, e.metric) == ("test", "loss"))
        np.testing.assert_allclose(list(tested.per_task.values()), expected, rtol=1e-6)
        assert tested.average == pytest.approx(np.mean(expected))


def test_tasks_that_go_together_are_put_together(finished):
    """By every affinity, by trained pairs, by a regression, and by the best of all groups."""
    record, _ = finished
    ways = {r.method for r in record.runs if r.hyperparameters.get("groups") == 2}
    assert ways == {
        *(a.name for a in AFFINITIES),
        *(grouped.PAIRS, grouped.FITTED, grouped.BEST, grouped.RANDOM),
    }
    ends = {}
    for run in record.runs:
        *_, tested = (e for e in run.evaluations if (e.split, e.metric) == ("test", "loss"))
        ends.setdefault((run.method, run.hyperparameters.get("groups")), []).append(tested.average)
    together = np.mean(ends["All in one", None])
    for way in ways - {grouped.RANDOM}:
        assert np.mean(ends[way, 2]) < 0.5 * together, way


def test_all_in_one_is_what_compare_trains(finished, tmp_path):
    record, _ = finished
    plain = ldro_jax.compare(
        problem(),
        [tiny.GROUP_DRO],
        SEEDS,
        optax.sgd(0.05),
        schedule=Schedule(8, 4, 8),
        batches=Batches(16),
        output_dir=tmp_path,
    )
    whole = [run for run in record.runs if run.method == "All in one"]
    for ours, theirs in zip(whole, plain.runs, strict=True):
        mine = [e for e in ours.evaluations if e.metric == "squared error"]
        for one, other in zip(mine, theirs.evaluations, strict=True):
            np.testing.assert_allclose(
                list(one.per_task.values()), list(other.per_task.values()), rtol=1e-5
            )


def test_the_report_says_what_was_chosen(finished):
    _, directory = finished
    page = (directory / "report.html").read_text(encoding="utf-8")
    for text in ("Ways to choose groups", "First order, 2", "What predicts the gains", "At most"):
        assert text in page
    assert "{rises, rises too}; {falls, falls too}" in page
    assert (directory / "figures" / "affinities.png").exists()


def test_the_parameters_of_a_group_are_kept(finished):
    _, directory = finished
    params = ldro_jax.load(directory, method="rises+falls", seed=4, step="last", problem=problem())
    values = problem().evaluate(params, "test")["squared error"]
    expected = losses_of(directory)[(0, 2), 4, "test"]
    np.testing.assert_allclose(np.asarray(values)[[0, 2]], expected, rtol=1e-5)


@pytest.mark.usefixtures("unpainted")
def test_what_is_there_is_taken_and_what_is_missing_is_made_again(
    finished, tmp_path, capsys, monkeypatch
):
    record, directory = finished
    again = tmp_path / "out"
    shutil.copytree(directory, again)
    # It says when the numbers were made, not when they were looked at.
    monkeypatch.setattr(provenance, "occasion", lambda: {"date": "another day"})
    assert results.to_record(compared(again)) == results.to_record(record)
    assert "is finished" in capsys.readouterr().out
    # As after an interruption: no record, some runs without theirs, others without a checkpoint.
    (again / "results.json").unlink()
    # Of two programs: pairs, and all tasks while their affinities are measured.
    pairs = sorted((again / "runs").glob("group_?_?-*.json"))
    measured = sorted((again / "runs").glob("*measured_every_2_steps-*.json"))
    assert len(pairs) == 12 and len(measured) == 2
    for file in pairs[::3] + measured[:1]:
        file.unlink()
    for folder in sorted((again / "checkpoints").iterdir())[::2]:
        shutil.rmtree(folder)
    resumed = compared(again)
    for one, other in zip(resumed.runs, record.runs, strict=True):
        assert (
            results.to_record(results.Results("", NAMES, "loss", False, [one]))["runs"][0][
                "evaluations"
            ]
            == results.to_record(results.Results("", NAMES, "loss", False, [other]))["runs"][0][
                "evaluations"
            ]
        )
    with pytest.raises(ValueError, match="another optimizer|another loss or model|other data"):
        compared(again, optimizer=optax.sgd(0.07))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"choices": grouped.Choices(AFFINITIES, (5,))}, "at most the number of tasks, 4"),
        ({"batches": Batches(18)}, "a multiple of the 4 tasks"),
        ({"batches": Batches(16, "uniform")}, "must be 'balanced'"),
        ({"batches": Batches(16, layout=Layout(data=1))}, "on one device that holds the rows"),
        ({"schedule": Schedule(8, 4, 8, patience=1)}, "patience must be None"),
        ({"problem": tiny.Distances()}, "a metric of the name 'loss', lower being better"),
        ({"problem": problem(loss_is_better=True)}, "'loss', lower being better"),
        ({"method": [tiny.AVERAGE]}, r"method must be a Method, such as @average/Method"),
        ({"method": tiny.METHODS[3]}, "'TAG' must be measured as 'L-DRO' measures"),
        (
            {"method": dataclasses.replace(tiny.METHODS[3], interaction="products")},
            "as a matrix, not by products",
        ),
        ({"method": Method("a", "baselined_dro", {"weight_lr": 0.1})}, "reference_losses"),
        ({"choices": AFFINITIES}, r"choices must be a Choices, such as @Choices\(\)"),
        ({"method": Method("a", "nash_mtl"), "choices": "x"}, "choices must be"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(options, said, tmp_path):
    with pytest.raises(ValueError, match=said) as error:
        compared(tmp_path / "out", **options)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wrong, said",
    [
        (lambda: grouped.Affinity("a", kind="gain"), "kind must be one of"),
        (lambda: grouped.Affinity("a", kind="cosine", step_size=0.1), "'first order' with a step"),
        (lambda: grouped.Affinity("a", step_size=-1), "step_size must be"),
        (lambda: grouped.Affinity("a", interval=0), "interval must be"),
        (lambda: grouped.Choices([]), "affinities must be"),
        (lambda: grouped.Choices([AFFINITIES[0]] * 2), "names of their own"),
        (lambda: grouped.Choices([grouped.Affinity("All in one")]), "names of their own"),
        (lambda: grouped.Choices(AFFINITIES, max_groups=(0,)), "max_groups must be"),
        (lambda: grouped.Choices(AFFINITIES, random=2), "random must be"),
        (lambda: grouped.Choices(AFFINITIES, max_groups=(2, 2)), "numbers that differ"),
    ],
)
def test_settings_are_checked(wrong, said):
    with pytest.raises(ValueError, match=said) as error:
        wrong()
    assert "\n" not in str(error.value)


def test_every_group_of_many_tasks_is_refused():
    some = problem()
    some.task_names = tuple(map(str, range(11)))
    with pytest.raises(ValueError, match="all groups of at most 10 tasks"):
        grouped._check(
            some, tiny.AVERAGE, grouped.Choices(AFFINITIES, every_group=True), tiny.schedule()
        )


def test_a_task_is_served_by_the_group_with_the_lowest_loss():
    measured = group_runs.Measured(problem())
    losses = {(0, 1): [2.0, 1.0], (1, 2, 3): [3.0, 1.0, np.nan], (0, 3): [1.0, np.nan]}
    measured.losses = lambda group, seed: losses[group]
    found = measured.serves(group_runs.Choice("a", 3, 0, tuple(losses)))
    assert found == [(0, 3), (0, 1), (1, 2, 3), (1, 2, 3)]


_SHORT = {
    "choices": grouped.Choices(AFFINITIES[:2], max_groups=(2,), pairs=False),
    "seeds": (0,),
    "schedule": Schedule(2, 1, 2),
}


@pytest.mark.usefixtures("unpainted")
@pytest.mark.parametrize("most", [1, pytest.param(2, marks=pytest.mark.heavy)])
def test_other_kinds_of_methods_names_and_schedules(most, tmp_path):
    """Names that are alike in files, L-DRO with its own matrix, the best checkpoint tested."""
    options = _SHORT | {
        "choices": dataclasses.replace(_SHORT["choices"], max_groups=(most,)),
        "problem": problem(names=("a", "b", "a+b", "All in one")),
        "method": tiny.METHODS[3],
        "schedule": Schedule(2, 1, 2, test="best"),
        "batches": Batches(16),
    }
    record = compared(tmp_path, **options)
    assert results.to_record(compared(tmp_path, **options)) == results.to_record(record)
    named = {path.stem for path in (tmp_path / "runs").iterdir()}
    assert {"group_0-seed0", "group_2-seed0", "All_in_one-seed0"} <= named
    assert len({run.method for run in record.runs}) == 5


@pytest.mark.heavy
@pytest.mark.usefixtures("unpainted")
def test_a_method_that_takes_sizes_gets_those_of_the_group(tmp_path):
    method = Method("Sizes", "static_mixing", {"exponent": 1.0})
    record = compared(tmp_path, **_SHORT, method=method)
    assert all(run.stopped is None for run in record.runs)


def test_a_pair_that_was_never_measured_is_named():
    measured, values = group_runs.Measured(problem()), np.ones((1, 2, 4, 4))
    values[0, 1, 2, 0] = np.nan
    run = results.Run("a", 0, 1, affinity=results.Series([1], values))
    measured.tracked = {"First order": ("first order", {0: run})}
    assert measured.affinities(0)["First order"].shape == (4, 4)
    measured.tracked = {"Cosine": ("cosine", {0: run})}
    with pytest.raises(ValueError, match="'Cosine' of 'rises' to 'falls' has no value with seed 0"):
        measured.affinities(0)


_TINY = ["TRAIN_STEPS=4", "SEEDS=(0,)", "Schedule.eval_interval=2", "Choices.max_groups=(2,)"]
_OWN = {
    "digits_groups.gin": [
        *("MLP.features=(4,)", "Choices.every_group=False", "Choices.pairs=False"),
        "Choices.affinities=[@first_order/Affinity(), @cosine/Affinity()]",
        # Those of all ten tasks and of each need no programs of their own, as each other size does.
        *("Choices.random=False", "Choices.max_groups=(1,)"),
    ],
    "yeast_groups.gin": ["MLP.features=(4,)", "Batches.size=8", "Choices.pairs=False"],
    "cifar100_groups.gin": [
        *("CNN.filters=(4, 4)", "CNN.features=(8,)", "Batches.size=20"),
        *("cifar100.load.max_train_per_class=2", "cifar100.load.validation_per_class=1"),
    ],
}


@pytest.mark.usefixtures("unpainted")
@pytest.mark.parametrize("file", list(_OWN))
def test_an_experiment_runs_to_the_report(file, tmp_path, monkeypatch):
    from experiments import test_cifar100_experiments

    pytest.importorskip("sklearn")
    monkeypatch.setattr(cifar100, "_read", test_cifar100_experiments.generated)
    public_files.write(tmp_path)
    bindings = [*_TINY, *_OWN[file]]
    record = gin_files.to_report(file, tmp_path / "out", *bindings, data_dir=tmp_path)
    assert {"All in one", "First order", "Cosine"} <= {run.method for run in record.runs}
