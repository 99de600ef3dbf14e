"""Ready-made tasks: the files in `task_templates/`, one each, named by its id."""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources

from agentrpc.v1 import common_pb2, session_pb2, task_pb2

__all__ = ["task_templates"]


@cache
def task_templates() -> Mapping[str, task_pb2.TaskTemplate]:
    """All, by id, in the order of their ids."""
    folder = resources.files("agentrpc.services") / "task_templates"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
    return {file.name.removesuffix(".toml"): _read(file.name, file.read_text("utf-8")) for file in files}


def _read(file_name: str, text: str) -> task_pb2.TaskTemplate:
    found = tomllib.loads(text)
    template_id = file_name.removesuffix(".toml")
    task = task_pb2.Task(
        display_name=found["display_name"],
        description=found["description"],
        labels={"template": template_id},
        prompt_template=found["prompt_template"],
        variables_schema_json=found["variables_schema_json"].strip(),
        default_variables_json=found["default_variables_json"].strip(),
        # Nobody is there to be asked: what no rule allows is denied.
        options=session_pb2.SessionOptions(
            allowed_tools=found["allowed_tools"],
            disallowed_tools=found.get("disallowed_tools", ()),
            permission_mode=common_pb2.PERMISSION_MODE_DONT_ASK,
        ),
    )
    task.timeout.FromSeconds(found["timeout_seconds"])
    return task_pb2.TaskTemplate(
        id=template_id,
        display_name=found["display_name"],
        description=found["description"],
        category=found["category"],
        task=task,
    )
