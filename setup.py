"""Installs ldro-jax; the tools' settings are in pyproject.toml."""

import pathlib
import re

import setuptools

_ROOT = pathlib.Path(__file__).parent
_HOME = "https://github.com/ldro-jax/ldro_jax"


def _version() -> str:
    text = (_ROOT / "ldro_jax" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE).group(1)


def _readme() -> str:
    """Its links and pictures lead to files of the repository, which a package index hasn't."""
    text = (_ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"(!\[[^]]*\]\()(?!https?:)", rf"\1{_HOME}/raw/main/", text)
    return re.sub(r"(?<!!)(\[[^]]*\]\()(?!https?:|#)", rf"\1{_HOME}/blob/main/", text)


_PLOTS = ["jinja2>=3.1", "matplotlib>=3.9", "pandas>=2.2.2"]
_TRAINER = [
    # Without it tensorboardX computes its checksums in Python, which takes longer than the rest.
    "crc32c>=2.4",
    "etils[epath]>=1.9.1",
    "flax>=0.10.6",
    "gin-config>=0.5",
    "orbax-checkpoint>=0.11.13",
    "pandas>=2.2.2",
    "tensorboardX>=2.6.2.2",
    "tqdm>=4.66",
    "typing-extensions>=4.4",
]
_TFDS = [
    # 2.19 needs protobuf 5, under which today's tensorflow-metadata isn't imported.
    "tensorflow>=2.20",
    # TFDS 4.9.9 can't read a data set under protobuf 7.
    "tensorflow-datasets>=4.9.10",
    # TFDS imports it to build a data set, but doesn't name it.
    "importlib-resources>=6",
]
_VISION = [*_TRAINER, *_TFDS, "scikit-learn>=1.5"]
_LM = [*_TRAINER, *_TFDS, "sentencepiece>=0.2", "seqio>=0.0.20"]
# For an output directory in a bucket. Orbax imports google-cloud-storage, but doesn't name it.
_GCS = ["gcsfs>=2025.2", "google-cloud-storage>=2.19"]
# What T5X imports. It is not on the package index itself: scripts/install_t5x.sh installs it.
_T5X = [
    *_LM,
    *_PLOTS,
    "cached_property>=2",
    "clu>=0.0.12",
    "fiddle>=0.3",
    "grain>=0.2.12",
    "jaxtyping>=0.3",
    # clu imports it, but names only TensorFlow, which no longer brings it.
    "tensorboard>=2.20",
]
_DOCS = [
    # Formulas are made MathML by it.
    "docutils>=0.22",
    "furo>=2025.12",
    "jupytext>=1.16",
    "myst-nb>=1.4",
    "myst-parser>=5",
    "sphinx>=9",
    "sphinx-copybutton>=0.5.2",
]
# Checkers are pinned: a new release of one finds new things.
_TEST = [
    "grain>=0.2.12",
    "pyright[nodejs]==1.1.414",
    "pytest>=8.2",
    "pytest-xdist>=3.6.1",
    "ruff>=0.17,<0.18",
    "scipy>=1.14",
    # Builds the wheel that tests/test_package.py looks into; Python 3.12 and newer come without.
    "setuptools>=77.0.3",
]

setuptools.setup(
    name="ldro-jax",
    version=_version(),
    description="Multitask learning in JAX that balances average and worst-task accuracy",
    long_description=_readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    url=_HOME,
    project_urls={
        "Documentation": f"{_HOME}/tree/main/docs",
        "Changelog": f"{_HOME}/blob/main/CHANGELOG.md",
        "Issues": f"{_HOME}/issues",
    },
    keywords=[
        "JAX",
        "Optax",
        "multitask learning",
        "distributionally robust optimization",
        "group DRO",
        "gradient surgery",
        "worst-group accuracy",
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=[
        *setuptools.find_packages(include=["ldro_jax", "ldro_jax.*"]),
        "ldro_jax.gin_configs",
    ],
    # The configurations lie at the top level, and are installed beside the code that reads them.
    package_dir={"ldro_jax.gin_configs": "gin_configs"},
    package_data={
        "ldro_jax": ["py.typed"],
        "ldro_jax.gin_configs": ["**/*.gin"],
        "ldro_jax.reporting": ["templates/*"],
        "ldro_jax.t5x": ["*.gin"],
    },
    install_requires=[
        "absl-py>=2.1",
        # With 0.6.0 programs from the persistent compilation cache compute wrong numbers on CPU.
        "jax>=0.6.1",
        "numpy>=2.0",
        "optax>=0.2.6",
    ],
    extras_require={
        "trainer": [*_TRAINER, *_PLOTS, "scikit-learn>=1.5"],
        "vision": _VISION,
        "lm": _LM,
        "plots": _PLOTS,
        "gcs": _GCS,
        "t5x": _T5X,
        "docs": _DOCS,
        "test": _TEST,
        "all": sorted({*_VISION, *_LM, *_PLOTS, *_GCS, *_DOCS, *_TEST}),
    },
    entry_points={"console_scripts": ["ldro-jax = ldro_jax.main:run"]},
)
