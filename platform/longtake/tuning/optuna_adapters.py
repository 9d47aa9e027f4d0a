"""Spaces, samplers and pruners of ours in Optuna's terms."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from longtake.errors import UserError
from longtake.tuning.search_config import Pruning, Sampling
from longtake.tuning.space import Axis, Label, Space, active, points, size

Labels = dict[str, Label]
CANDIDATES = 24
"""Of which TPE takes the most promising; of fewer each time that it proposed what had been tried."""
PROPOSALS = 1000
REDRAWS = 24
"""How often a search may propose what has been tried before chance is asked instead."""


def draw(study: optuna.Study, trial: FrozenTrial, sampling: Sampling, number: int, again: int, space: Space) -> Labels:
    """What a sampler proposes for trial `number` when it is asked for the `again`-th time; nothing is kept."""
    chosen = sampler(sampling if again < REDRAWS else Sampling(method="random", seed=sampling.seed), number, again)
    related = chosen.sample_relative(study, trial, chosen.infer_relative_search_space(study, trial))
    labels: Labels = {}
    for field, axis in space.items():
        if not active(space, field, labels):
            continue
        if field in related:
            labels[field] = related[field]
        elif axis.count == 1:
            (labels[field],) = axis.values
        else:
            labels[field] = chosen.sample_independent(study, trial, field, distribution(axis))
    return labels


def untried(
    study: optuna.Study, trial: FrozenTrial, sampling: Sampling, number: int, space: Space, tried: Sequence[Labels]
) -> Labels | None:
    """The first that a sampler proposes for trial `number` and that is not in `tried`.

    After PROPOSALS in vain the first such point in order; None if there is none, or the space is continuous.
    """
    keys, every = {_key(labels) for labels in tried}, size(space)
    # The random state depends on the number only, and on how often it was in vain, not on who asked before.
    for again in range(PROPOSALS if every is None or len(keys) < every else 0):
        labels = draw(study, trial, sampling, number, again, space)
        if _key(labels) not in keys:
            return labels
    return None if every is None else next((point for point in points(space) if _key(point) not in keys), None)


def _key(labels: Labels) -> str:
    """A point as text."""
    return json.dumps(labels, sort_keys=True)


def distribution(axis: Axis) -> BaseDistribution:
    """An axis in Optuna's terms."""
    if axis.choice is not None:
        return CategoricalDistribution(list(axis.options))
    low, high = axis.bounds
    if axis.integer is not None:
        return IntDistribution(int(low), int(high))
    return FloatDistribution(low, high, log=axis.loguniform is not None)


def label_of(axis: Axis, value: Any) -> tuple[Label] | None:
    """What a table's value stands for on an axis; None if it lies outside. Tables make 3.0 of 3 where some lack it."""
    if axis.choice is not None:
        matches = [label for label in axis.options if label == value or (label is None and value != value)]
        return (matches[0],) if matches else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    low, high = axis.bounds
    if not low <= value <= high or (axis.integer and value != int(value)):
        return None
    return (int(value),) if axis.integer else (float(value),)


def database(url: str) -> BaseStorage:
    """The storage behind an Optuna URL. Raises UserError if it cannot be opened."""
    import sqlalchemy

    try:
        return optuna.storages.RDBStorage(url)
    except (ImportError, sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise UserError(
            f"database: {url} cannot be opened: {str(error).splitlines()[0]}; such as sqlite:////home/me/sweeps.db"
        ) from error


def sampler(sampling: Sampling, number: int, again: int = 0) -> optuna.samplers.BaseSampler:
    """What chooses the labels of trial `number`: a function of the seed and of the trials so far."""
    import numpy as np

    seed = int(np.random.SeedSequence([sampling.seed, number, again]).generate_state(1)[0])
    if sampling.method == "nsga2":
        return optuna.samplers.NSGAIISampler(population_size=sampling.population, seed=seed)
    if sampling.method != "tpe":
        return optuna.samplers.RandomSampler(seed)
    with warnings.catch_warnings():
        # Several of these are marked experimental, as they have been for years.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed,
            multivariate=True,
            group=True,
            constant_liar=True,
            n_startup_trials=sampling.startup,
            n_ei_candidates=max(1, CANDIDATES // (again + 1)),
        )


def pruner(pruning: Pruning, steps: int) -> optuna.pruners.BasePruner:
    """What stops a trial of `steps` early."""
    if pruning.method == "none":
        return optuna.pruners.NopPruner()
    if pruning.method == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=pruning.begin(steps) - 1)
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=pruning.begin(steps), reduction_factor=pruning.factor, bootstrap_count=0
    )
