"""L-DRO in unmodified T5X: a model, a trainer, an optimizer and data to choose in a gin file.

See ``docs/t5x.md``. T5X is not on the package index: ``scripts/install_t5x.sh`` installs it. Only
:mod:`ldro_jax.t5x.report`, which reads what T5X's runs have written, works without it.
"""
