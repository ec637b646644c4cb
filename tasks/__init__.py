"""The tasks: data sets become examples, then prompts, then token ids, then scores.

`get_task(name)` gives a `Task`. `sources.open_source` loads its examples, `data.select` takes a
subset of them, `prompts.render` words them, `encoding` turns the words into token ids, and
`scoring.score` has a model answer them. Of these modules only `scoring` imports torch.

A new task is a new file in `definitions/`. `python -m tasks.lm_eval_configs` then writes its task
configs for lm-evaluation-harness.
"""

from tasks.base import Example, Task
from tasks.registry import TASK_NAMES, get_task

__all__ = ["TASK_NAMES", "Example", "Task", "get_task"]
