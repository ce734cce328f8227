"""Ways to train for the worst group, against plain loops; what is chosen and reported of them."""

import dataclasses
import shutil

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import gin_files, public_files

import ldro_jax
from ldro_jax import configuration, problems
from ldro_jax.experiments import approaches as approaches_lib
from ldro_jax.experiments import names
from ldro_jax.experiments.approaches import DFR, JTT, Approach
from ldro_jax.experiments.arguments import Directories
from ldro_jax.experiments.runs import RunsStoppedError
from ldro_jax.experiments.trainings import Trainings
from ldro_jax.experiments.worst_groups import compare_worst_groups
from ldro_jax.models.mlp import MLP
from ldro_jax.records.results import Results, Run, Series, summarise_evaluation
from ldro_jax.reporting import worst_groups as worst_groups_report
from ldro_jax.tasks import cifar100, grouped
from ldro_jax.tasks.grouped import EvaluationGroups, GroupedSplit
from ldro_jax.training.batches import Batches
from ldro_jax.training.method import Method
from ldro_jax.training.schedule import Schedule

RATE, STEPS, FACTOR, FIRST = 0.1, 4, 9, 2
GROUPS = ("cow, grass", "cow, sand", "camel, grass", "camel, sand")


def split(sizes, rng):
    classes = np.repeat([0, 0, 1, 1], sizes).astype(np.int32)
    attributes = np.repeat([0, 1, 0, 1], sizes).astype(np.int32)
    signs = 2.0 * np.stack([classes, attributes], axis=1) - 1
    inputs = (signs + rng.normal(size=signs.shape) * [0.4, 0.1]) * [1, 3]
    return GroupedSplit(inputs.astype(np.float32), classes, attributes)


def data(seed=0, **changes):
    """Twelve examples that the attribute is right for, and four that it is wrong for."""
    rng = np.random.default_rng(seed)
    parts = split((6, 2, 2, 6), rng), split((4, 4, 4, 4), rng), split((5, 3, 4, 6), rng)
    made = grouped.GroupedData(*parts, ("cow", "camel"), ("grass", "sand"))
    return dataclasses.replace(made, **changes)


def method(name, weighting="average", **hyperparameters):
    return Method(name, weighting, hyperparameters)


ERM = Approach(method("ERM"), known="nothing")
WAYS = (
    ERM,
    Approach(method("RWY"), known="classes"),
    Approach(method("RWG")),
    Approach(method("SUBG"), known="nothing", subsample="groups"),
    Approach(method("CVaR"), known="nothing", objective=problems.CVaR(0.25)),
    JTT((FIRST,), (FACTOR,)),
    DFR((0.0, 0.5)),
)


def linear(num_classes):
    return MLP(num_classes, (), zero_head=True)


def compared(directory, **options):
    options = {
        "data": data(),
        "approaches": WAYS,
        "seeds": (3,),
        "optimizer": optax.sgd(RATE),
        "model": linear,
        "schedule": Schedule(STEPS, 2, 2),
        # Every step has all examples, each the same number of times, in each way.
        "batches": Batches(48),
        "output_dir": directory,
    } | options
    return compare_worst_groups(**options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("worst_groups") / "out"
    return compared(directory), directory


def losses(params, part):
    kernel, bias = params
    logits = part.inputs @ kernel + bias[None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(part.classes))


def descent(objective, steps=STEPS, start=None, dtype=jnp.float32):
    """Plain gradient descent from zero."""
    params = start or (jnp.zeros((2, 2), dtype), jnp.zeros(2, dtype))
    for _ in range(steps):
        gradient = jax.grad(objective)(params)
        params = jax.tree.map(lambda x, g: x - RATE * g, params, gradient)
    return params


def means(params, part, numbers):
    each = losses(params, part)
    return jnp.stack([each[numbers == n].mean() for n in np.unique(numbers)])


def objectives(part, seed):
    """What each way minimises, of all examples, as its paper says."""
    groups = 2 * part.classes + part.attributes
    wrong = errors(part)
    balanced = grouped.subsample(data(), seed=seed).train

    def cvar(params):
        # The four of sixteen with the highest losses; where some are tied, they share the rest.
        each = losses(params, part)
        fourth = jnp.sort(each)[-4]
        above, tied = each > fourth + 1e-6, jnp.abs(each - fourth) <= 1e-6
        return (each[above].sum() + (4 - float(above.sum())) * each[tied].mean()) / 4

    def upweighted(params):
        each = losses(params, part)
        return (FACTOR * each[wrong].sum() + each[~wrong].sum()) / (
            float(FACTOR * wrong.sum() + (~wrong).sum())
        )

    return {
        "ERM": lambda params: losses(params, part).mean(),
        "RWY": lambda params: means(params, part, part.classes).mean(),
        "RWG": lambda params: means(params, part, groups).mean(),
        "SUBG": lambda params: losses(params, balanced).mean(),
        "CVaR (share=0.25)": cvar,
        "JTT (first steps=2, factor=9)": upweighted,
    }


def errors(part):
    kernel, bias = descent(lambda params: losses(params, part).mean(), FIRST)
    return np.argmax(part.inputs @ kernel + bias[None], axis=1) != part.classes


def kept(directory, name):
    params = ldro_jax.load(directory, method=name, seed=3, step="last")["Dense_0"]
    return params["kernel"], params["bias"]


def test_each_way_minimises_what_its_paper_says(finished):
    _, directory = finished
    part = data().train
    # The attribute is larger, so that the first model goes by it, and is wrong where it is.
    assert errors(part).tolist() == (part.classes != part.attributes).tolist()
    for name, objective in objectives(part, 3).items():
        for ours, theirs in zip(kept(directory, name), descent(objective), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_last_layer_is_trained_anew_on_balanced_validation(finished):
    record, directory = finished
    for penalty in (0.0, 0.5):
        kernel, bias = kept(directory, f"DFR after {STEPS} steps (penalty={penalty})")
        # Two of each group of validation, whose shares are a half.
        on = grouped.variants.on_validation(data(), 0.5, seed=3)
        balanced = grouped.subsample(on, seed=3).train
        assert len(balanced.classes) == 8 and len(on.validation.classes) == 8
        rows = {tuple(x) for x in on.validation.inputs} | {tuple(x) for x in balanced.inputs}
        assert rows == {tuple(x) for x in data().validation.inputs}

        def objective(params, balanced=balanced, penalty=penalty):
            norm = sum(jnp.abs(x).sum() for x in params)
            return losses(params, balanced).mean() + penalty * norm

        theirs = descent(objective)
        np.testing.assert_allclose(kernel, theirs[0], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(bias, theirs[1], rtol=1e-4, atol=1e-6)
    # It is chosen by the other half.
    (run, *_) = (run for run in record.runs if run.method == "DFR")
    held_out = next(e for e in run.evaluations if e.split == "validation")
    assert set(held_out.per_task.values()) <= {0.0, 0.5, 1.0}


@pytest.mark.usefixtures("no_report")
def test_a_trunk_stays_as_it_is_and_its_statistics_too(tmp_path):
    import flax.linen as nn

    class Net(nn.Module):
        num_classes: int

        @nn.compact
        def __call__(self, x, train=False):
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x)))
            return nn.Dense(self.num_classes)(nn.Dropout(0.5, deterministic=not train)(x))

    ways = (DFR(base=Approach(method("ERM"), known="nothing")),)
    compared(tmp_path / "out", approaches=ways, model=Net)
    first, second = (
        ldro_jax.load(tmp_path / "out", method=name, seed=3, step="last")
        for name in ("DFR, first model", f"DFR after {STEPS} steps (penalty=0.0)")
    )
    moved = first["params"].pop("Dense_1"), second["params"].pop("Dense_1")
    assert not np.allclose(moved[0]["kernel"], moved[1]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.usefixtures("no_report")
def test_more_seeds_and_approaches_leave_what_is_finished(finished, tmp_path, capsys):
    record, directory = finished
    before = {file.name: file.stat().st_mtime_ns for file in (directory / "runs").iterdir()}
    again = compared(directory)
    assert "is finished" in capsys.readouterr().out
    assert [run.evaluations for run in again.runs] == [run.evaluations for run in record.runs]

    out = tmp_path / "out"
    few = compared(out, approaches=WAYS[:1])
    assert [run.method for run in few.runs] == ["ERM"]
    more = compared(out, approaches=[ERM, WAYS[3]], seeds=(3, 4))
    theirs = {(run.method, repr(run.hyperparameters)): run.evaluations for run in record.runs}
    for run in more.runs:
        if run.seed == 3:
            assert run.evaluations == theirs[run.method, repr(run.hyperparameters)]
    assert before == {file.name: file.stat().st_mtime_ns for file in (directory / "runs").iterdir()}


@pytest.mark.usefixtures("no_report")
def test_one_that_was_interrupted_goes_on(finished, tmp_path):
    record, directory = finished
    out = shutil.copytree(directory, tmp_path / "out")
    # No record of all, some runs without theirs, and some of these without a checkpoint.
    (out / "results.json").unlink()
    for name in (
        "RWG",
        "JTT, first model (first steps=2)",
        f"DFR after {STEPS} steps (penalty=0.5)",
        "SUBG",
    ):
        (file,) = names.file_names([f"{name}-seed3"])
        (out / "runs" / f"{file}.json").unlink()
        if "T" not in name:
            shutil.rmtree(out / "checkpoints" / file)
    again = compared(out)
    assert [run.evaluations for run in again.runs] == [run.evaluations for run in record.runs]
    assert again.select_by == record.select_by and (out / "results.json").exists()


def test_parameters_that_are_gone_are_named(finished, tmp_path):
    out = shutil.copytree(finished[1], tmp_path / "out")
    shutil.rmtree(out / "checkpoints")
    message = "first model .* is finished, but its parameters, .* Delete .*seed3.json to train it"
    with pytest.raises(FileNotFoundError, match=message) as caught:
        compared(out)
    assert "\n" not in str(caught.value)


def trainings_on(by_seed):
    options = {"batches": Batches(48), "schedule": Schedule(STEPS, 2, 2)}
    return Trainings(by_seed, linear, optax.sgd(RATE), **options)


def test_data_that_is_prepared_otherwise_shares_nothing_compiled():
    by_seed = {seed: data(prepare=lambda x, seed=seed: seed * x) for seed in (1, 2)}
    for approach in (ERM, Approach(method("RWG")), DFR()):
        trainings = trainings_on(by_seed)
        if isinstance(approach, Approach):
            jobs = [job for job, _ in approach.jobs(trainings)]
        else:
            params = trainings.problem(by_seed[1], "nothing").init(jax.random.key(0))
            jobs = [approach._job(trainings, seed, params, {"penalty": 0.0}) for seed in by_seed]
        one, two = jobs
        assert one.compiled_as != two.compiled_as
        params = {"Dense_0": {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}}
        outputs = [job.problem.apply(params, jnp.ones((1, 2))).tolist() for job in jobs]
        assert outputs == [[[2.0, 2.0]], [[4.0, 4.0]]]


def test_weights_are_recorded_of_the_tasks_of_the_record(tmp_path):
    partly = data()
    partly.train.attributes[[0, 9]] = -1
    trainings, run = trainings_on({3: partly}), Run("", 3, STEPS)
    names = trainings.problem(partly, "groups").task_names
    trainings.begin(tmp_path, lambda schedule: None, names)
    for options, is_kept in (({}, True), ({"subsample": "groups"}, False)):
        ((job, _),) = Approach(method("RWG"), **options).jobs(trainings)
        weights = Series([0], np.ones((1, job.problem.num_tasks)))
        found = trainings._recorded(job, dataclasses.replace(run, weights=weights)).weights
        assert (found is not None) == is_kept


@pytest.mark.usefixtures("no_report")
def test_each_seed_may_have_data_of_its_own(tmp_path):
    def load(*, data_dir, seed):
        assert data_dir == "here"
        return data(seed)

    where = Directories(tmp_path / "both", "here")
    ways = (WAYS[3], JTT((FIRST,), (FACTOR,)))
    both = compared(where, data=load, approaches=ways, seeds=(5, 6), resample=True)
    alone = compared(tmp_path / "6", data=data(6), approaches=ways, seeds=(6,))
    ours = [run.evaluations for run in both.runs if run.seed == 6]
    assert ours == [run.evaluations for run in alone.runs]


@pytest.mark.usefixtures("no_report")
def test_a_part_of_the_groups_may_be_known(tmp_path):
    ways = (Approach(method("RWG"), labelled=0.5), Approach(method("RWG, all")))
    record = compared(tmp_path / "out", approaches=ways)
    assert record.runs[0].hyperparameters == {"labelled": 0.5}
    # Of the groups alone the record has weights.
    assert record.runs[0].weights is None and record.runs[1].weights.values.shape == (2, 4)
    hidden = grouped.hide(data(), 0.5, seed=3)
    theirs = problems.groups(hidden, linear(2))
    assert set(theirs.task_names) > {"cow, unknown", "camel, unknown"}
    ours = ldro_jax.load(tmp_path / "out", method="RWG (labelled=0.5)", seed=3, step="last")
    numbers = np.where(hidden.groups("train") < 0, 4 + hidden.train.classes, hidden.groups("train"))
    # Batches of 48 have as many of each task, of each example about as many.
    params = descent(lambda params: means(params, hidden.train, numbers).mean())
    np.testing.assert_allclose(ours["Dense_0"]["kernel"], params[0], rtol=0.2)


def test_groups_may_be_unknown_on_validation_too(tmp_path):
    hidden = grouped.unlabelled(data(), splits=("train", "validation"))
    record = compared(tmp_path / "out", data=hidden, approaches=(ERM,))
    assert list(record.task_names) == [*GROUPS, "class cow", "class camel", "all examples"]
    held_out, tested = record.runs[0].evaluations[-2:]
    assert np.isnan([held_out.per_task[name] for name in GROUPS]).all()
    both = (held_out.per_task["class cow"] + held_out.per_task["class camel"]) / 2
    np.testing.assert_allclose(held_out.per_task["all examples"], both, atol=1e-3)
    assert np.isfinite(list(tested.per_task.values())).all()
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Worst group and average</h2>" not in page and "Chosen by the worst class</h2>" in page
    assert "by training shares" in page
    with pytest.raises(ValueError, match="'DFR' can't be trained. .*validation must have the attr"):
        compared(tmp_path / "other", data=hidden, approaches=(ERM, DFR()))


@pytest.mark.usefixtures("no_report")
def test_more_steps_begin_the_last_layer_anew(tmp_path):
    few = compared(tmp_path / "out", approaches=(DFR(),))
    more = compared(tmp_path / "out", approaches=(DFR(),), schedule=Schedule(6, 2, 2))
    assert [run.num_steps for run in few.runs + more.runs] == [STEPS, 6]
    fresh = compared(tmp_path / "fresh", approaches=(DFR(),), schedule=Schedule(6, 2, 2))
    assert [run.evaluations for run in more.runs] == [run.evaluations for run in fresh.runs]


@pytest.mark.parametrize("way", [JTT((FIRST,), (2,)), DFR()])
def test_a_first_model_that_ends_early_is_named(way, tmp_path):
    broken = data().train
    inputs = np.where(np.arange(16)[:, None] == 0, np.float32("inf"), broken.inputs)
    broken = data(train=broken._replace(inputs=inputs))
    with pytest.raises(RunsStoppedError, match="first model.*, seed 3: stopped at step"):
        compared(tmp_path / "out", data=broken, approaches=(way,))


def made_up(groups, validation, test):
    """A record of one method with two settings and two seeds, three checkpoints each."""
    runs = []
    for setting in range(2):
        for seed in range(2):
            evaluations = [
                summarise_evaluation(step, name, "accuracy", groups, x[setting, seed, step], True)
                for step in range(3)
                for name, x in (("validation", validation), ("test", test))
            ]
            own = {"rate": setting}
            runs.append(Run("M", seed, 3, hyperparameters=own, evaluations=evaluations))
    return Results("made up", groups, "accuracy", True, runs)


@pytest.mark.parametrize("rule", ["worst group", "average", "worst class"])
def test_what_is_best_on_validation_is_chosen(rule):
    rng = np.random.default_rng(0)
    validation, test = np.round(rng.uniform(size=(2, 2, 2, 3, 4)), 2)
    record = made_up(GROUPS, validation, test)
    shares = np.array([0.4, 0.1, 0.2, 0.3])
    by_class = np.array([[0.8, 0.2, 0, 0], [0, 0, 0.4, 0.6]])
    named = [dict(zip(GROUPS, x, strict=True)) for x in (shares, *by_class)]
    on_test = dict(zip(GROUPS, [0.25] * 4, strict=True))
    groups = worst_groups_report.Groups(GROUPS, named[0], on_test, None, named[1:])
    values = {
        "worst group": validation.min(axis=-1),
        "average": validation @ shares,
        "worst class": (validation @ by_class.T).min(axis=-1),
    }[rule]
    setting = values.max(axis=2).mean(axis=1).argmax()
    steps = values[setting].argmax(axis=1)
    chosen = worst_groups_report.chosen(record, "M", {0: groups, 1: groups}, rule)
    assert chosen.setting == {"rate": setting}
    assert chosen.steps == {0: steps[0], 1: steps[1]}
    for seed in range(2):
        np.testing.assert_allclose(
            list(chosen.tested[seed].values()), test[setting, seed, steps[seed]]
        )


def test_a_setting_that_diverged_with_some_seeds_is_not_chosen():
    # The other setting is worse with each seed.
    values = np.full((2, 2, 3, 4), 0.5)
    values[0] = 0.9
    record = made_up(GROUPS, values, values)
    shares = dict.fromkeys(GROUPS, 0.25)
    groups = worst_groups_report.Groups(GROUPS, shares, shares, None, [shares])

    def setting(stopped):
        runs = [
            dataclasses.replace(run, stopped="NaN" if place in stopped else None)
            for place, run in enumerate(record.runs)
        ]
        mended = dataclasses.replace(record, runs=runs)
        chosen = worst_groups_report.chosen(mended, "M", {0: groups, 1: groups}, "average")
        return chosen and (chosen.setting["rate"], list(chosen.steps))

    assert setting([]) == (0, [0, 1])
    assert setting([1]) == (1, [0, 1])
    assert setting([1, 2]) == (0, [0])
    assert setting(range(4)) is None


def test_the_report_has_both_averages(finished, monkeypatch):
    record, directory = finished
    (erm,) = (run for run in record.runs if run.method == "ERM")
    best, found = -1.0, {}
    for held_out, tested in zip(erm.evaluations[::2], erm.evaluations[1::2], strict=True):
        if min(held_out.per_task.values()) > best:
            best, found = min(held_out.per_task.values()), tested.per_task
    values = np.array([found[name] for name in GROUPS])
    of_test, of_training = np.array([5, 3, 4, 6]) / 18, np.array([6, 2, 2, 6]) / 16
    expected = f"{values @ of_test:.3f}", f"{values.min():.3f}", f"{values @ of_training:.3f}"
    page = (directory / "report.html").read_text(encoding="utf-8")
    row = page[page.index("Worst group and average</h2>") :]
    row = row[row.index(">ERM<") : row.index("</tr>", row.index(">ERM<"))]
    places = [row.index(f"{x} ± –") for x in expected]
    assert places == sorted(places)
    titles = "Chosen by the average", "Chosen by the worst class", "Every group", "What was chosen"
    for text in titles:
        assert f"{text}</h2>" in page
    assert record.task_sizes == dict(zip(GROUPS, [6, 2, 2, 6], strict=True))


def test_groups_that_overlap_are_measured_with_their_totals(tmp_path):
    whole = data()
    members = {
        name: np.stack([x.attributes == 0, x.classes == 0])
        for name, x in (
            ("train", whole.train),
            ("validation", whole.validation),
            ("test", whole.test),
        )
    }
    whole = dataclasses.replace(whole, evaluation=EvaluationGroups(("on grass", "cows"), **members))
    record = compared(tmp_path / "out", data=whole, approaches=(ERM,))
    names = ["on grass", "cows", "class cow", "class camel", "all examples"]
    assert list(record.task_names) == names
    values = record.runs[0].evaluations[-1].per_task
    assert values["cows"] == values["class cow"]
    both = (8 * values["class cow"] + 10 * values["class camel"]) / 18
    np.testing.assert_allclose(values["all examples"], both, atol=1e-3)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "by training shares" not in page[: page.index("Every group</h2>")].split("Summary")[-1]


def test_bad_input_is_one_line(tmp_path):
    nothing = dataclasses.replace(data(), train=data().train._replace(attributes=np.full(16, -1)))
    easy = data().train
    easy = data(train=easy._replace(inputs=np.float32(2.0 * easy.classes - 1)[:, None] * [1, 0]))

    def wider(data_dir, seed):
        parts = (getattr(data(), name) for name in ("train", "validation", "test"))
        parts = [part._replace(inputs=np.repeat(part.inputs, seed, axis=1)) for part in parts]
        return data(**dict(zip(("train", "validation", "test"), parts, strict=True)))

    def known(seed):
        return grouped.hide(data(), 0.5, seed=seed).counts("train").min() > 0

    few = Approach(method("Few"), known="nothing", labelled=0.5, subsample="groups")
    late = (next(s for s in range(99) if known(s)), next(s for s in range(99) if not known(s)))
    rare = data(validation=split((4, 4, 1, 4), np.random.default_rng(0)))
    for options, message in [
        ({"approaches": []}, "approaches must be a list of approaches"),
        ({"approaches": [method("ERM")]}, "approaches must be "),
        ({"approaches": [ERM, ERM]}, "approaches must each have their own name or setting"),
        ({"schedule": Schedule(4, 2, 2, test="last")}, "schedule must be one with test='always'"),
        ({"data": 3}, "data must be a GroupedData, such as what"),
        ({"resample": True}, "resample must be False for data that is loaded"),
        (
            {"data": lambda data_dir: data(), "resample": True},
            "data must be a function of data_dir, seed",
        ),
        ({"data": nothing, "approaches": [WAYS[3]]}, "'SUBG' can't be trained. .* none is known"),
        ({"approaches": [JTT((5,), (2,))]}, "JTT.steps must be at most train_steps, 4, but"),
        (
            {"data": wider, "resample": True, "seeds": (1, 2)},
            "inputs of data must be of the same shape and dtype with each seed",
        ),
        ({"approaches": [few], "seeds": late}, "'Few' can't be trained. .* none is known"),
        (
            {"data": rare, "approaches": [DFR()]},
            "a share of 0.5 to train on, but of all examples there are 1 of camel, grass",
        ),
        (
            {"approaches": [DFR((0.0,)), DFR((1.0,), base=few)]},
            "of the same name must have the same base, but two 'DFR'",
        ),
        (
            {"approaches": [few, dataclasses.replace(few, labelled=0.7)]},
            "must know the same of the groups, but of the two 'Few' one knows groups of 50%",
        ),
        ({"model": lambda num_classes: MLP(3)}, "model must give 2 logits"),
        (
            {"approaches": [DFR()], "model": lambda num_classes: MLP(num_classes, (2,))},
            "DFR.last_layer must be given, .* 2 classes aren't one matrix",
        ),
        (
            {"data": easy, "approaches": [JTT((4,), (2,))]},
            "with seed 3 the first model is right on",
        ),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            compared(tmp_path / "out", **options)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Approach(3), "method must be"),
        (lambda: Approach([method("a"), method("b")]), "method must be one, or settings of one"),
        (lambda: Approach(method("a"), known="all"), "known must be one of"),
        (lambda: Approach(method("a"), subsample="y"), "subsample must be one of"),
        (lambda: Approach(method("a"), labelled=2), r"labelled must be a number in \[0, 1\]"),
        (lambda: Approach(method("a"), optimizer="sgd"), "optimizer must be"),
        (lambda: Approach(method("a"), objective=problems.CVaR), "objective must be an Objective"),
        (lambda: JTT((), (2,)), "steps must be"),
        (lambda: JTT((1,), (0,)), "factors must be"),
        (lambda: JTT((1,), (2,), base=WAYS[3]), "base must be of all examples"),
        (lambda: DFR((-1.0,)), "penalties must be"),
        (lambda: DFR(share=1.0), r"share must be a number in \(0, 1\)"),
        (lambda: DFR(base=JTT((1,), (2,))), "base must be"),
    ],
)
def test_what_an_approach_can_not_be_is_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


_TINY = ["TRAIN_STEPS=4", "SEEDS=(0,)", "Schedule.eval_interval=2", "JTT.steps=(1,)"]
_TINY += ["JTT.factors=(2,)", "DFR.penalties=(0.0,)"]
_FEW = "compare_worst_groups.approaches=[@erm/Approach(), @subg/Approach(), @JTT()]"
_OWN = {
    "digits_worst_groups.gin": ["MLP.features=(4,)"],
    "toy_worst_groups.gin": ["toy.num_noise=3"],
    "adult_worst_groups.gin": ["MLP.features=(4,)"],
    "cifar100_worst_groups.gin": [
        *("CNN.filters=(4,)", "CNN.features=(8,)", "spurious_cifar100.validation_per_class=1"),
    ],
}


@pytest.mark.parametrize("file", list(_OWN))
def test_all_approaches_of_an_experiment_can_be_made(file, tmp_path, monkeypatch):
    made = []

    def look(approaches):
        made.extend(approaches)
        raise ValueError("Seen.")

    monkeypatch.setattr(approaches_lib, "check_names", look)
    try:
        experiment = configuration.load([f"gin_configs/experiments/{file}"], [])
        with pytest.raises(ValueError, match="Seen"):
            experiment(output_dir=tmp_path / "out")
    finally:
        gin.clear_config()
    monkeypatch.undo()
    assert made[0].name == "ERM" and len(made) > 5
    approaches_lib.check_names(made)


@pytest.mark.usefixtures("unpainted")
@pytest.mark.parametrize("approaches", ["few", pytest.param("all", marks=pytest.mark.heavy)])
@pytest.mark.parametrize("file", list(_OWN))
def test_an_experiment_runs_to_the_report(file, approaches, tmp_path, monkeypatch):
    from experiments import test_cifar100_experiments

    pytest.importorskip("sklearn")
    monkeypatch.setattr(cifar100, "_read", test_cifar100_experiments.generated)
    public_files.write(tmp_path)
    bindings = [*_TINY, *_OWN[file], *([_FEW] if approaches == "few" else [])]
    record = gin_files.to_report(file, tmp_path / "out", *bindings, data_dir=tmp_path)
    assert {"ERM", "SUBG", "JTT"} <= {run.method for run in record.runs}
