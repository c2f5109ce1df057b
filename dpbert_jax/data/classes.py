"""Classes by name: the number of a label, and a task's classes in the order of a trained model."""

import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from reprlib import repr as shortened

import numpy as np

from dpbert_jax.data.tasks import TaskData, TaskSpec
from dpbert_jax.errors import UserError
from dpbert_jax.problem import MULTI_LABEL, REGRESSION, ProblemType

logger = logging.getLogger(__name__)

_INTEGER = re.compile(r"[+-]?[0-9]{1,39}")  # up to the largest float32
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class Classes:
    """What labels mean: a problem type, and the names of its classes in id order."""

    problem_type: ProblemType
    names: tuple[str, ...] = ()  # none for scores
    aliases: Mapping[str, int] = field(default_factory=dict)  # other names of classes
    of_model: bool = False  # fixed by a trained model, not by the data

    @property
    def named(self) -> bool:
        """Whether the names say anything; else they are the ids themselves."""
        return not _are_ids(self.names)

    def find(self, name: str) -> int | None:
        """The id of a class: by its name, in any case where that is one class, or as a number."""
        number = whole_number(name)
        for known, key in (
            (self._exact, name),
            (self._folded, name.casefold()),
            (self._exact, number),
        ):
            if key in known:
                return known[key]
        return None

    @cached_property
    def _exact(self) -> dict[str | None, int]:
        return {**{name: index for index, name in enumerate(self.names)}, **self.aliases}

    @cached_property
    def _folded(self) -> dict[str | None, int]:
        ids: dict[str, set[int]] = {}
        for name, index in self._exact.items():
            ids.setdefault(str(name).casefold(), set()).add(index)
        return {name: min(which) for name, which in ids.items() if len(which) == 1}


def whole_number(text: str) -> str | None:
    """The usual spelling of a whole number, "1" for "01" and "1.0"; None for anything else."""
    if _INTEGER.fullmatch(text):
        return str(int(text))
    if NUMBER.fullmatch(text) and float(text).is_integer():
        return str(int(float(text)))
    return None


def classes_of_model(
    problem_type: ProblemType,
    num_labels: int,
    names: Sequence[str] | None,
    label_mapping: Sequence[str] | None = None,
) -> Classes:
    """The classes of a trained model.

    Args:
        names: in id order; None where the model has none: then its ids are names.
        label_mapping: `NAME=CLASS`, a name in the data and the model's name or id of that class.

    Raises:
        UserError: the mapping is not one from names to the model's classes.
    """
    if problem_type == REGRESSION:
        if label_mapping:
            raise UserError("--label_mapping is of classes, but the model gives scores.")
        return Classes(problem_type, of_model=True)
    ids = tuple(str(index) for index in range(num_labels))
    has_names = names is not None and not _are_ids(names)
    own = tuple(names) if names is not None and has_names else ids
    by_number = {text: index for index, text in enumerate(ids)}
    by_number |= {f"LABEL_{index}": index for index in range(num_labels)}
    known = Classes(problem_type, own)
    mapped: dict[str, int] = {}
    for item in label_mapping or ():
        name, separator, target = item.rpartition("=")
        index = known.find(target)
        index = by_number.get(target) if index is None else index
        if not separator or index is None:
            raise UserError(
                f"--label_mapping {item}: expected NAME=CLASS with a class of the model, one of "
                f"{shortened(list(own))}."
            )
        if name in mapped or index in mapped.values():
            raise UserError(f"--label_mapping {item}: {name} or {target} is there twice.")
        mapped[name] = index
    if has_names:
        return Classes(problem_type, own, mapped, of_model=True)
    by_id = {index: name for name, index in mapped.items()}  # the data's names are better than none
    own = tuple(by_id.get(index, text) for index, text in enumerate(ids))
    return Classes(problem_type, own, {**by_number, **mapped}, of_model=True)


def aligned(task: TaskData, model: Classes) -> TaskData:
    """The task with its classes in the model's order, matched by name, and under its names.

    Where the model's classes have no names, the task's ids are taken to be the model's.

    Raises:
        UserError: they are not the same classes, or which is which cannot be told.
    """
    spec = task.spec
    num_labels = len(model.names) or 1
    if (spec.num_labels, spec.problem_type) != (num_labels, model.problem_type):
        raise UserError(
            f"The model was trained for {_described(model)}, which task '{spec.name}' is not."
        )
    if spec.labels is None:
        return task
    unknown = sorted(set(model.aliases) - set(spec.labels) - set(_spelled_ids(num_labels)))
    if unknown:
        raise UserError(
            f"--label_mapping: {unknown} are not classes of task '{spec.name}', which has "
            f"{list(spec.labels)}."
        )
    if not model.named:
        listed = ", ".join(f"{index}={name}" for index, name in enumerate(spec.labels))
        logger.info("The model's classes have no names; taken as the task's: %s.", listed)
        return task
    found = [model.find(name) for name in spec.labels]
    ids = [index for index in found if index is not None]
    if len(set(ids)) < len(spec.labels):
        raise UserError(f"Task '{spec.name}' {unmatched(spec.labels, model)}")
    if any(name != model.names[index] for name, index in zip(spec.labels, ids, strict=True)):
        listed = ", ".join(f"{n}={model.names[i]}" for n, i in zip(spec.labels, ids, strict=True))
        logger.info("Classes of the task and the model: %s.", listed)
    order = np.asarray(ids, np.int32)
    return dataclasses.replace(
        task,
        spec=dataclasses.replace(
            spec,
            labels=tuple(model.names[index] for index in range(num_labels)),
            positive=ids[spec.positive],
        ),
        splits={
            name: split
            if split.labels is None
            else dataclasses.replace(split, labels=order[split.labels])
            for name, split in task.splits.items()
        },
    )


def unmatched(names: Sequence[str], model: Classes) -> str:
    """The rest of a sentence on data whose class names are not the model's."""
    example = " ".join(f"{name}={own}" for name, own in zip(names, model.names, strict=False))
    return (
        f"has the classes {shortened(list(names))}, the model {shortened(list(model.names))}: say "
        f"which is which, as in --label_mapping {example} (or in another order)."
    )


def with_positive_class(spec: TaskSpec, name: str) -> TaskSpec:
    """The task with the class that F1 is of; own tasks of several classes then have it as a metric.

    Raises:
        UserError: the task has no such class, or no F1 of one class.
    """
    if spec.labels is None or spec.multi_label:
        kind = "gives scores" if spec.labels is None else "has any number of classes a row"
        raise UserError(f"--positive_class {name}: task '{spec.name}' {kind}; F1 is of no class.")
    index = Classes(spec.problem_type, spec.labels).find(name)
    if index is None:
        raise UserError(
            f"--positive_class {name} is not one of the classes {shortened(list(spec.labels))}."
        )
    metrics = spec.metrics
    if "f1" not in metrics:
        if spec.name != "custom":
            raise UserError(f"--positive_class {name}: task '{spec.name}' is not scored by F1.")
        metrics = (metrics[0], "f1", *metrics[1:])
    return dataclasses.replace(spec, metrics=metrics, positive=index)


def _are_ids(names: Sequence[str]) -> bool:
    return all(name in (str(i), f"LABEL_{i}") for i, name in enumerate(names))


def _spelled_ids(count: int) -> list[str]:
    return [text for index in range(count) for text in (str(index), f"LABEL_{index}")]


def _described(model: Classes) -> str:
    if model.problem_type == REGRESSION:
        return "a regression"
    several = " labels, any number a row" if model.problem_type == MULTI_LABEL else " classes"
    return f"{len(model.names)}{several}"
