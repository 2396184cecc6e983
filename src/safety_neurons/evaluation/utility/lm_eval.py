"""Capabilities: any task of the LM Evaluation Harness (Gao et al. 2024, doi:10.5281/zenodo.12608602), by name."""

import contextlib
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch

from safety_neurons.core.errors import CannotRunError, SafetyNeuronsError
from safety_neurons.core.plugins import did_you_mean
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import BATCH_SIZE

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


# Bootstrap samples for the standard errors of metrics that are not means; the harness uses at most 100 for BLEU.
RESAMPLES = 1000


@dataclass(frozen=True)
class Metric:
    """A number and its standard error, if the harness reports one."""

    value: float
    stderr: float | None


@dataclass(frozen=True)
class TaskResult:
    """One task or group. `metrics` are named as in the harness: "acc", or "exact_match,flexible-extract"."""

    metrics: dict[str, Metric]
    samples: int
    version: str


def lm_eval(
    model: ChatModel,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    include_path: Path | None = None,
    seed: int = 0,
    chat_template: bool = False,
    few_shot: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> dict[str, TaskResult]:
    """Run tasks, or groups of tasks, on the model in its current state (tuned, guarded, or neither).

    Args:
        limit: number of documents of each task to read, from the first.
        include_path: a folder with your own tasks in YAML; they need no network.
        chat_template: ask in the model's chat template, after its system prompt.
        few_shot: number of examples before a question. Default: the task's.

    Raises:
        CannotRunError: the extra `lm-eval` is not installed, or a task's data are unavailable.
        SafetyNeuronsError: a task is unknown, or the harness cannot run it.
    """
    try:
        from lm_eval.evaluator import simple_evaluate

        from safety_neurons.evaluation.utility.lm_eval_model import InMemory
    except ImportError as error:
        raise CannotRunError(
            f"The LM Evaluation Harness is not installed ({error}): pip install 'safety-neurons[lm-eval]'."
        ) from error
    if chat_template and not model.tokenizer.chat_template:
        raise SafetyNeuronsError(f"{model.name} has no chat template. Run the tasks with chat_template=False.")
    with _isolated():
        manager = _manager(tasks, include_path)
        try:
            results = simple_evaluate(
                InMemory(model, batch_size),
                tasks=_loaded(manager, tasks),
                task_manager=manager,
                limit=limit,
                num_fewshot=few_shot,
                apply_chat_template=chat_template,
                system_instruction=model.system if chat_template else None,
                log_samples=False,
                bootstrap_iters=RESAMPLES,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        except ValueError as error:
            raise SafetyNeuronsError(f"The LM Evaluation Harness cannot run {', '.join(tasks)}: {error}") from error
    versions = results.get("versions", {})
    return {name: _result(values, versions.get(name)) for name, values in results["results"].items()}


def _manager(tasks: Sequence[str], include_path: Path | None) -> "TaskManager":
    """A task manager that knows all the tasks; the harness's own are indexed only if they are needed."""
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        if not include_path.is_dir():
            raise SafetyNeuronsError(
                f"There is no folder {include_path}. Correct include_path (a run has it from evaluate.task_folder)."
            )
        own = TaskManager(include_path=str(include_path), include_defaults=False)
        if all(name in own.all_tasks for name in tasks):
            return own
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    for name in tasks:
        if name not in manager.all_tasks:
            raise SafetyNeuronsError(
                f"There is no task {name!r} in the LM Evaluation Harness. {did_you_mean(name, manager.all_tasks)}"
                "`lm-eval ls tasks` lists all tasks; include_path (evaluate.task_folder) adds your own."
            )
    return manager


def _loaded(manager: "TaskManager", tasks: Sequence[str]) -> list[Any]:
    """The tasks and groups with their data."""
    loaded: list[Any] = []
    for name in tasks:
        try:
            content = manager.load([name])
        # The errors of the hub and of the data library are OSErrors: no network, no such set, no permission.
        except OSError as error:
            raise CannotRunError(
                f"The data of the task {name} are unavailable ({error}). Run it once with a network to cache them, or "
                "use a task whose data are in a file, with include_path (evaluate.task_folder)."
            ) from error
        groups = content.get("groups", {})
        loaded += [groups[name]] if name in groups else list(content["tasks"].values())
    return loaded


def _result(values: Mapping[str, Any], version: Any) -> TaskResult:
    metrics = {}
    for key, value in values.items():
        name, comma, rule = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = values.get(f"{name}_stderr,{rule}")
        metrics[name if rule == "none" else key] = Metric(
            float(value), float(stderr) if isinstance(stderr, int | float) else None
        )
    return TaskResult(metrics, int(values["sample_len"]), "" if version is None else str(version))


@contextlib.contextmanager
def _isolated() -> Iterator[None]:
    """The harness logs much and seeds the whole process; nothing after it may depend on that."""
    logger = logging.getLogger("lm_eval")
    level, python, arrays = logger.level, random.getstate(), numpy.random.get_state()
    logger.setLevel(logging.ERROR)
    with torch.random.fork_rng():
        try:
            yield
        finally:
            logger.setLevel(level)
            random.setstate(python)
            numpy.random.set_state(arrays)
