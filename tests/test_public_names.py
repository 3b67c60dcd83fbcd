"""The public names: one list, which type checkers and programs see alike."""

import ast
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest

import iopaint_core

SOURCE = ast.parse(Path(iopaint_core.__file__).read_text())


def imports(body):
    """Public names by the module of `iopaint_core` that a list of statements imports them from."""
    return {
        alias.asname or alias.name: node.module.removeprefix("iopaint_core.")
        for node in body
        if isinstance(node, ast.ImportFrom) and node.module.startswith("iopaint_core.")
        for alias in node.names
    }


def test_type_checkers_and_programs_see_the_same_names_from_the_same_modules():
    (for_checkers,) = (
        node.body
        for node in SOURCE.body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    )
    assert imports(for_checkers) == iopaint_core._MODULES
    assert sorted(imports(SOURCE.body) | iopaint_core._MODULES) == sorted(iopaint_core.__all__)
    assert dir(iopaint_core) == sorted(iopaint_core.__all__)
    assert all(hasattr(iopaint_core, name) for name in iopaint_core.__all__)


def test_a_misspelt_name_is_an_error_when_the_program_runs():
    with pytest.raises(AttributeError, match="module 'iopaint_core' has no attribute 'ModelInf'"):
        iopaint_core.ModelInf  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'ModelInf'"):
        exec("from iopaint_core import ModelInf")


def test_annotations_of_plugins_stand_for_arrays():
    def forward(image: iopaint_core.Image | None, pair: tuple[iopaint_core.Image, iopaint_core.Mask]): ...

    hints = typing.get_type_hints(forward)
    assert hints == {"image": np.ndarray | None, "pair": tuple[np.ndarray, np.ndarray]}


@pytest.mark.process
def test_they_import_nothing_heavy():
    program = """
import sys
from iopaint_core import Image, Mask, Preview, Progress
def forward(image: Image | None, mask: list[Mask], progress: Progress, preview: Preview) -> Image: ...
print({"numpy", "cv2", "PIL", "pydantic"} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
