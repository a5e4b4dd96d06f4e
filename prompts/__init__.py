"""Prompts are text files, `<name>-<version>.txt` beside this one; `render` fills them in and holds no logic."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files


class PromptError(ValueError):
    """A prompt was given a variable too few or too many: a mistake of ours, never of a user's."""


def render(name: str, **variables: str) -> str:
    """The text of the prompt with each `{{variable}}` replaced, once: what a variable holds is never read as a template.

    Raises `PromptError` if a variable is missing or is not used, and `FileNotFoundError` for an unknown name.
    """
    text = _text(name)
    wanted = set(re.findall(r"\{\{(\w+)\}\}", text))
    if wanted != set(variables):
        missing, unused = sorted(wanted - set(variables)), sorted(set(variables) - wanted)
        raise PromptError(f"prompt {name}: missing {missing}, not used {unused}")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: variables[match[1]], text)


@cache
def _text(name: str) -> str:
    return files(__name__).joinpath(f"{name}.txt").read_text(encoding="utf-8").strip()
