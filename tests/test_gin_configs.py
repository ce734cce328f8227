"""Every gin file can be read, and the methods among them can be made."""

import pathlib

import gin
import jax.numpy as jnp
import pytest
from helpers import tiny

from ldro_jax import configuration, transform
from ldro_jax.experiments import compare

_CONFIGS = pathlib.Path(__file__).parents[1] / "gin_configs"
_FILES = sorted(str(path.relative_to(_CONFIGS)) for path in _CONFIGS.rglob("*.gin"))
_EXPERIMENTS = [file for file in _FILES if file.startswith("experiments/")]
_METHODS = [file for file in _FILES if file.startswith("methods/")]
# A new experiment goes here together with a test that runs it to its report.
_RUN = {
    **{
        f"experiments/cifar100_{name}.gin": "experiments/test_cifar100_experiments.py"
        for name in (
            *("cpu", "interpolated", "interval", "large", "overhead", "pareto"),
            "renormalization",
        )
    },
    **{
        f"experiments/{name}.gin": "experiments/test_public_data_experiments.py"
        for name in ("chicago", "moleculeace", "yeast", "yeast_products")
    },
    **{
        f"experiments/{name}_groups.gin": "experiments/test_groups.py"
        for name in ("cifar100", "digits", "yeast")
    },
    **{
        f"experiments/{name}_worst_groups.gin": "experiments/test_worst_groups.py"
        for name in ("adult", "cifar100", "digits", "toy")
    },
    "experiments/digits.gin": "helpers/command_line.py",
    "experiments/digits_hopeless.gin": "experiments/test_digits_methods.py",
    "experiments/digits_methods.gin": "experiments/test_digits_methods.py",
    "experiments/digits_products.gin": "experiments/test_digits_methods.py",
    "experiments/digits_sweep.gin": "experiments/test_digits_methods.py",
    "experiments/multilingual_lm_mc4.gin": "tasks/test_mc4.py",
    "experiments/multilingual_lm_small.gin": "experiments/test_lm_gin.py",
    "experiments/shuffled_language.gin": "experiments/test_lm_gin.py",
    "experiments/synthetic.gin": "experiments/test_trajectories.py",
}


@pytest.fixture(autouse=True)
def _no_gin_bindings_left():
    yield
    gin.clear_config()


def test_every_experiment_is_run_by_a_test():
    assert sorted(_RUN) == _EXPERIMENTS
    for experiment, test in _RUN.items():
        text = (pathlib.Path(__file__).parent / test).read_text(encoding="utf-8")
        assert pathlib.Path(experiment).name in text


@pytest.mark.parametrize("file", _EXPERIMENTS)
def test_an_experiment_stands_alone(file):
    assert callable(configuration.load([str(_CONFIGS / file)], []))


@pytest.mark.parametrize("file", _EXPERIMENTS)
def test_an_experiment_says_what_to_expect_and_how_to_run_it(file):
    lines = (_CONFIGS / file).read_text(encoding="utf-8").splitlines()
    header = "\n".join(line for line in lines[: lines.index(next(filter(_is_code, lines)))])
    assert f"--gin_file=gin_configs/{file}" in header
    assert "Time: about " in header


def _is_code(line):
    return line and not line.startswith("#")


@pytest.mark.parametrize("file", _METHODS)
def test_a_method_can_be_added_to_an_experiment(file):
    scope = pathlib.Path(file).stem
    configuration.load(
        [str(_CONFIGS / "experiments" / "digits.gin"), str(_CONFIGS / file)],
        [f"compare.methods=[@{scope}/Method()]"],
    )
    with gin.config_scope(scope):
        method = gin.get_configurable("training.Method")()
    # What only the data can tell.
    method = compare.resolved(method, tiny.problem(), dict.fromkeys("abc", 0.0))
    state = method.transform(3).init(jnp.zeros(2))
    assert transform.find_state(state).weights.shape == (3,)
    assert method.name and set(method.hyperparameters) <= set(method.settings())
