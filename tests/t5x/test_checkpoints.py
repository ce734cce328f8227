"""A run whose newest checkpoint can't be gone on from says so, before T5X restores it."""

import pathlib
import shutil

import jax
import numpy as np
import optax
import pytest

from ldro_jax import ldro
from ldro_jax.t5x import gin_text, run_file

tiny_t5x = pytest.importorskip(
    "helpers.tiny_t5x", reason="T5X is not installed (scripts/install_t5x.sh)", exc_type=ImportError
)
pytestmark = pytest.mark.filterwarnings("ignore")
N = tiny_t5x.N


def save(folder, a_model, steps, state=None):
    """Checkpoints as ``t5x.train`` writes them."""
    parts = tiny_t5x.partitioner()
    start = tiny_t5x.initializer(a_model, parts)
    state = start.from_scratch(jax.random.PRNGKey(0)) if state is None else state
    manager = tiny_t5x.checkpoints.OrbaxCheckpointManagerInterface(
        str(folder), start.global_train_state_shape, parts, save_dtype="float32"
    )
    for step in steps:
        manager.save(state.replace_step(np.int32(step)))
    manager.wait_until_finished()
    manager.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        save(folder, tiny_t5x.make_model(tiny_t5x.weighted()), [1, 2])
    return folder


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def check(folder, num_tasks=N, **options):
    tiny_t5x.checkpoints_lib.check_newest(str(folder), num_tasks, **options)


def test_what_is_whole_passes(run, tmp_path, monkeypatch):
    check(run)
    check(tmp_path / "nothing")
    # Not a URL.
    check(run.rename(tmp_path / "50% of #1, a run"))
    monkeypatch.chdir(tmp_path)
    check("50% of #1, a run")


@pytest.mark.parametrize("text", ["[]", "{}", "\xff", "1"])
def test_a_list_of_arrays_of_another_shape_is_one_clear_error(run, text):
    (run / "checkpoint_2" / "state" / "_METADATA").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match="is damaged .* Move this directory away"):
        check(run)


def files(folder, pattern):
    return sorted(path for path in folder.glob(pattern) if path.is_file())


def damage(path, how):
    data = path.read_bytes()
    if how == "delete":
        path.unlink()
    else:
        path.write_bytes({"truncate": data[: len(data) // 2], "empty": b""}[how])


@pytest.mark.parametrize("how", ["delete", "truncate", "empty"])
def test_each_damaged_file_is_one_clear_error(run, how):
    newest = run / "checkpoint_2"
    # What T5X reads: the list of arrays, the index, and the arrays.
    wanted = ["state/_METADATA", "state/manifest.ocdbt", "state/d/*", "state/ocdbt.process_0/d/*"]
    found = [path for pattern in wanted for path in files(newest, pattern)]
    assert len(found) >= 5
    refused = []
    for path in found:
        before = path.read_bytes()
        damage(path, how)
        try:
            check(run)
        except ValueError as error:
            assert f"{newest}, the newest checkpoint of the run, is damaged (" in str(error)
            assert "Move this directory away: the run then goes on from checkpoint_1." in str(error)
            assert "\n" not in str(error)
            refused.append(path)
        path.write_bytes(before)
    # Orbax leaves files behind that the finished checkpoint doesn't refer to.
    assert {path.parent.name for path in refused} == {"state", "d"}
    largest = max(found, key=lambda path: path.stat().st_size)
    assert largest in refused
    check(run)


def test_the_next_one_is_that_of_before(run):
    shutil.rmtree(run / "checkpoint_2" / "state")
    with pytest.raises(ValueError, match="checkpoint_2, .* goes on from checkpoint_1"):
        check(run)
    shutil.rmtree(run / "checkpoint_2")
    check(run)
    (run / "checkpoint_1" / "state" / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(ValueError, match="checkpoint_1, .* the run then begins anew"):
        check(run)


def test_arrays_are_read_only_if_asked(run):
    arrays = files(run / "checkpoint_2", "state/ocdbt.process_0/d/*")
    damage(max(arrays, key=lambda path: path.stat().st_size), "truncate")
    check(run, read=False)
    with pytest.raises(ValueError, match="is damaged"):
        check(run)


def test_a_run_without_ldro_is_one_clear_error(tmp_path):
    stock = tiny_t5x.optimizers.OptaxWrapper(tiny_t5x.sgd())
    save(tmp_path, tiny_t5x.make_model(stock, tiny_t5x.models.DecoderOnlyModel), [3])
    with pytest.raises(ValueError, match="checkpoint_3 is a checkpoint of a run without L-DRO: .*"):
        check(tmp_path)


def test_the_weights_of_other_tasks_are_refused_with_a_way_on(run):
    way_on = f'finetune.gin and INITIAL_CHECKPOINT_PATH = "{run}/checkpoint_2".'
    with pytest.raises(ValueError, match="has the weights of 4 tasks, but now there are 3.") as at:
        check(run, 3)
    assert str(at.value).endswith(way_on)
    run_file.save_tasks(str(run), tiny_t5x.NAMES)
    with pytest.raises(ValueError, match="was begun with the tasks ar, fr, ru, sw, but now") as at:
        tiny_t5x.tasks_lib.check_names(str(run), tiny_t5x.NAMES[:3])
    assert str(at.value).endswith(way_on)


def restored(a_model, checkpoint, **options):
    """As ``t5x.train`` begins from INITIAL_CHECKPOINT_PATH."""
    parts = tiny_t5x.partitioner()
    start = tiny_t5x.initializer(a_model, parts)
    # Other than those of the checkpoint.
    start.from_scratch(jax.random.PRNGKey(1))
    cfg = tiny_t5x.utils.RestoreCheckpointConfig(
        path=str(checkpoint), mode="specific", dtype="float32", **options
    )
    state, manager = tiny_t5x.utils.create_checkpoint_manager_and_restore(
        start, parts, cfg, str(checkpoint), jax.random.PRNGKey(1), use_orbax=True
    )
    manager.close()
    return state


@pytest.fixture(scope="module")
def with_adam(tmp_path_factory):
    """A checkpoint with moments, and what is in it."""
    folder = tmp_path_factory.mktemp("adam")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        a_model = tiny_t5x.make_model(tiny_t5x.weighted(optax.adam(0.01)))
        start = tiny_t5x.initializer(a_model, tiny_t5x.partitioner())
        state = start.from_scratch(jax.random.PRNGKey(0))
        state = jax.tree.map(lambda x: x + np.ones([], x.dtype), state)
        save(folder, a_model, [5], state)
    return folder, jax.tree.map(np.asarray, state.state_dict())


def assert_equal(found, expected):
    assert len(jax.tree.leaves(expected)) > 4
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_run_with_other_tasks_goes_on_from_the_parameters_and_moments(with_adam):
    folder, before = with_adam
    text = (pathlib.Path(tiny_t5x.data.__file__).parent / "finetune.gin").read_text()
    bound = gin_text.parse(text)
    options = {
        name: bound.value("RestoreCheckpointConfig", name)
        for name in ("assignment_map", "fallback_to_scratch")
    }
    tx = ldro.transform(5, lookahead_lr=0.5, weight_lr=0.4)
    optimizer = tiny_t5x.optimizer_lib.WeightedOptimizer(tx, optax.adam(0.01))
    state = restored(tiny_t5x.make_model(optimizer), folder / "checkpoint_5", **options)
    np.testing.assert_array_equal(state.param_states["weighting"].weights, np.full(5, 0.2, "f4"))
    found = state.state_dict()
    assert int(state.step) == 5 and state.param_states["weighting"].count == 0
    for tree in (found, before):
        tree["state"]["param_states"] = dict(tree["state"]["param_states"])
    del found["state"]["param_states"]["weighting"]
    kept = {k: v for k, v in before["state"]["param_states"].items() if k != "weighting"}
    assert_equal(found["state"]["param_states"], kept)
    assert_equal(found["target"], before["target"])


def test_t5x_own_trainer_goes_on_from_a_run_with_ldro(with_adam):
    folder, before = with_adam
    optimizer = tiny_t5x.optimizers.OptaxWrapper(optax.adam(0.01))
    a_model = tiny_t5x.make_model(optimizer, tiny_t5x.models.DecoderOnlyModel)
    state = restored(a_model, folder / "checkpoint_5")
    found = state.state_dict()
    assert int(state.step) == 5 and "weighting" not in found["state"]["param_states"]
    kept = {k: v for k, v in before["state"]["param_states"].items() if k != "weighting"}
    assert_equal(found["state"]["param_states"], kept)
    assert_equal(found["target"], before["target"])
    a_trainer = tiny_t5x.make_trainer(a_model, cls=tiny_t5x.t5x_trainer.Trainer, state=state)
    tiny_t5x.train(a_trainer, [tiny_t5x.tasks_lib.unmarked(tiny_t5x.batch(1))])
    assert a_trainer.train_state.step == 6
