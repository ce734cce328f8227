"""Rows and directories say which tasks they are of; what says something else is refused."""

import json

import jax
import numpy as np
import pytest

from ldro_jax.t5x import run_file

tiny_t5x = pytest.importorskip(
    "helpers.tiny_t5x", reason="T5X is not installed (scripts/install_t5x.sh)", exc_type=ImportError
)
pytestmark = pytest.mark.filterwarnings("ignore")
NAMES, MARK = tiny_t5x.NAMES, tiny_t5x.tasks_lib.MARK


def on_devices(marks):
    devices = jax.sharding.Mesh(np.array(jax.devices()), "data")
    spec = jax.sharding.PartitionSpec("data")
    return jax.device_put(marks, jax.sharding.NamedSharding(devices, spec))


@pytest.mark.parametrize("put", [np.asarray, on_devices])
def test_rows_in_turn_pass_and_others_do_not(put):
    right = tiny_t5x.tasks_lib.marks(NAMES, 16)
    assert right.dtype == np.int32 and len(set(right)) == 4
    tiny_t5x.tasks_lib.check_rows({MARK: put(right)}, NAMES)
    swapped = right.copy()
    swapped[[14, 15]] = right[[15, 14]]
    for marks, names in [(swapped, NAMES), (right, NAMES[::-1]), (right, NAMES[:3])]:
        with pytest.raises(ValueError, match="don't belong to the trainer's . tasks in turn, "):
            tiny_t5x.tasks_lib.check_rows({MARK: put(marks)}, names)


@pytest.fixture
def trainer(tmp_path):
    a_model = tiny_t5x.make_model(tiny_t5x.weighted())
    # TensorFlow's data must not see writers of summaries that are still open.
    with tiny_t5x.make_trainer(a_model, summary_dir=str(tmp_path)) as a_trainer:
        yield a_trainer


def unmarked():
    return tiny_t5x.tasks_lib.unmarked(tiny_t5x.batch())


def test_batches_of_t5x_own_data_are_refused(trainer, tmp_path):
    # T5X compiles first.
    with pytest.raises(ValueError, match="Bind train.get_dataset_fn = @data.get_dataset"):
        trainer.compile_train(unmarked())
    with pytest.raises(ValueError, match="Bind train.get_dataset_fn = @data.get_dataset"):
        tiny_t5x.train(trainer, [unmarked()])
    assert not (tmp_path / "ldro_tasks.json").exists()


def test_names_are_saved_when_the_first_step_is_taken(trainer, tmp_path):
    batch = tiny_t5x.batch()
    trainer.compile_train(batch)
    assert not (tmp_path / "ldro_tasks.json").exists()
    other = batch | {MARK: tiny_t5x.tasks_lib.marks(NAMES[::-1], tiny_t5x.ROWS)}
    with pytest.raises(ValueError, match="tasks in turn, ar, fr, ru, sw"):
        tiny_t5x.train(trainer, [other])
    assert not (tmp_path / "ldro_tasks.json").exists()
    # No batch is lost to the check.
    tiny_t5x.train(trainer, [batch, tiny_t5x.batch(1)])
    assert trainer.train_state.step == 2
    assert json.loads((tmp_path / "ldro_tasks.json").read_text()) == {"tasks": list(NAMES)}
    assert not (tmp_path / "ldro_tasks.json.tmp").exists()


def test_the_names_a_run_began_with_are_checked_and_kept(tmp_path):
    run = str(tmp_path / "run")
    tiny_t5x.tasks_lib.check_names(run, NAMES)
    run_file.save_tasks(run, NAMES)
    run_file.save_tasks(run, NAMES[:2])
    tiny_t5x.tasks_lib.check_names(run, list(NAMES))
    for other in (NAMES[:2], NAMES[::-1]):
        with pytest.raises(ValueError, match="begun with the tasks ar, fr, ru, sw, but now"):
            tiny_t5x.tasks_lib.check_names(run, other)
    (tmp_path / "run" / "ldro_tasks.json").write_text("{")
    with pytest.raises(ValueError, match="Expected the names of the tasks in .*/ldro_tasks.json"):
        tiny_t5x.tasks_lib.check_names(run, NAMES)
