"""Classification data whose examples belong to groups, a class seen with an attribute."""

from ldro_jax.tasks.grouped.base import (
    EvaluationGroups,
    GroupedData,
    GroupedSplit,
)
from ldro_jax.tasks.grouped.blobs import toy
from ldro_jax.tasks.grouped.census import adult
from ldro_jax.tasks.grouped.spurious import spurious_cifar100, spurious_digits
from ldro_jax.tasks.grouped.variants import hide, subsample, unlabelled, upsample
from ldro_jax.tasks.grouped.wilds import celeba, civilcomments, waterbirds

__all__ = [
    "EvaluationGroups",
    "GroupedData",
    "GroupedSplit",
    "adult",
    "celeba",
    "civilcomments",
    "hide",
    "spurious_cifar100",
    "spurious_digits",
    "subsample",
    "toy",
    "unlabelled",
    "upsample",
    "waterbirds",
]
