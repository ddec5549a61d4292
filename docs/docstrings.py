"""Teach the API pages this project's docstrings: "name: text" lines become a list, ">>>" lines a code block."""

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Rewrite docstrings into Markdown before they are rendered."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """Turn one docstring into Markdown."""
    lines: list[str] = []
    code = listed = False
    for line in text.splitlines():
        prompt = re.match(r"(>>>|\.\.\.) ?(.*)", line)
        if code and line.strip() and not prompt:  # what the line above returns
            lines.append(f"# {line.strip()}")
            continue
        item = re.match(r"\s*([a-z_]\w*(?:, [a-z_]\w*)*): +(\S.*)", line)
        if bool(prompt) != code:
            lines += ["```" if code else "\n```python"]
            code = bool(prompt)
        if prompt:
            lines.append(prompt[2])
        elif item:
            lines += ["", f"- `{item[1]}`: {item[2]}"] if not listed else [f"- `{item[1]}`: {item[2]}"]
            listed = True
        elif listed and line.strip() and re.match(r"[A-Z]", line):
            lines += ["", line]
            listed = False
        else:
            listed = listed and bool(line.strip())
            lines.append(f"    {line.strip()}" if listed else line)
    return "\n".join([*lines, "```"] if code else lines)
