"""The tasks: data sets -> examples -> prompts -> token ids -> scores.

`get_task(name)` gives a `Task`; `sources.open_source` loads its examples, `data.select` takes a
subset, `prompts.render` words them, `encoding` turns them into token ids and `scoring.score` has a
model answer them. Only `scoring` imports torch.
"""

from tasks.base import Example, Task
from tasks.registry import TASK_NAMES, get_task

__all__ = ["TASK_NAMES", "Example", "Task", "get_task"]
