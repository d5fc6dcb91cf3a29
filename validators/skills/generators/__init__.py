"""The generators of the bundled suites: word lists and templates, drawn from with a fixed seed."""

from validators.skills.generators import (
    arithmetic,
    choice,
    helpfulness,
    instructions,
    json_form,
    knowledge,
    memory,
    reading,
    refusal,
    tool_calls,
)  # fmt: skip

WRITERS = {
    "arithmetic": arithmetic.rows,
    "reading": reading.rows,
    "knowledge": knowledge.rows,
    "choice": choice.rows,
    "memory": memory.rows,
    "instructions": instructions.rows,
    "json_form": json_form.rows,
    "tool_calls": tool_calls.rows,
    "refusal": refusal.rows,
    "helpfulness": helpfulness.rows,
}
