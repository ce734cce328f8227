"""The same directory and another call of `compare`: the right numbers, or an error that says why.

Each change is made to a finished directory and to one that was interrupted in its first run. What
comes out is what the same call gives in a new directory; or nothing is touched, and the error
names what was changed, and both values.
"""

import dataclasses
import json
import re

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax.experimental.compilation_cache import compilation_cache

from ldro_jax import problems, reporting, weighting
from ldro_jax.experiments import compare
from ldro_jax.problems.base import OnDevice
from ldro_jax.records import results
from ldro_jax.sharding import Layout
from ldro_jax.training import loop
from ldro_jax.training.method import Method
from ldro_jax.training.schedule import Schedule

pytestmark = pytest.mark.faults

LOSS, GAP = problems.Metric("loss", False), problems.Metric("gap", False)


def squared(outputs, rows):
    return jnp.sum((outputs - rows["targets"]) ** 2, axis=1)


def absolute(outputs, rows):
    return jnp.sum(jnp.abs(outputs - rows["targets"]), axis=1)


def arrays(seed, count=12):
    rng = np.random.default_rng(seed)
    made = {}
    for name, slope in (("rises", 1.0), ("falls", -0.5)):
        x = rng.normal(size=(count, 2)).astype(np.float32)
        made[name] = (x, slope * x[:, :1])
    return made


def network(activation=jnp.tanh, width=3, scale=1.0):
    def init(key, inputs):
        first, last = jax.random.split(key)
        return {
            "first": scale * jax.random.normal(first, (2, width)),
            "last": jax.random.normal(last, (width, 1)),
        }

    return init, lambda params, inputs: activation(inputs @ params["first"]) @ params["last"]


def problem(*, model=None, loss=squared, metrics=None, train=0, test=2, keep=None, shift=0.0):
    """Two regressions; `keep` drops inputs at random, with other numbers in each step."""
    data = arrays(train)
    data["rises"][1][0] += shift
    held_out = {"validation": arrays(1, 5), "test": arrays(test, 5)}
    made = problems.from_arrays(
        data,
        model=model or network(),
        loss=loss,
        metrics=metrics or {LOSS: squared},
        **held_out,
    )
    if keep is not None:
        arrays_, sizes, take = made.on_device

        def dropped(arrays, key, step, tasks, indices):
            rows = take(arrays, key, step, tasks, indices)
            mask = jax.random.bernoulli(jax.random.fold_in(key, step), keep, rows["inputs"].shape)
            return {**rows, "inputs": jnp.where(mask, rows["inputs"] / keep, 0)}

        made.on_device = OnDevice(arrays_, sizes, dropped)
    return made


def own(power):
    """A weighting of one's own."""
    return weighting.stateless(lambda s: jax.nn.softmax(power * s.losses))


def last_only(params):
    return {"first": False, "last": True}


DRO = Method("DRO", "group_dro", {"weight_lr": 0.5})
RATES = {"lookahead_lr": 0.1, "weight_lr": 0.5}
LDRO = Method("L-DRO", "lookahead_online", RATES, interaction_interval=2)
OTHER_RATE = Method("DRO", "group_dro", {"weight_lr": 0.25})
BASE = {
    "methods": [DRO],
    "seeds": (0,),
    "optimizer": lambda: optax.sgd(0.05),
    "schedule": Schedule(6, eval_interval=2, checkpoint_interval=2),
    "batch_size": 4,
}
SCHEDULE = BASE["schedule"]


def decayed(rate, steps=6):
    return lambda: optax.sgd(optax.cosine_decay_schedule(rate, steps))


def with_decay(decay):
    return lambda: optax.chain(optax.add_decayed_weights(decay), optax.sgd(0.05))


# For each change the options before, where they aren't those of BASE, the options after, and what
# the error says.
REFUSED = {
    "rate": ({}, {"optimizer": lambda: optax.sgd(0.01)}, "optimizer.*-0.05 there.*-0.01 now"),
    "schedule of the rate": ({}, {"optimizer": decayed(0.05)}, "optimizer.*-0.05 there"),
    "length of that": (
        {"optimizer": decayed(0.05)},
        {"optimizer": decayed(0.05, 12)},
        "optimizer.*decay_steps = 6.0 there.*decay_steps = 12.0 now",
    ),
    "momentum": ({}, {"optimizer": lambda: optax.sgd(0.05, momentum=0.9)}, "another optimizer"),
    "weight decay": (
        {"optimizer": with_decay(0.1)},
        {"optimizer": with_decay(0.2)},
        "optimizer.*weight_decay = 0.1 there.*weight_decay = 0.2 now",
    ),
    "tree of the state": (
        {},
        {"optimizer": lambda: optax.chain(optax.sgd(0.05), optax.identity())},
        "another optimizer",
    ),
    "loss": (
        {},
        {"problem": {"loss": absolute}},
        "another loss or model.*function squared there.*function absolute now",
    ),
    "activation": (
        {},
        {"problem": {"model": network(jax.nn.relu)}},
        "another loss or model.*tanh.* there.*relu.* now",
    ),
    "width": (
        {},
        {"problem": {"model": network(width=4)}},
        "another loss or model.*width = 3 there.*width = 4 now",
    ),
    "first parameters": (
        {},
        {"problem": {"model": network(scale=0.5)}},
        "another initial parameters.*scale = 1.0 there.*scale = 0.5 now",
    ),
    "dropout": (
        {"problem": {"keep": 0.9}},
        {"problem": {"keep": 0.5}},
        "another training rows.*keep = 0.9 there.*keep = 0.5 now",
    ),
    "a target": ({}, {"problem": {"shift": 0.25}}, "other data: content was .*, now it is"),
    "test data": ({}, {"problem": {"test": 3}}, "other data: content was .*, now it is"),
    "batch_size": ({}, {"batch_size": 8}, "another batch_size: it was 4, now it is 8"),
    "sampler": ({}, {"sampler": "uniform"}, "another sampler: it was balanced, now it is unif"),
    "microbatches": ({}, {"microbatches": 2}, "another microbatches: it was 1, now it is 2"),
    "interaction_rows": (
        {"methods": [LDRO]},
        {"interaction_rows": 1},
        "another interaction_rows: it was None, now it is 1",
    ),
    "trainable": ({}, {"trainable": last_only}, r"another trainable: .*\[\].*'first'"),
    "layout": ({}, {"layout": Layout(data=1)}, "another layout: it was None.* now it is a Layout"),
    "setting": (
        {},
        {"methods": [OTHER_RATE]},
        "another run: weight_lr was 0.5, now it is 0.25",
    ),
    "interval": (
        {"methods": [LDRO]},
        {"methods": [dataclasses.replace(LDRO, interaction_interval=1)]},
        "another run: interaction_interval was 2, now it is 1",
    ),
    "own weighting": (
        {"methods": [Method("own", own(1.0))]},
        {"methods": [Method("own", own(2.0))]},
        "another weighting",
    ),
    "eval_interval": (
        {},
        {"schedule": dataclasses.replace(SCHEDULE, eval_interval=3)},
        "another eval_interval: it was 2, now it is 3",
    ),
    "test": (
        {},
        {"schedule": dataclasses.replace(SCHEDULE, test="last")},
        "another test: it was always, now it is last",
    ),
    "what the best step is chosen by": (
        {"schedule": dataclasses.replace(SCHEDULE, test="best")},
        {
            "schedule": dataclasses.replace(SCHEDULE, test="best"),
            "problem": {"metrics": {LOSS: absolute}},
        },
        "another first metric.*squared there.*absolute now",
    ),
    "fewer steps": (
        {},
        {"schedule": dataclasses.replace(SCHEDULE, train_steps=2)},
        r"has [46] steps, and train_steps is 2 now",
    ),
}
TAKEN = {
    "nothing": ({}, {}),
    "another object": ({}, {"optimizer": lambda: optax.GradientTransformation(*optax.sgd(0.05))}),
    "a seed": ({}, {"seeds": (1, 0)}),
    "a method": ({}, {"methods": [Method("Average", "average"), DRO]}),
    "a setting": ({}, {"methods": [OTHER_RATE, DRO]}),
    "fewer seeds": ({"seeds": (0, 1)}, {}),
    "other methods": ({}, {"methods": [Method("Average", "average")]}),
    "more steps": ({}, {"schedule": dataclasses.replace(SCHEDULE, train_steps=10)}),
    "rarer checkpoints": ({}, {"schedule": dataclasses.replace(SCHEDULE, checkpoint_interval=4)}),
    "select_by": ({}, {"select_by": "average"}),
    "words": ({}, {"name": "other", "description": "Other words.", "config_text": "my: words"}),
    "a mesh": ({"layout": Layout(data=1)}, {"layout": Layout(data=2)}),
}
# Those that are tried by default.
_USUAL = {"rate", "loss", "setting", "fewer steps", "a seed", "more steps"}


def cases(changes):
    return [
        pytest.param(*change, id=name, marks=() if name in _USUAL else pytest.mark.heavy)
        for name, change in changes.items()
    ]


def run(directory, **options):
    options = {**BASE, **options}
    made = problem(**options.pop("problem", {}))
    optimizer = options.pop("optimizer")()
    # Optax's schedules divide an integer by a float.
    with jax.numpy_dtype_promotion("standard"):
        return compare.compare(made, optimizer=optimizer, output_dir=directory, **options)


def write_report(record, output_dir, **options):
    (output_dir / "report.html").write_text("report")


@pytest.fixture(autouse=True)
def _no_report(monkeypatch):
    monkeypatch.setattr(reporting, "write_report", write_report)


@pytest.fixture(scope="module", autouse=True)
def _compile_once(tmp_path_factory):
    """The same program is compiled again and again here."""
    names = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in names}
    compilation_cache.reset_cache()
    for name, value in names.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Makes a directory; of the same one it makes a copy."""
    made = {}

    def copy(target, state, options):
        key = (state, *sorted(f"{k}={id(v)}" for k, v in options.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("begun") / "o"
            begin(made[key], state, **options)
        return harness.copied(made[key], target)

    return copy


def begin(directory, state, **options):
    """A directory that is finished, or was interrupted in step 4 of its first run."""
    with pytest.MonkeyPatch.context() as context:
        context.setattr(reporting, "write_report", write_report)
        if state == "finished":
            run(directory, **options)
            return
        train = loop.train

        def interrupted(*args, progress, **more):
            return train(*args, progress=tiny.Progress(stop_after=3), **more)

        context.setattr(loop, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(directory, **options)


def everything(record):
    """All of a record but what clocks say, as it is rounded in a file."""
    found = json.loads(json.dumps(results.plain(dataclasses.replace(record, device={}))))
    return harness._without_clocks(found)


def files_of(directory):
    return {
        path: path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and "lock" not in path.name
    }


@pytest.mark.parametrize("state", ["finished", "interrupted"])
@pytest.mark.parametrize(("before", "after", "message"), cases(REFUSED))
def test_what_would_change_the_numbers_is_refused(state, before, after, message, tmp_path, begun):
    begun(tmp_path, state, before)
    there = files_of(tmp_path)
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)) as error:
        run(tmp_path, **(before | after))
    assert "\n" not in str(error.value) and "overwrite=True" in str(error.value)
    assert files_of(tmp_path) == there


@pytest.mark.parametrize("state", ["finished", "interrupted"])
@pytest.mark.parametrize(("before", "after"), cases(TAKEN))
def test_what_changes_no_number_is_taken(state, before, after, tmp_path, begun):
    begun(tmp_path / "there", state, before)
    options = before | after
    expected = run(tmp_path / "new", **options)
    found = run(tmp_path / "there", **options)
    if "layout" in options:
        close(found, expected)
    else:
        assert everything(found) == everything(expected)
    assert everything(results.load_results(tmp_path / "there" / "results.json")) == everything(
        found
    )


METRICS = {
    "new": {LOSS: squared, GAP: absolute},
    "first": {GAP: absolute, LOSS: squared},
    "another of the same name": {LOSS: absolute},
    "another instead": {GAP: absolute},
}


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("new", "finished"),
        *(
            pytest.param(name, state, marks=pytest.mark.heavy)
            for name in METRICS
            for state in ("finished", "interrupted")
            if (name, state) != ("new", "finished")
        ),
    ],
)
def test_a_metric_is_measured_with_the_parameters_that_are_kept(name, state, tmp_path, begun):
    begun(tmp_path / "there", state, {})
    options = {"problem": {"metrics": METRICS[name]}}
    expected = rounded(run(tmp_path / "new", **options).runs[0])
    found = rounded(run(tmp_path / "there", **options).runs[0])
    # Of steps whose parameters are gone there is nothing, and never what it was before.
    first = 6 if state == "finished" else 4
    changed = {m.name for m, f in METRICS[name].items() if (m, f) != (LOSS, squared)}
    known = [e for e in expected.evaluations if e.metric not in changed or e.step >= first]
    assert sorted(map(repr, found.evaluations)) == sorted(map(repr, known))
    assert found.losses.values.tolist() == expected.losses.values.tolist()


def rounded(run):
    return results.run_from_record(results.run_to_record(run))


def test_a_metric_without_parameters_is_refused(tmp_path, begun):
    begun(tmp_path, "finished", {})
    harness.remove(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match="lacks gap, which is new .* no checkpoint of .* step, 6"):
        run(tmp_path, problem={"metrics": METRICS["new"]})
    # One that isn't wanted any more needs none.
    assert run(tmp_path).runs[0].evaluations


# The command line: flags, and what the error says; nothing where it is taken.
COMMANDS = {
    "rate": (["--gin.optax.sgd.learning_rate=0.01"], "learning_rate = 0.05 there.* = 0.01 now"),
    "width": (["--gin.MLP.features=(5,)"], r"another loss or model.*\(4,\) there.*\(5,\) now"),
    "batch_size": (["--gin.compare.batch_size=80"], "another batch_size: it was 160, now it is 80"),
    "data": (["--gin.digits.load.seed=1"], "other data: content was .*, now it is"),
    "eval_interval": (["--gin.Schedule.eval_interval=3"], "eval_interval: it was 2, now it is 3"),
    "fewer steps": (["--gin.TRAIN_STEPS=2"], "steps, and train_steps is 2 now"),
    "nothing": ([], None),
    "more": (
        ["--gin.SEEDS=(0, 1)", "--gin.TRAIN_STEPS=10", "--gin.compare.select_by='average'"],
        None,
    ),
}


@pytest.mark.parametrize(
    "names", [("rate",), pytest.param(tuple(COMMANDS), marks=pytest.mark.heavy)], ids=len
)
def test_the_command_line_does_the_same(names, runners, tmp_path, survived):
    status, operations, said = runners.run(harness.DIGITS, tmp_path / "finished")
    assert status == 0, said
    status, _, said = runners.run(harness.DIGITS, tmp_path / "killed", kill=int(0.7 * operations))
    assert status == -9, said

    def one(trial):
        name, source = trial
        flags, message = COMMANDS[name]
        args, target = [*harness.DIGITS, *flags], tmp_path / f"{name}-{source}"
        before = files_of(harness.copied(tmp_path / source, target))
        status, _, said = runners.run(args, target)
        if message is not None:
            line = harness.errors(said)[:1] or [said[-500:]]
            right = status == 1 and re.search(message, line[0]) and "--overwrite" in line[0]
            kept = {p: c for p, c in files_of(target).items() if not p.name.startswith(".")}
            return None if right and kept == before else f"{name} of {source}: {status}: {line}"
        runners.run(args, tmp_path / f"{name}-{source}-new")
        if status or harness.record(target) != harness.record(tmp_path / f"{name}-{source}-new"):
            return f"{name} of {source}: {status}, or other numbers: {said[-500:]}"
        is_finished = "is finished; look at its report.html" in said
        return None if is_finished == (name == "nothing" and source == "finished") else said[-500:]

    trials = [(name, source) for name in names for source in ("finished", "killed")]
    survived("changed commands", runners.map(one, trials))


@pytest.mark.heavy
def test_a_finished_experiment_needs_its_data(runners, tmp_path):
    pytest.importorskip("seqio")
    args = harness.multilingual(tmp_path / "text")
    status, _, said = runners.run(args, tmp_path / "o")
    assert status == 0, said
    nowhere = [f"--data_dir={tmp_path / 'nowhere'}", "--gin.text.load.languages=('aa', 'bb')"]
    status, _, said = runners.run([*args, *nowhere], tmp_path / "o")
    assert status == 1 and "nowhere" in harness.errors(said)[0], said
    # References are known by what they were made with as well.
    rate = "--gin.alone/monolingual.batch_size=4"
    status, _, said = runners.run([*args, rate], tmp_path / "o")
    assert status == 1 and "another batch_size: it was 2, now it is 4" in said, said


def close(found, expected):
    """Whether two records have the same numbers up to rounding."""
    for one, other in zip(found.runs, expected.runs, strict=True):
        np.testing.assert_allclose(one.weights.values, other.weights.values, rtol=1e-4)
        averages = ([e.average for e in run.evaluations] for run in (one, other))
        np.testing.assert_allclose(*averages, rtol=1e-4)
