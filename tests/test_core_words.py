"""The core knows no family of models: what one of them needs is in its plugin."""

import ast
import re
from pathlib import Path

import iopaint_core

CORE = Path(iopaint_core.__file__).parent
WORDS = re.compile("lora|sampler|controlnet|diffus|prompt|cv2_flag|safety_checker", re.IGNORECASE)
WIRE_NAMES = {
    "parameters.py": {"IOPAINT_FIELDS", "_IOPAINT_FLAGS", "iopaint_flags"},
    "schema.py": {"ModelType"},
}
"""What speaks of IOPaint's request and its descriptions of models, whose names hosts and clients rely on."""


def spans_of(path: Path) -> list[range]:
    """The lines of a module that hold the names of the wire: of an assignment, a docstring, values of an enum."""
    spans = []
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)]):
                held = [node]
            case ast.FunctionDef(name=name):
                held = node.body[:1]
            case ast.ClassDef(name=name):
                held = [value for value in node.body if isinstance(value, ast.Assign)]
            case _:
                continue
        if name in WIRE_NAMES[path.name]:
            spans += [range(part.lineno, part.end_lineno + 1) for part in held]
    return spans


def test_no_word_of_a_family_of_models_stands_in_the_core():
    paths = sorted(CORE.rglob("*.py"))
    assert {path.name for path in paths} >= WIRE_NAMES.keys()
    found = [
        (path, number, line)
        for path in paths
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if WORDS.search(line)
    ]
    spans = {CORE / name: spans_of(CORE / name) for name in WIRE_NAMES}
    assert all(spans.values())
    assert [
        f"{path.relative_to(CORE)}:{number}: {line.strip()}"
        for path, number, line in found
        if not any(number in span for span in spans.get(path, ()))
    ] == []
