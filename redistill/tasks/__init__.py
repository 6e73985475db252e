"""Tasks: where prompts come from and how answers are judged. `load_task` makes one from text."""

from redistill.tasks.loading import load_task, task_names, task_options

__all__ = ["load_task", "task_names", "task_options"]
