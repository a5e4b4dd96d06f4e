"""Prompts are text with holes, and a hole is filled exactly once."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from prompts import PromptError, render

NAMES = sorted(path.name.removesuffix(".txt") for path in files("prompts").iterdir() if path.name.endswith(".txt"))


def variables(name: str) -> dict[str, str]:
    text = files("prompts").joinpath(f"{name}.txt").read_text(encoding="utf-8")
    return {variable: f"<{variable}>" for variable in re.findall(r"\{\{(\w+)\}\}", text)}


@pytest.mark.parametrize("name", NAMES)
def test_every_prompt_renders_with_its_variables_and_keeps_no_hole(name):
    rendered = render(name, **variables(name))
    assert "{{" not in rendered
    assert all(value in rendered for value in variables(name).values())


@pytest.mark.parametrize("name", NAMES)
def test_every_prompt_carries_its_version(name):
    assert re.fullmatch(r"[a-z-]+-\d+", name)


def test_a_missing_variable_is_refused_by_name():
    with pytest.raises(PromptError, match=r"missing \['question'\]"):
        render("answer-user-1", sources="")


def test_a_variable_that_the_prompt_does_not_use_is_refused_by_name():
    with pytest.raises(PromptError, match=r"not used \['mood'\]"):
        render("answer-user-1", sources="", question="", mood="happy")


def test_an_unknown_prompt_is_no_empty_one():
    with pytest.raises(FileNotFoundError):
        render("answer-user-0")


@pytest.mark.parametrize("value", ["{{question}}", "{{sources}}", "{0} %s $x", r"\1 \g<0>", "}}{{"])
def test_what_a_variable_holds_is_never_read_as_a_template(value):
    rendered = render("answer-user-1", sources=value, question="Q")
    assert rendered.count(value) == 1
    assert rendered.endswith("Question: Q")
