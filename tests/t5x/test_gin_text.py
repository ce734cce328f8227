"""What a configuration says, as T5X writes it."""

import pytest

from ldro_jax.t5x import gin_text

pytest.importorskip("gin")
LDRO = """
from __gin__ import dynamic_registration
import __main__ as train_script
from ldro_jax import ldro
from t5x import trainer as trainer2

# Macros:
# ====
BATCH_SIZE = 32
MODEL = @model.LDRODecoderOnlyModel()
MODEL_DIR = '/tmp/run'
OPTIMIZER = @optimizer.WeightedOptimizer()
RATE = 0.01
TRAINING_RATE = %RATE
WEIGHTING = @ldro.transform()

# Parameters for train/utils.DatasetConfig:
# ====
train/utils.DatasetConfig.batch_size = %BATCH_SIZE
train/utils.DatasetConfig.seed = 3
train/utils.DatasetConfig.task_feature_lengths = {'targets': 128}
train_eval/utils.DatasetConfig.split = 'validation'
utils.DatasetConfig.split = 'train'
models.DecoderOnlyModel.module = @network.DecoderWrapper()
models.DecoderOnlyModel.optimizer_def = @adafactor.Adafactor()
adafactor.Adafactor.decay_rate = 0.8
model.LDRODecoderOnlyModel.optimizer_def = %OPTIMIZER
train.train.model = %MODEL
optimizer.WeightedOptimizer.frozen = ()
optimizer.WeightedOptimizer.optimizer = @optimizers.adam()
optimizer.WeightedOptimizer.weighting = %WEIGHTING
optimizers.adam.learning_rate = \\
    %TRAINING_RATE
optimizers.adam.train_steps = 200
ldro.transform.num_tasks = @data.num_tasks()
ldro.transform.weight_lr = 0.03
data.num_tasks.mixture_or_task_name = 'ldro_text'
data.get_dataset.sampling = 'weights'
data.get_dataset.model_dir = %MODEL_DIR
train.train.trainer_cls = @trainer.LDROTrainer
train.train.eval_steps = None
trainer.LDROTrainer.interaction = 'tiled'
trainer.LDROTrainer.task_names = @data.task_names()
trainer2.Trainer.num_microbatches = 4
trainer2.Trainer.learning_rate_fn = @optax.warmup_cosine_decay_schedule()
optax.warmup_cosine_decay_schedule.peak_value = %RATE
"""
STOCK = """
MODEL = @models.DecoderOnlyModel()
OPTIMIZER = @adafactor.Adafactor()
models.DecoderOnlyModel.optimizer_def = %OPTIMIZER
adafactor.Adafactor.decay_rate = 0.8
trainer.Trainer.learning_rate_fn = @utils.create_learning_rate_scheduler()
utils.create_learning_rate_scheduler.base_learning_rate = 1.0
utils.create_learning_rate_scheduler.warmup_steps = 10000
data.text_mixture.exponent = 0.3
train.train.trainer_cls = @trainer.Trainer
"""


def test_hyperparameters_are_what_the_run_was_trained_with():
    assert gin_text.parse(LDRO).hyperparameters() == {
        "optimizer": "optimizers.adam",
        "weighting": "ldro.transform",
        "learning_rate": 0.01,
        "weight_lr": 0.03,
        "sampling": "weights",
        "batch_size": 32,
        "task_feature_lengths": {"targets": 128},
        "num_microbatches": 4,
        "interaction": "tiled",
    }


def test_a_schedule_of_the_trainer_counts_where_the_optimizer_has_none():
    assert gin_text.parse(STOCK).hyperparameters() == {
        "optimizer": "adafactor.Adafactor",
        "decay_rate": 0.8,
        "base_learning_rate": 1.0,
        "warmup_steps": 10000,
        "exponent": 0.3,
    }


def test_of_two_arguments_of_one_name_the_second_says_whose_it_is():
    text = LDRO + "ldro.transform.learning_rate = 0.5\n"
    found = gin_text.parse(text).hyperparameters()
    assert (found["learning_rate"], found["transform.learning_rate"]) == (0.01, 0.5)


def test_values_are_looked_up_by_scope_and_through_macros():
    config = gin_text.parse(LDRO)
    assert config.value("DatasetConfig", "split", "train_eval") == "validation"
    assert config.value("DatasetConfig", "split", "train") == "train"
    assert config.value("adam", "learning_rate") == 0.01
    assert config.value("adam", "b1") is None
    assert config.value("train", "trainer_cls") == gin_text.Reference("trainer.LDROTrainer")


def test_macros_and_references_may_go_round():
    config = gin_text.parse(
        "A = %B\nB = %A\nx.f.a = %A\nx.f.b = %MISSING\nx.f.c = @x.f()\nm.optimizer_def = @x.f()"
    )
    assert config.value("f", "a") is None and config.value("f", "b") is None
    assert config.hyperparameters() == {"optimizer": "x.f", "c": "x.f"}


@pytest.mark.parametrize("text", ["garbage", "(((", "a.b = ", "a.b = [1", '{"json": 1}', "\x00"])
def test_something_else_is_one_clear_error(text, tmp_path):
    (tmp_path / "config.gin").write_text(text)
    with pytest.raises(ValueError, match="Expected the configuration of a run .*gin, but"):
        gin_text.read(str(tmp_path))


def test_a_run_without_a_configuration_says_nothing(tmp_path):
    text, config = gin_text.read(str(tmp_path))
    assert text == "" and config.hyperparameters() == {}
