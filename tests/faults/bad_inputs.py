"""Bad inputs of the command line, and the line that each gives.

A case is one binding or several, a line each and without its ``--gin.``, and an indented line, what
the error says, where … stands for anything.
"""

DIGITS = """
# Methods.
ldro/Method.weighting='ldro'
    ldro/Method.weighting must be a Weighting, a function that makes one, or one … 'ldro'.
ldro/Method.weighting=3
    ldro/Method.weighting must be a Weighting, a function … but it is 3.
ldro/Method.name=''
    ldro/Method.name must be a text in quotes, but it is ''.
ldro/Method.interaction='fast'
    ldro/Method.interaction must be an Interaction or one
ldro/Method.interaction_interval=0
    ldro/Method.interaction_interval must be a positive
ldro/Method.interaction_interval=2.0
    ldro/Method.interaction_interval must be … 2.0
ldro/Method.lagged='yes'
    ldro/Method.lagged must be True or False, but it is 'yes'
ldro/Method.lagged=True
    ldro/Method.lagged needs interaction_interval=1, … is 100
ldro/Method.floor=1.5
    ldro/Method.floor must be a number in [0, 1], but it is 1.5
ldro/Method.signal_power=-1.0
    ldro/Method.signal_power must be a number in [0, inf), but it is -1.0
ldro/Method.sampling='some'
    ldro/Method.sampling must be one of 'uniform', 'weights'
ldro/Method.hyperparameters=[1, 2]
    ldro/Method.hyperparameters must be a dictionary
ldro/Method.hyperparameters={'lookahead_lr': '0.1', 'weight_lr': 1}
    ldro/Method.hyperparameters: lookahead_lr must be a number in [0, inf), but it is '0.1'.
ldro/Method.hyperparameters={'lookahead_lr': [1, 2], 'weight_lr': 1}
    ldro/Method.hyperparameters: lookahead_lr must be a number in [0, inf), but it is [1, 2].
ldro/Method.hyperparameters={'lookahead_lr': None, 'weight_lr': 1}
    ldro/Method.hyperparameters: lookahead_lr must be a number … but it is None.
ldro/Method.hyperparameters={'lookahead_lr': -1.0, 'weight_lr': 1}
    ldro/Method.hyperparameters: lookahead_lr must be a number … but it is -1.0.
ldro/Method.hyperparameters={'lookahead_lr': 1e999, 'weight_lr': 1}
    ldro/Method.hyperparameters: lookahead_lr must be a number … but it is inf.
ldro/Method.hyperparameters={'lr': 1}
    ldro/Method.hyperparameters: The method 'lookahead_online' takes the hyperparameters (lookahead_
ldro/Method.hyperparameters={'lookahead_lr': 1}
    compare.methods: 'L-DRO' lacks weight_lr in its hyperparameters, {
ldro/Method.hyperparameters={'lookahead_lr': 1, 'weight_lr': 1, 'normalize_interaction': 'no'}
    ldro/Method.hyperparameters: normalize_interaction must be True or False, but it is 'no'.
smooth_ldro/Method.hyperparameters={'lookahead_lr': 1.0, 'temperature': 0}
    smooth_ldro/Method.hyperparameters: temperature must be a number in (0, inf), … 0.
group_dro/Method.hyperparameters={'weight_lr': 1, 'group_sizes': (1, 2)}
    methods: 'Group DRO' can't be trained. group_sizes must hold one … the 10 tasks
group_dro/Method.hyperparameters={'weight_lr': 1, 'group_sizes': 'many'}
    group_dro/Method.hyperparameters: group_sizes must be one finite positive number for
average/Method.weighting='baselined_dro'
average/Method.hyperparameters={'weight_lr': 1}
    Report.references must be a references.json, or @monolingual which makes one, … None.
ldro/Method.weighting='pcgrad'
ldro/Method.hyperparameters={'seed': 0.5}
    ldro/Method.hyperparameters: seed must be an integer from 0 to 4294967295, but it is 0.5.
compare.methods='average'
    compare.methods must be a
compare.methods=['average']
    methods must be a list of methods and grids
compare.methods=[]
    compare.methods must be a list of
compare.methods=@ldro/Method()
    methods must be a list of methods … Method
compare.methods=[@ldro/Method]
    methods must … but it is the class Method
compare.methods=[@ldro/Method(), @ldro/Method()]
    compare.methods must each have their own name or setting
# Grids.
compare.methods=[@ldro/grid()]
    ldro/grid needs 'method' and 'values', which nothing binds.
compare.methods=[@ldro/grid()]
ldro/grid.method=@ldro/Method()
ldro/grid.values={'weight_lr': 0.1}
    ldro/grid.values['weight_lr'] must be a list of values, such as … but it is 0.1.
compare.methods=[@ldro/grid()]
ldro/grid.method=@ldro/Method()
ldro/grid.values={'weight_lr': (0.1, -1)}
    ldro/grid.values: hyperparameters: weight_lr must be a number in [0, inf), … -1.
compare.methods=[@ldro/grid()]
ldro/grid.method=@ldro/Method()
ldro/grid.values={'interaction_interval': (1, 0)}
    ldro/grid.values: interaction_interval must be a positive integer, but it is 0.
compare.methods=[@ldro/grid()]
ldro/grid.method=@ldro/Method()
ldro/grid.values=[0.1]
    ldro/grid.values must be a dictionary, but it is [0.1].
compare.methods=[@ldro/grid()]
ldro/grid.method='L-DRO'
ldro/grid.values={'weight_lr': (0.1,)}
    ldro/grid.method must be a Method, such as @ldro/Method(), but it is 'L-DRO'.
# Seeds.
SEEDS=3
    compare.seeds must be a list of seeds, such as (0, 1, 2),
SEEDS=()
    compare.seeds must be a list of seeds
SEEDS=(-1,)
    compare.seeds must be an integer from 0 to 4294967295, but
SEEDS=(0.5,)
    compare.seeds must be an integer from 0 … is 0.5.
SEEDS=(True,)
    compare.seeds must be an integer from 0 … is True.
SEEDS=('0',)
    compare.seeds must be an integer from 0 … is '0'.
SEEDS=(4294967296,)
    compare.seeds must be … but it is 4294967296.
SEEDS=(1, 1)
    compare.seeds must be seeds that are all different,
digits.load.seed=-1
    digits.load.seed must be an integer from 0 to 4294967295, … -1.
# What is trained, and how long.
classification.model='MLP'
    model must be a function of num_classes, … 'MLP'
classification.model=@Decoder
    model must be a function of num_classes, such as
classification.model=@CNN
    model must take inputs of the shape (8, 8), but it
MLP.features=16
    MLP.features must be a list of positive integers, … but it is 16.
MLP.features=(0,)
    MLP.features must be a positive integer, but it is 0.
MLP.features=(16.0,)
    MLP.features must be a positive integer, but it is 16.0.
Batches.size=160.0
    Batches.size must be a positive integer, … 160.0
Batches.size=5
    Batches.size must be at least 10, a row of each
Batches.sampler='even'
    Batches.sampler must be one of 'balanced', 'uniform',
Batches.runs_together=0
    Batches.runs_together must be a positive integer, but
classification.load_data=@digits.load()
    load_data must be a function of data_dir
classification.load_data='digits'
    load_data must be a function of data_dir, such
compare.problem='digits'
    compare.problem must be a Problem or a function of data_dir
compare.callback=3
    compare.callback must be a function of method, seed, step, numbers, such as … but it is 3
compare.callback=@digits.load
    compare.callback must be a function of method, seed, step, numbers
Report.select_by='mean'
    Report.select_by must be one of 'average', 'worst', but it
Batches.microbatches=3
    Batches.size must be a multiple of microbatches
Batches.microbatches=0
    Batches.microbatches must be a positive integer, but it is 0
Batches.interaction_rows=1.5
    Batches.interaction_rows must be a positive integer
Batches.layout='data'
    Batches.layout must be a Layout, such as @Layout
Report.references='a.json'
    Report.references must be None for a problem that isn't
Report.description=3
    Report.description must be a text, but it is 3
Schedule.test='never'
    Schedule.test must be one of 'always', 'best', 'last', but it
Batches.runs_together=2
Schedule.test='best'
    Batches.runs_together must be 1 for runs on a mesh or with test='best', but it is 2
average/Method.sampling='weights'
    compare.methods: 'Average' can't be trained. sampling must be 'uniform' for data on
Report.name=None
    Report.name must be a text in quotes
compare.schedule=@Schedule
    schedule must be a Schedule, such as @Schedule
TRAIN_STEPS=0
    Schedule.train_steps must be a positive integer, but it is 0.
TRAIN_STEPS='many'
    Schedule.train_steps must be a positive integer, but it is 'many'.
Schedule.eval_interval=-5
    Schedule.eval_interval must be a positive integer, … -5.
Schedule.max_nonfinite_steps=None
    Schedule.max_nonfinite_steps must be a positive integer
compare.schedule=@epochs()
    epochs needs 'num_epochs' and 'steps_per_epoch
# Optimizers.
optax.sgd.momentum=1.5
    optax.sgd.momentum must be a number in [0, 1), but it is 1.5.
optax.sgd.learning_rate=-0.1
    optax.sgd.learning_rate must be a number in [0, inf),
optax.sgd.learning_rate=None
    optax.sgd.learning_rate must be a number … is None.
optax.sgd.nesterov=1
    optax.sgd.nesterov must be True or False, but it is 1.
compare.optimizer=@optax.adam()
optax.adam.learning_rate=0.1
optax.adam.b1=1.0
    optax.adam.b1 must be a number in [0, 1), but it is 1.0.
compare.optimizer=@optax.adam()
    optax.adam needs 'learning_rate', which nothing binds.
optax.sgd.learning_rate=@optax.cosine_decay_schedule()
optax.cosine_decay_schedule.init_value=0.1
optax.cosine_decay_schedule.decay_steps=0
    optax.cosine_decay_schedule.decay_steps must be a positive integer, but it is 0.
compare.optimizer=@optax.sgd
    optimizer must be a GradientTransformation
# gin.
Schedul.train_steps=1
    No configurable matching 'Schedul'… Known names: cifar100.load
Schedule.steps=1
    doesn't have a parameter named 'steps'… Known parameters: train_steps,
TRAIN_STEP=1
    The binding TRAIN_STEP=1 has no effect, because nothing uses the macro
dro/Method.floor=0
    The binding … has no effect, because nothing uses the scope 'dro'.
TRAIN_STEPS=(
    The gin configuration can't be used.
TRAIN_STEPS=%NOPE
    The gin configuration can't be used. Nothing binds the macro NOPE.
classification.model=@MLQ
    No configurable matching reference '@MLQ'.
run.experiment='digits'
    run.experiment must be a function, such as @compare
"""

CIFAR100 = """
CNN.filters=(32, -1)
    CNN.filters must be a positive integer, but it is -1.
CNN.features='128'
    CNN.features must be a list of positive integers
cifar100.load.validation_per_class=0
    cifar100.load.validation_per_class must be a positive
cifar100.load.validation_per_class=50
    cifar100.load.validation_per_class must be from 1
cifar100.load.max_train_per_class=1.5
    cifar100.load.max_train_per_class must be a positive
cifar100.load.max_test_per_class=0
    cifar100.load.max_test_per_class must be a positive
cifar100.load.dataset=100
    cifar100.load.dataset must be a text in quotes, … 100.
cifar100.load.seed='a'
    cifar100.load.seed must be an integer from 0 to 4294967295
TRAIN_EPOCHS=0
    epochs.num_epochs must be a positive integer, but it is 0.
STEPS_PER_EPOCH=351.5
    epochs.steps_per_epoch must be a positive integer, … 351.5.
"""

SYNTHETIC = """
trajectories.points=[[0, 1, 2]]
    trajectories.points must be finite numbers of the shape
synthetic.points.num_similar=0
    points.num_similar must be a positive integer, but it is 0.
synthetic.points.spread=-1
    points.spread must be a number in [0, inf), but it is -1.
trajectories.start=(1.0,)
    trajectories.start must be finite numbers of the shape [2]
trajectories.start='(1, 2)'
    trajectories.start must be finite numbers of the shape [2]
optax.sgd.learning_rate=-1
    optax.sgd.learning_rate must be a number in [0, inf)
trajectories.optimizer=@optax.sgd
    trajectories.optimizer must be a GradientTransforma
Schedule.train_steps=1e3
    Schedule.train_steps must be a positive integer
Schedule.test='best'
    test must be 'always' for a problem without the split 'validation'
trajectories.schedule=@Schedule
    trajectories.schedule must be a Schedule, such as @Sc
trajectories.panels=@a/Panel()
    trajectories.panels must be a list of panels
trajectories.panels=[@average/Method()]
    trajectories.panels must be a Panel, such as
trajectories.panels=[@a/Panel(), @a/Panel()]
    trajectories.panels must have methods that
c/Panel.noise=-0.1
    c/Panel.noise must be a number in [0, inf), but it is -0.1.
c/Panel.seeds=(0, 0)
    c/Panel.seeds must be seeds that are all different
b/Panel.title=2
    b/Panel.title must be a text in quotes, but it is 2.
ldro/Method.interaction_interval=None
ldro/Method.floor=-1
    ldro/Method.floor must be a
"""

LANGUAGES = """
text.load.languages='aa'
    text.load.languages must be a list of names
text.load.languages=('aa', 'aa')
    text.load.languages must be a list of names that all differ
text.load.languages=('aa', 'xx')
    There is no language 'xx' in … Found: aa, bb.
text.load.vocabulary_size=100
    text.load.vocabulary_size must be an integer of at least
text.load.vocabulary_path=5
    text.load.vocabulary_path must be a path in quotes, or None
text.load.vocabulary_path='/nope.model'
    There is no SentencePiece model /nope.model.
text.load.cache_dir=7
    text.load.cache_dir must be a path in quotes, or None
language_model.max_validation_tokens=0
    language_model.max_validation_tokens must be a positive
language_model.max_test_tokens=-1
    language_model.max_test_tokens must be a positive integer
language_model.load_data=@digits.load
    language_model.load_data must be a function that gives
language_model.model='Decoder'
    language_model.model must be a function of vocab_size
compare.problem=@digits.load
    compare.problem must be a Problem or a function of data_
compare.problem='text'
    compare.problem must be a Problem or a function … is 'text'.
Report.select_by='best'
    Report.select_by must be one of 'average', 'worst', but it
Batches.sampler='uniform'
    sampler must be 'balanced' for tasks without a num
Batches.runs_together=2
    Batches.runs_together must be 1 for runs on a mesh or with te
Report.references=5
    Report.references must be a text in quotes, but it is 5
Report.references=None
    Report.references must be a references.json, or @monolingual
Report.references='/nope.json'
    There is no file /nope.json. Expected the references
Report.references=@digits.load
    Report.references must be a function of output_dir
alone/monolingual.seed=-1
    alone/monolingual.seed must be an integer from 0
alone/language_model.max_test_tokens=0
    alone/language_model.max_test_tokens must be a positive
alone/Batches.size=0
    alone/Batches.size must be a
BATCH_SIZE=1
    Batches.size must be at least 2, a row of each task
LENGTH=0
    language_model.length must be a positive integer, but it is 0.
Batches.microbatches=3
    Batches.size must be a multiple
Batches.microbatches=0
    Batches.microbatches must be a positive
language_model.eval_length=-8
    language_model.eval_length must be a positive
Batches.interaction_rows=0
    Batches.interaction_rows must be a
Batches.layout='data'
    Batches.layout must be a Layout, such as
language_model.model=@MLP
    language_model.model must be a function
compare.optimizer=0.1
    compare.optimizer must be a GradientTransformation
Layout.data=0
    Layout.data must be a positive integer, but it is 0.
Layout.model=1.0
    Layout.model must be a positive integer, but it is 1.0.
Layout.data=64
    layout asks for a mesh of 64 × 1 devices
Decoder.num_heads=3
    Decoder.embed_dim must be a multiple of twice num_heads, … 16 and 3
Decoder.num_layers=0
    Decoder.num_layers must be a positive integer, but it is 0.
Decoder.dtype='int8'
    Decoder.dtype must be one of 'float32', … but it is 'int8'.
Decoder.positions='none'
    Decoder.positions must be one of 'rotary', 'learned', but it is
Decoder.remat='no'
    Decoder.remat must be True or False, but it is 'no'.
LEARNING_RATE=-1
    lm.adam.learning_rate must be a number in [0, inf), but it is -1.
WARMUP_STEPS=100
    lm.adam.warmup_steps must be less than train_steps, … 100 and 4.
WARMUP_STEPS=0.5
    lm.adam.warmup_steps must be an integer of at least 0, … 0.5.
lm.adam.clip_norm=0
    lm.adam.clip_norm must be a number in (0, inf), but it is 0.
lm.adam.b2=1
    lm.adam.b2 must be a number in [0, 1), but it is 1.
static_mixing/Method.hyperparameters={'exponent': -1}
    static_mixing/Method.hyperparameters: exponent must be a number in [0, inf), … -1.
static_mixing/Method.hyperparameters={'sizes': (1, 2, 3)}
    compare.methods: 'Static mixing, α = 0.3' can't be trained. sizes must hold one
ldro/grid.values={'weight_lr': ('0.1',)}
    ldro/grid.values: hyperparameters: weight_lr must
EVAL_INTERVAL=0
    Schedule.eval_interval must be a positive integer, but it is 0.
"""

MC4 = """
mc4.load.languages=()
    mc4.load.languages must be a list of names
mc4.load.languages=('en', 'xx')
    mc4.load.languages must be of XTREME, but 'xx' is not
mc4.load.languages=('tl',)
    mc4.load.languages can't have Tagalog (tl)
mc4.load.max_heldout_tokens=0
    mc4.load.max_heldout_tokens must be a positive integer
mc4.load.version=3.1
    mc4.load.version must be a text in quotes, but it is 3.1.
mc4.load.vocabulary_path=1
    mc4.load.vocabulary_path must be a path in quotes, or None
SEEDS=(0, -1)
    compare.seeds must be an integer from 0 to 4294967295, … -1.
mc4.load.cache_dir=None
    There is no mC4 in …c4/multilingual/3.1.0: expected dataset_info
"""

EXPERIMENTS = {
    "digits.gin": DIGITS,
    "cifar100_cpu.gin": CIFAR100,
    "synthetic.gin": SYNTHETIC,
    "multilingual_lm_small.gin": LANGUAGES,
    "multilingual_lm_mc4.gin": MC4,
}
SMALL = {
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
    ("--gin_file=nope.gin", "There is no gin file nope.gin. Known experiments: gin_configs/"),
    (f"--gin_file={__file__}", "The gin configuration can't be used."),
    ("--gin_bindings=TRAIN_STEPS", "The gin configuration can't be used."),
]
