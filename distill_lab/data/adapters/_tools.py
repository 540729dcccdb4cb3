"""Tools in text: calls of an assistant as `<tool_call>` blocks, and the descriptions of tools in the system message.

Both are written as Qwen's chat templates write them (Qwen/Qwen2.5-7B-Instruct, tokenizer_config.json), because students know
this form; so a row reads the same whether its tools come through the template or through the text.
"""

from __future__ import annotations

import json

from distill_lab.types import Fields

FIELDS = ("tools", "functions")
_BEFORE = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>"""
_AFTER = """
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""


def described(row: Fields) -> tuple[str, list[str], str | None]:
    """The tools of a row as text for the system message, their names, and the field; "" if it has none.

    Raises ValueError if the field is not a list of tools.
    """
    for field in FIELDS:
        tools = row.get(field)
        if isinstance(tools, str) and tools.strip() in ("", "[]", "null", "None", "{}"):
            continue
        if tools in (None, [], {}):
            continue
        if isinstance(tools, dict):
            tools = [tools]
        if not isinstance(tools, list) or not all(isinstance(tool, dict) and tool for tool in tools):
            raise ValueError(f"field {field!r} must be a list of tools as JSON objects")
        tools = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
        names = [str(tool["function"].get("name")) if isinstance(tool["function"], dict) else "" for tool in tools]
        if not all(names) or "None" in names:
            raise ValueError(f"field {field!r} has a tool without a name")
        lines = "".join(f"\n{json.dumps(tool, ensure_ascii=False)}" for tool in tools)
        return f"{_BEFORE}{lines}{_AFTER}", names, field
    return "", [], None


def call_text(call: object) -> str:
    """One call as a `<tool_call>` block. Raises ValueError if it is not a call."""
    if isinstance(call, dict):
        arguments = call.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments) if arguments.strip() else {}
            except (ValueError, RecursionError):
                raise ValueError("a tool call's arguments are not JSON") from None
        if "name" in call:
            call = {key: value for key, value in call.items() if key != "arguments"} | {"arguments": arguments}
        call = json.dumps(call, ensure_ascii=False)
    if not isinstance(call, str):
        raise ValueError(f"a tool call is {type(call).__name__}, expected an object or JSON text")
    return f"<tool_call>\n{call}\n</tool_call>"
