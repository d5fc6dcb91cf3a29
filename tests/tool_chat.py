"""A chat template that renders tools as Qwen2.5's does, and rows of function calling in TRL's format."""

import json
import shutil
from pathlib import Path

TEMPLATE = (
    "{% if tools %}<|im_start|>system\n<tools>\n"
    "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}</tools><|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}"
    "{% for call in message.tool_calls or [] %}"
    '<tool_call>\n{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PARAMETERS = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}
TOOL = {"type": "function", "function": {"name": "add_task", "description": "Adds a task.", "parameters": PARAMETERS}}
ASKED = {"role": "user", "content": "Add rent."}
CALL = {"type": "function", "function": {"name": "add_task", "arguments": {"title": "rent"}}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "name": "add_task", "content": '{"task_id": 5}'}
DONE = {"role": "assistant", "content": "Added as 5."}
WRITTEN = '<tool_call>\n{"name": "add_task", "arguments": {"title": "rent"}}\n</tool_call>'


def model_that_calls(model: Path, folder: Path) -> Path:
    """Copies a tiny model, and gives it the template."""
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def raw_row(number: int = 0, **changes) -> dict:
    """A conversation as TRL has it: a call, what it returned, and the answer to that."""
    titles = ("rent", "milk", "the report", "a dentist", "tax", "the bins", "a present", "flights")
    title = f"{titles[number % 8]} {number}"
    call = {"type": "function", "function": {"name": "add_task", "arguments": {"title": title}}}
    messages = [
        {"role": "user", "content": f"Add {title}."}, {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "name": "add_task", "content": json.dumps({"task_id": number})},
        {"role": "assistant", "content": f"Added as {number}."},
    ]  # fmt: skip
    return {"messages": messages, "tools": [TOOL]} | changes
