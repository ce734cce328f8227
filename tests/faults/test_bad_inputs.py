"""Bad inputs: each gives one line that says what to do, and deletes nothing.

A command is run with ``--overwrite`` on a directory that holds a finished experiment.
"""

import json
import re

import jax
import numpy as np
import pytest
from command_line import fails, gin_file, snapshot

from ldro_jax.reporting import __main__ as reporting_main
from ldro_jax.tasks import cifar100
from ldro_jax.training import experiment, lm_loop, loop

pytestmark = [
    pytest.mark.faults,
    # Importing seqio brings TensorFlow, whose packages use what is deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

_HINT = "(LDRO_JAX_TRACEBACK=1 shows where.)"
_LDRO = "ldro/Method.hyperparameters"

# What is typed after the experiment's own flags, and the line that comes (a regular expression).
DIGITS = [
    # Methods.
    ("ldro/Method.weighting='ldro'", r"ldro/Method\.weighting must be one of 'average', .* 'ldro'"),
    ("ldro/Method.weighting=3", r"ldro/Method\.weighting must be one of .* but it is 3\."),
    ("ldro/Method.name=''", r"ldro/Method\.name must be a text in quotes, but it is ''\."),
    ("ldro/Method.interaction='fast'", r"ldro/Method\.interaction must be an Interaction or one"),
    ("ldro/Method.interaction_interval=0", r"ldro/Method\.interaction_interval must be a positive"),
    ("ldro/Method.interaction_interval=2.0", r"ldro/Method\.interaction_interval must be .* 2\.0"),
    ("ldro/Method.lagged='yes'", r"ldro/Method\.lagged must be True or False, but it is 'yes'"),
    ("ldro/Method.lagged=True", r"ldro/Method\.lagged needs interaction_interval=1, .* is 100"),
    ("ldro/Method.floor=1.5", r"ldro/Method\.floor must be a number in \[0, 1\], but it is 1\.5"),
    ("ldro/Method.sampling='some'", r"ldro/Method\.sampling must be one of 'uniform', 'weights'"),
    ("ldro/Method.hyperparameters=[1, 2]", r"ldro/Method\.hyperparameters must be a dictionary"),
    (
        "ldro/Method.hyperparameters={'lookahead_lr': '0.1', 'weight_lr': 1}",
        rf"{_LDRO}: lookahead_lr must be a number in \[0, inf\), but it is '0\.1'\.",
    ),
    (
        "ldro/Method.hyperparameters={'lookahead_lr': [1, 2], 'weight_lr': 1}",
        rf"{_LDRO}: lookahead_lr must be a number in \[0, inf\), but it is \[1, 2\]\.",
    ),
    (
        "ldro/Method.hyperparameters={'lookahead_lr': None, 'weight_lr': 1}",
        rf"{_LDRO}: lookahead_lr must be a number .* but it is None\.",
    ),
    (
        "ldro/Method.hyperparameters={'lookahead_lr': -1.0, 'weight_lr': 1}",
        rf"{_LDRO}: lookahead_lr must be a number .* but it is -1\.0\.",
    ),
    (
        "ldro/Method.hyperparameters={'lookahead_lr': 1e999, 'weight_lr': 1}",
        rf"{_LDRO}: lookahead_lr must be a number .* but it is inf\.",
    ),
    (
        "ldro/Method.hyperparameters={'lr': 1}",
        rf"{_LDRO}: The method 'lookahead_online' takes the hyperparameters \(lookahead_lr, ",
    ),
    (
        "ldro/Method.hyperparameters={'lookahead_lr': 1}",
        r"multitask_classification\.methods: 'L-DRO' lacks weight_lr in its hyperparameters, \{",
    ),
    (
        "ldro/Method.hyperparameters="
        "{'lookahead_lr': 1, 'weight_lr': 1, 'normalize_interaction': 'no'}",
        rf"{_LDRO}: normalize_interaction must be True or False, but it is 'no'\.",
    ),
    (
        "interpolated/Method.hyperparameters={'alpha': 1.5}",
        r"interpolated/Method\.hyperparameters: alpha must be a number in \[0, 1\], .* 1\.5\.",
    ),
    (
        "group_dro/Method.hyperparameters={'weight_lr': 1, 'group_sizes': (1, 2)}",
        r"methods: 'Group DRO' can't be trained\. group_sizes must hold one .* the 10 tasks",
    ),
    (
        "group_dro/Method.hyperparameters={'weight_lr': 1, 'group_sizes': 'many'}",
        r"group_dro/Method\.hyperparameters: group_sizes must be one finite positive number for",
    ),
    (
        "average/Method.weighting='static_mixing'",
        r"methods: 'Average' lacks sizes in its hyperparameters",
    ),
    (
        "ldro/Method.weighting='pcgrad' ldro/Method.hyperparameters={'seed': 0.5}",
        rf"{_LDRO}: seed must be an integer from 0 to 4294967295, but it is 0\.5\.",
    ),
    ("multitask_classification.methods='average'", r"multitask_classification\.methods must be a"),
    (
        "multitask_classification.methods=['average']",
        r"methods must be a list of methods and grids",
    ),
    ("multitask_classification.methods=[]", r"multitask_classification\.methods must be a list of"),
    (
        "multitask_classification.methods=@ldro/Method()",
        r"methods must be a list of methods .* Method",
    ),
    (
        "multitask_classification.methods=[@ldro/Method]",
        r"methods must .* but it is the class Method",
    ),
    (
        "multitask_classification.methods=[@ldro/Method(), @ldro/Method()]",
        r"multitask_classification\.methods must each have their own name or setting",
    ),
    # Grids.
    (
        "multitask_classification.methods=[@ldro/grid()]",
        r"ldro/grid needs 'method' and 'values', which nothing binds\.",
    ),
    (
        "multitask_classification.methods=[@ldro/grid()] ldro/grid.method=@ldro/Method() "
        "ldro/grid.values={'weight_lr': 0.1}",
        r"ldro/grid\.values\['weight_lr'\] must be a list of values, such as .* but it is 0\.1\.",
    ),
    (
        "multitask_classification.methods=[@ldro/grid()] ldro/grid.method=@ldro/Method() "
        "ldro/grid.values={'weight_lr': (0.1, -1)}",
        r"ldro/grid\.values: hyperparameters: weight_lr must be a number in \[0, inf\), .* -1\.",
    ),
    (
        "multitask_classification.methods=[@ldro/grid()] ldro/grid.method=@ldro/Method() "
        "ldro/grid.values={'interaction_interval': (1, 0)}",
        r"ldro/grid\.values: interaction_interval must be a positive integer, but it is 0\.",
    ),
    (
        "multitask_classification.methods=[@ldro/grid()] ldro/grid.method=@ldro/Method() "
        "ldro/grid.values=[0.1]",
        r"ldro/grid\.values must be a dictionary, but it is \[0\.1\]\.",
    ),
    (
        "multitask_classification.methods=[@ldro/grid()] ldro/grid.method='L-DRO' "
        "ldro/grid.values={'weight_lr': (0.1,)}",
        r"ldro/grid\.method must be a Method, such as @ldro/Method\(\), but it is 'L-DRO'\.",
    ),
    # Seeds.
    ("SEEDS=3", r"multitask_classification\.seeds must be a list of seeds, such as \(0, 1, 2\), "),
    ("SEEDS=()", r"multitask_classification\.seeds must be a list of seeds"),
    (
        "SEEDS=(-1,)",
        r"multitask_classification\.seeds must be an integer from 0 to 4294967295, but",
    ),
    ("SEEDS=(0.5,)", r"multitask_classification\.seeds must be an integer from 0 .* is 0\.5\."),
    ("SEEDS=(True,)", r"multitask_classification\.seeds must be an integer from 0 .* is True\."),
    ("SEEDS=('0',)", r"multitask_classification\.seeds must be an integer from 0 .* is '0'\."),
    ("SEEDS=(4294967296,)", r"multitask_classification\.seeds must be .* but it is 4294967296\."),
    ("SEEDS=(1, 1)", r"multitask_classification\.seeds must be seeds that are all different, "),
    ("digits.load.seed=-1", r"digits\.load\.seed must be an integer from 0 to 4294967295, .* -1\."),
    # What is trained, and how long.
    ("multitask_classification.model='MLP'", r"model must be a function of num_classes, .* 'MLP'"),
    (
        "multitask_classification.model=@Decoder",
        r"model must be a function of num_classes, such as",
    ),
    (
        "multitask_classification.model=@CNN",
        r"model must take inputs of the shape \(8, 8\), but it",
    ),
    ("MLP.features=16", r"MLP\.features must be a list of positive integers, .* but it is 16\."),
    ("MLP.features=(0,)", r"MLP\.features must be a positive integer, but it is 0\."),
    ("MLP.features=(16.0,)", r"MLP\.features must be a positive integer, but it is 16\.0\."),
    (
        "multitask_classification.batch_size=160.0",
        r"batch_size must be a positive integer, .* 160\.0",
    ),
    (
        "multitask_classification.batch_size=5",
        r"batch_size must be at least 10, an example of each",
    ),
    ("multitask_classification.sampler='even'", r"sampler must be one of 'balanced', 'uniform', "),
    ("multitask_classification.runs_together=0", r"runs_together must be a positive integer, but "),
    (
        "multitask_classification.load_data=@digits.load()",
        r"load_data must be a function of data_dir",
    ),
    (
        "multitask_classification.load_data='digits'",
        r"load_data must be a function of data_dir, such",
    ),
    (
        "multitask_classification.name=None",
        r"multitask_classification\.name must be a text in quotes",
    ),
    (
        "multitask_classification.schedule=@Schedule",
        r"schedule must be a Schedule, such as @Schedule",
    ),
    ("TRAIN_STEPS=0", r"Schedule\.train_steps must be a positive integer, but it is 0\."),
    ("TRAIN_STEPS='many'", r"Schedule\.train_steps must be a positive integer, but it is 'many'\."),
    ("Schedule.eval_interval=-5", r"Schedule\.eval_interval must be a positive integer, .* -5\."),
    (
        "Schedule.max_nonfinite_steps=None",
        r"Schedule\.max_nonfinite_steps must be a positive integer",
    ),
    (
        "multitask_classification.schedule=@epochs()",
        r"epochs needs 'num_epochs' and 'steps_per_epoch",
    ),
    # Optimizers.
    (
        "optax.sgd.momentum=1.5",
        r"optax\.sgd\.momentum must be a number in \[0, 1\), but it is 1\.5\.",
    ),
    ("optax.sgd.learning_rate=-0.1", r"optax\.sgd\.learning_rate must be a number in \[0, inf\), "),
    ("optax.sgd.learning_rate=None", r"optax\.sgd\.learning_rate must be a number .* is None\."),
    ("optax.sgd.nesterov=1", r"optax\.sgd\.nesterov must be True or False, but it is 1\."),
    (
        "multitask_classification.optimizer=@optax.adam() optax.adam.learning_rate=0.1 "
        "optax.adam.b1=1.0",
        r"optax\.adam\.b1 must be a number in \[0, 1\), but it is 1\.0\.",
    ),
    (
        "multitask_classification.optimizer=@optax.adam()",
        r"optax\.adam needs 'learning_rate', which nothing binds\.",
    ),
    (
        "optax.sgd.learning_rate=@optax.cosine_decay_schedule() "
        "optax.cosine_decay_schedule.init_value=0.1 optax.cosine_decay_schedule.decay_steps=0",
        r"optax\.cosine_decay_schedule\.decay_steps must be a positive integer, but it is 0\.",
    ),
    (
        "multitask_classification.optimizer=@optax.sgd",
        r"optimizer must be a GradientTransformation",
    ),
    # gin.
    ("Schedul.train_steps=1", r"No configurable matching 'Schedul'.* Known names: cifar100\.load"),
    (
        "Schedule.steps=1",
        r"doesn't have a parameter named 'steps'.* Known parameters: train_steps,",
    ),
    ("TRAIN_STEP=1", r"The binding TRAIN_STEP=1 has no effect, because nothing uses the macro"),
    ("dro/Method.floor=0", r"The binding .* has no effect, because nothing uses the scope 'dro'\."),
    ("TRAIN_STEPS=(", r"The gin configuration can't be used\. "),
    ("TRAIN_STEPS=%NOPE", r"The gin configuration can't be used\. Nothing binds the macro NOPE\."),
    ("multitask_classification.model=@MLQ", r"No configurable matching reference '@MLQ'\. "),
    (
        "run.experiment='digits'",
        r"run\.experiment must be a function, such as @multitask_classification",
    ),
]
CIFAR100 = [
    ("CNN.filters=(32, -1)", r"CNN\.filters must be a positive integer, but it is -1\."),
    ("CNN.features='128'", r"CNN\.features must be a list of positive integers"),
    (
        "cifar100.load.validation_per_class=0",
        r"cifar100\.load\.validation_per_class must be a positive",
    ),
    (
        "cifar100.load.validation_per_class=50",
        r"cifar100\.load\.validation_per_class must be from 1",
    ),
    (
        "cifar100.load.max_train_per_class=1.5",
        r"cifar100\.load\.max_train_per_class must be a positive",
    ),
    (
        "cifar100.load.max_test_per_class=0",
        r"cifar100\.load\.max_test_per_class must be a positive",
    ),
    ("cifar100.load.dataset=100", r"cifar100\.load\.dataset must be a text in quotes, .* 100\."),
    ("cifar100.load.seed='a'", r"cifar100\.load\.seed must be an integer from 0 to 4294967295"),
    ("TRAIN_EPOCHS=0", r"epochs\.num_epochs must be a positive integer, but it is 0\."),
    ("STEPS_PER_EPOCH=351.5", r"epochs\.steps_per_epoch must be a positive integer, .* 351\.5\."),
]
SYNTHETIC = [
    (
        "trajectories.points=[[0, 1, 2]]",
        r"trajectories\.points must be finite numbers of the shape",
    ),
    (
        "synthetic.points.num_similar=0",
        r"Error: points\.num_similar must be a positive integer, but it is 0\.",
    ),
    (
        "synthetic.points.spread=-1",
        r"points\.spread must be a number in \[0, inf\), but it is -1\.",
    ),
    ("trajectories.start=(1.0,)", r"trajectories\.start must be finite numbers of the shape \[2\]"),
    (
        "trajectories.start='(1, 2)'",
        r"trajectories\.start must be finite numbers of the shape \[2\]",
    ),
    ("trajectories.learning_rate=0", r"trajectories\.learning_rate must be a number in \(0, inf\)"),
    ("trajectories.train_steps=1e3", r"trajectories\.train_steps must be a positive integer"),
    (
        "trajectories.eval_interval=5000",
        r"trajectories\.eval_interval must be an integer from 1 to",
    ),
    ("trajectories.panels=@a/Panel()", r"trajectories\.panels must be a list of panels"),
    ("trajectories.panels=[@average/Method()]", r"trajectories\.panels must be a Panel, such as"),
    (
        "trajectories.panels=[@a/Panel(), @a/Panel()]",
        r"trajectories\.panels must have methods that",
    ),
    ("c/Panel.noise=-0.1", r"c/Panel\.noise must be a number in \[0, inf\), but it is -0\.1\."),
    ("c/Panel.seeds=(0, 0)", r"c/Panel\.seeds must be seeds that are all different"),
    ("b/Panel.title=2", r"b/Panel\.title must be a text in quotes, but it is 2\."),
    ("ldro/Method.interaction_interval=None ldro/Method.floor=-1", r"ldro/Method\.floor must be a"),
]
MULTILINGUAL = [
    ("text.load.languages='aa'", r"text\.load\.languages must be a list of names"),
    ("text.load.languages=('aa', 'aa')", r"text\.load\.languages must be a list .* all different"),
    ("text.load.languages=('aa', 'xx')", r"There is no language 'xx' in .* Found: aa, bb\."),
    (
        "text.load.vocabulary_size=100",
        r"text\.load\.vocabulary_size must be an integer of at least",
    ),
    (
        "text.load.vocabulary_path=5",
        r"text\.load\.vocabulary_path must be a path in quotes, or None",
    ),
    ("text.load.vocabulary_path='/nope.model'", r"There is no SentencePiece model /nope\.model\. "),
    ("text.load.cache_dir=7", r"text\.load\.cache_dir must be a path in quotes, or None"),
    (
        "multilingual.max_validation_tokens=0",
        r"multilingual\.max_validation_tokens must be a positive",
    ),
    (
        "multilingual.max_test_tokens=-1",
        r"multilingual\.max_test_tokens must be a positive integer",
    ),
    (
        "multilingual.load_data=@digits.load",
        r"multilingual\.load_data must be a function that gives",
    ),
    ("multilingual.make_program='program'", r"multilingual\.make_program must be a function"),
    (
        "multilingual.references=5",
        r"multilingual\.references must be a text in quotes, but it is 5",
    ),
    (
        "multilingual.references=None",
        r"multilingual\.references must be a references\.json, or @monolingual",
    ),
    (
        "multilingual.references='/nope.json'",
        r"There is no file /nope\.json\. Expected the references",
    ),
    (
        "multilingual.references=@digits.load",
        r"multilingual\.references must be a function of output_dir",
    ),
    ("alone/monolingual.seed=-1", r"alone/monolingual\.seed must be an integer from 0"),
    (
        "alone/monolingual.max_test_tokens=0",
        r"alone/monolingual\.max_test_tokens must be a positive",
    ),
    (
        "alone/LanguageModelProgram.batch_size=0",
        r"alone/LanguageModelProgram\.batch_size must be a",
    ),
    ("BATCH_SIZE=1", r"LanguageModelProgram\.batch_size must be at least 2, a row of each task"),
    ("LENGTH=0", r"LanguageModelProgram\.length must be a positive integer, but it is 0\."),
    ("LanguageModelProgram.microbatches=3", r"LanguageModelProgram\.batch_size must be a multiple"),
    (
        "LanguageModelProgram.microbatches=0",
        r"LanguageModelProgram\.microbatches must be a positive",
    ),
    (
        "LanguageModelProgram.eval_length=-8",
        r"LanguageModelProgram\.eval_length must be a positive",
    ),
    (
        "LanguageModelProgram.interaction_rows=0",
        r"LanguageModelProgram\.interaction_rows must be a",
    ),
    (
        "LanguageModelProgram.layout='data'",
        r"LanguageModelProgram\.layout must be a Layout, such as",
    ),
    (
        "LanguageModelProgram.make_model=@MLP",
        r"LanguageModelProgram\.make_model must be a function ",
    ),
    (
        "LanguageModelProgram.optimizer=0.1",
        r"LanguageModelProgram\.optimizer must be a GradientTransformation",
    ),
    ("Layout.data=0", r"Layout\.data must be a positive integer, but it is 0\."),
    ("Layout.model=1.0", r"Layout\.model must be a positive integer, but it is 1\.0\."),
    ("Layout.data=64", r"LanguageModelProgram\.layout asks for a mesh of 64 × 1 devices"),
    (
        "Decoder.num_heads=3",
        r"Decoder\.embed_dim must be a multiple of twice num_heads, .* 16 and 3",
    ),
    ("Decoder.num_layers=0", r"Decoder\.num_layers must be a positive integer, but it is 0\."),
    ("Decoder.dtype='int8'", r"Decoder\.dtype must be one of 'float32', .* but it is 'int8'\."),
    (
        "Decoder.positions='none'",
        r"Decoder\.positions must be one of 'rotary', 'learned', but it is",
    ),
    ("Decoder.remat='no'", r"Decoder\.remat must be True or False, but it is 'no'\."),
    ("LEARNING_RATE=-1", r"lm\.adam\.learning_rate must be a number in \[0, inf\), but it is -1\."),
    ("WARMUP_STEPS=100", r"lm\.adam\.warmup_steps must be less than train_steps, .* 100 and 4\."),
    ("WARMUP_STEPS=0.5", r"lm\.adam\.warmup_steps must be an integer of at least 0, .* 0\.5\."),
    ("lm.adam.clip_norm=0", r"lm\.adam\.clip_norm must be a number in \(0, inf\), but it is 0\."),
    ("lm.adam.b2=1", r"lm\.adam\.b2 must be a number in \[0, 1\), but it is 1\."),
    (
        "static_mixing/Method.hyperparameters={'exponent': -1}",
        r"static_mixing/Method\.hyperparameters: exponent must be a number in \[0, inf\), .* -1\.",
    ),
    (
        "static_mixing/Method.hyperparameters={'sizes': (1, 2, 3)}",
        r"multilingual\.methods: 'Static mixing, α = 0\.3' can't be trained\. sizes must hold one ",
    ),
    (
        "ldro/grid.values={'weight_lr': ('0.1',)}",
        r"ldro/grid\.values: hyperparameters: weight_lr must",
    ),
    ("EVAL_INTERVAL=0", r"Schedule\.eval_interval must be a positive integer, but it is 0\."),
]
MC4 = [
    ("mc4.load.languages=()", r"mc4\.load\.languages must be a list of names"),
    ("mc4.load.languages=('en', 'xx')", r"mc4\.load\.languages must be of XTREME, but 'xx' is not"),
    ("mc4.load.languages=('tl',)", r"mc4\.load\.languages can't have Tagalog \(tl\)"),
    ("mc4.load.max_heldout_tokens=0", r"mc4\.load\.max_heldout_tokens must be a positive integer"),
    ("mc4.load.version=3.1", r"mc4\.load\.version must be a text in quotes, but it is 3\.1\."),
    ("mc4.load.vocabulary_path=1", r"mc4\.load\.vocabulary_path must be a path in quotes, or None"),
    ("SEEDS=(0, -1)", r"multilingual\.seeds must be an integer from 0 to 4294967295, .* -1\."),
    (
        "mc4.load.cache_dir=None",
        r"There is no mC4 in .*c4/multilingual/3\.1\.0: expected dataset_info",
    ),
]
EXPERIMENTS = {
    "digits.gin": DIGITS,
    "cifar100_cpu.gin": CIFAR100,
    "synthetic.gin": SYNTHETIC,
    "multilingual_lm_small.gin": MULTILINGUAL,
    "multilingual_lm_mc4.gin": MC4,
}
_SMALL = {
    "cifar100_cpu.gin": ("cifar100.load.validation_per_class=1",),
    "multilingual_lm_small.gin": (
        *("TRAIN_STEPS=4", "WARMUP_STEPS=1", "EVAL_INTERVAL=2", "BATCH_SIZE=8", "LENGTH=8"),
        *("Decoder.num_layers=1", "Decoder.embed_dim=16", "Decoder.num_heads=2"),
        *("Decoder.mlp_dim=16", "Layout.data=1"),
        *("text.load.languages=('aa', 'bb')", "text.load.vocabulary_size=None"),
    ),
}
# Beside the results of experiments: other flags, and what main itself is given.
FLAGS = [
    (["--gin_file=nope.gin"], r"There is no gin file nope\.gin\. Known experiments: gin_configs/"),
    ([f"--gin_file={__file__}"], r"The gin configuration can't be used\."),
    (["--gin_bindings=TRAIN_STEPS"], r"The gin configuration can't be used\."),
]


def cases():
    """The gin file, the arguments and the line of each case."""
    for file, table in EXPERIMENTS.items():
        for bindings, line in table:
            # A space ends a binding where the next one begins.
            parts = re.split(r" (?=[\w/]+\.\w[\w.]*=)", bindings)
            small = [f"--gin.{binding}" for binding in _SMALL.get(file, ())]
            yield file, [*small, *(f"--gin.{part}" for part in parts)], line
    for arguments, line in FLAGS:
        yield "digits.gin", arguments, line


def _text_dir(folder):
    for language in ("aa", "bb"):
        (folder / language).mkdir(parents=True)
        for split in ("train", "validation"):
            lines = "".join(f"{language} {number}\n" for number in range(40))
            (folder / language / f"{split}.txt").write_text(lines, encoding="utf-8")
    return folder


def _images(dataset, data_dir):
    """Two training images and one test image of each class, instead of what TFDS reads."""
    del dataset, data_dir

    def part(per_class):
        label = np.tile(np.arange(100), per_class)
        image = np.zeros((label.size, 32, 32, 3), np.uint8)
        return {"image": image, "label": label, "coarse_label": label % 20}

    names = tuple(f"coarse {i}" for i in range(20))
    return {"train": part(2), "test": part(1), "task_names": names, "num_classes": 100}


def _must_not_come(*args, **options):
    raise AssertionError("It wasn't noticed before training.")


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """An output directory with the results of an experiment; nothing can be trained or written."""
    directory = tmp_path / "finished"
    for name in ("config.gin", "results.json", "report.html", "runs/a.json", "checkpoints/1/x"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(name.encode())
    (directory / "config.gin").write_text("run.experiment = @other\n")
    for module, name in [(loop, "train"), (lm_loop, "train"), (experiment, "finish")]:
        monkeypatch.setattr(module, name, _must_not_come)
    monkeypatch.setattr(cifar100, "_read", _images)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return directory


def _problem(said, line):
    """What is wrong with an answer, if anything is."""
    first, *others = said.splitlines()
    if not first.startswith("Error: ") or others != [_HINT]:
        return f"it isn't one line: {said!r}"
    if " at 0x" in said or "Traceback" in said:
        return f"it shows insides: {said!r}"
    return None if re.search(line, first) else f"it is another line than {line!r}: {said!r}"


def test_each_bad_input_gives_one_line_and_deletes_nothing(finished, tmp_path, survived):
    pytest.importorskip("seqio")
    pytest.importorskip("sklearn")
    data = {
        "multilingual_lm_small.gin": _text_dir(tmp_path / "text"),
        "multilingual_lm_mc4.gin": tmp_path / "nothing",
    }
    before, problems = snapshot(finished), []
    for file, arguments, line in cases():
        flags = [gin_file(file), f"--output_dir={finished}", "--overwrite", *arguments]
        if file in data:
            flags.append(f"--data_dir={data[file]}")
        try:
            # Optax's Adam is not made for strict promotion.
            with jax.numpy_dtype_promotion("standard"):
                problem = _problem(fails(*flags), line)
        except (Exception, pytest.fail.Exception) as error:
            problem = f"it ends with {type(error).__name__}: {error}"
        if problem is None and snapshot(finished) != before:
            problem = "it has changed what was finished"
        problems.append(problem and f"{file} {' '.join(arguments)}: {problem}")
    assert len(problems) >= 70
    survived("bad inputs", problems)


def test_bad_inputs_of_the_report(tmp_path, survived):
    valid = {"experiment": "a", "task_names": ["x"], "runs": []}
    contents = {"cut.json": '{"experiment": ', "list.json": "[1]", "empty.json": ""}
    for name, text in {**contents, "no_runs.json": json.dumps(valid)}.items():
        (tmp_path / name).write_text(text)
    problems, table = [], [*contents, "no_runs.json", "absent.json"]
    for name in table:
        with pytest.raises(SystemExit) as error:
            reporting_main.main([str(tmp_path / name), str(tmp_path / "report")])
        said = str(error.value.code)
        is_right = len(said.splitlines()) == 1 and said.startswith("Error: ") and name in said
        is_right = is_right and not (tmp_path / "report").exists()
        problems.append(None if is_right else f"{name}: {said!r}")
    survived("bad inputs of the report", problems)
