"""The training steps of a process that trains several runs: each graph is traced and compiled once.

Jobs that differ only in values, such as the learning rate, share a graph. A step that is used again
gets the state of a new one, so a run ends with the bytes of a run in a process of its own.
"""

import json
from collections import OrderedDict
from typing import Any

import keras
import tensorflow as tf

from harness.compute.execution_plan import ExecutionPlan
from harness.compute.train_step import TrainStep
from harness.job import FACTS, KEYS, Job
from harness.own_code import is_reference

MAX_STEPS = 8  # that are kept, those used last


class ReusedSteps:
    """The training steps of a process, by their graphs."""

    def __init__(self) -> None:
        self._steps: OrderedDict[str, TrainStep] = OrderedDict()

    def get(
        self, job: Job, strategy: tf.distribute.Strategy, plan: ExecutionPlan, **given: Any
    ) -> TrainStep:
        """A step as `TrainStep` with these arguments is in a new process.

        One that was returned before may not be used any more.
        """
        keras.utils.clear_session(free_memory=False)  # else names depend on the runs before
        new = TrainStep(job, strategy, plan, **given)
        if not is_reusable(job):
            return new
        key = graph_key(new, plan)
        step = self._steps.pop(key, new)
        if step is not new:
            step.become(new)
        self._steps[key] = step
        while len(self._steps) > MAX_STEPS:
            self._steps.popitem(last=False)
        return step


def is_reusable(job: Job) -> bool:
    """Whether a later job may take a job's step: if its graph depends on nothing but its settings.

    Also not where it might, as nobody has compared the bytes.
    """
    functions = (job.value(key) for key, facts in FACTS.items() if facts.is_function)
    if any(isinstance(each, list) or is_reference(each) for each in functions if each):
        return False  # what they depend on is not known
    own = (key for key, facts in FACTS.items() if facts.step == "own")
    return all(job.value(key) == KEYS[key].default for key in own)


def graph_key(step: TrainStep, plan: ExecutionPlan) -> str:
    """Equal for steps of equal graphs."""
    job, rates = step.job, step.dropout.rates.numpy().tolist()
    settings = {
        "job": {key: job.value(key) for key, facts in FACTS.items() if facts.step != "value"},
        "plan": [plan.way, plan.parts, plan.compiles_evaluation],
        # Layers may depend on any setting, so they are compared too.
        "layers": _with_hidden_rates(step.export_model.get_config()),
        # Constants in half precision: see `GlobalBatchDropout`.
        "rates": rates if "16" in job.train.precision else [],
    }
    return json.dumps(settings, sort_keys=True, default=repr)


def _with_hidden_rates(config: Any) -> Any:
    """A model's configuration, of the rates of dropout only whether they are 0."""
    if isinstance(config, list | tuple):
        return [_with_hidden_rates(each) for each in config]
    if not isinstance(config, dict):
        return config
    found = {name: _with_hidden_rates(each) for name, each in config.items()}
    if config.get("class_name") in ("Dropout", "SpatialDropout1D"):
        found["config"]["rate"] = bool(config["config"]["rate"])
    return found
