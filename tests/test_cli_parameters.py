"""What a model takes, on the command line: `parameters MODEL`, and `run -p NAME=VALUE`."""

import json
import textwrap

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner
from conftest import photograph

from iopaint_core import read_picture
from iopaint_core.cli import main
from iopaint_plugins.opencv import CV2Parameters

PLUGIN = """
from __future__ import annotations
from dataclasses import dataclass, field
from typing import Annotated
from annotated_types import Ge, Le
from iopaint_core import Hint, InpaintModel, InpaintParameters, ModelInfo, ModelType, hookimpl


@dataclass(frozen=True)
class PaintParameters(InpaintParameters):
    '''How `paint` paints.'''

    level: Annotated[int, Ge(0), Le(255), Hint(unit="steps")] = 9
    '''How
    bright.'''
    text: str = ""
    '''Kept in a file.'''
    texts: str | tuple[str, ...] = "none"
    '''One or several.'''
    points: tuple[tuple[int, int], ...] = ()
    '''Where.'''
    example: str | None = None
    '''Nothing, or something.'''


class Paint(InpaintModel):
    def forward(self, image, mask, parameters):
        with open("seen.txt", "a") as file:
            print(repr((parameters.text, parameters.texts, parameters.points, parameters.example)), file=file)
        image[:] = parameters.level
        return image


@hookimpl
def iopaint_available_models():
    return [ModelInfo("paint", ModelType.PLUGIN, parameters=PaintParameters)]


@hookimpl
def iopaint_load_model(info, context):
    print("loading", file=open("loaded.txt", "a"))
    return Paint()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "paint.py").write_text(textwrap.dedent(PLUGIN))
    mask = np.zeros((32, 48), np.uint8)
    mask[10:20, 10:20] = 255
    PIL.Image.fromarray(photograph(32, 48)).save(tmp_path / "photo.png")
    PIL.Image.fromarray(mask).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


FILES = ("--image", "photo.png", "--mask", "mask.png")


def command(*arguments):
    return CliRunner().invoke(main, ["--plugins-dir", "plugins", *map(str, arguments)])


def run(*arguments):
    return command("run", "--model", "paint", *FILES, "--output", "out.png", *arguments)


class TestParameters:
    def test_a_table_has_the_models_own_first(self):
        done = command("parameters", "paint")
        assert done.exit_code == 0
        header, *rows = done.stdout.splitlines()
        assert header.split() == ["NAME", "TYPE", "DEFAULT", "DESCRIPTION"]
        assert [row.split()[0] for row in rows[:6]] == [
            "level",
            "text",
            "texts",
            "points",
            "example",
            "hd_strategy",
        ]
        cells = [[cell for cell in row.split("  ") if cell] for row in rows]
        assert [cell.strip() for cell in cells[0]] == ["level", "integer, 0 to 255 steps", "9", "How bright."]
        assert [cell.strip() for cell in cells[2]] == ["texts", "text or list", "none", "One or several."]
        assert "One of: Original, Resize, Crop." in rows[5]

    def test_json_is_the_schema(self):
        assert json.loads(command("parameters", "cv2", "--json").stdout) == CV2Parameters.json_schema()

    def test_an_unknown_model_is_told(self):
        done = command("parameters", "cv3")
        assert done.exit_code == 2
        assert "Did you mean cv2?" in done.stderr

    def test_a_class_that_can_not_be_used_is_told(self, folder):
        wrong = PLUGIN.replace('text: str = ""', "text: Nowhere = 3")
        (folder / "plugins" / "paint.py").write_text(textwrap.dedent(wrong))
        done = command("parameters", "paint")
        assert done.exit_code == 2
        assert "the type of 'text' names Nowhere" in done.stderr


class TestRun:
    def test_values_come_over_those_of_a_config(self, folder):
        (folder / "config.json").write_text('{"level": 3, "text": "config", "cv2_radius": 7}')
        done = run("--config", "config.json", "-p", "level=20", "-p", "points=[[1, 2]]")
        assert done.exit_code == 0, done.stderr
        assert (read_picture(folder / "out.png").rgb == 20).all(axis=-1).any()
        assert (folder / "seen.txt").read_text() == "('config', 'none', ((1, 2),), None)\n"

    @pytest.mark.parametrize(
        ("given", "seen"),
        [
            (["text=12"], "('12', 'none', (), None)"),
            (["text=a=b"], "('a=b', 'none', (), None)"),
            (['text="quoted"'], "('\"quoted\"', 'none', (), None)"),
            (["texts=one"], "('', 'one', (), None)"),
            (['texts=["one", "two"]'], "('', ('one', 'two'), (), None)"),
            (["example=null"], "('', 'none', (), None)"),
            (["example=7"], "('', 'none', (), '7')"),
            (["text=first", "text=second"], "('second', 'none', (), None)"),
        ],
    )
    def test_a_value_is_text_or_json_as_the_field_wants_it(self, folder, given, seen):
        done = run(*(word for text in given for word in ("-p", text)))
        assert done.exit_code == 0, done.stderr
        assert (folder / "seen.txt").read_text() == f"{seen}\n"

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            ("level", "-p is 'level', expected NAME=VALUE"),
            ("lever=3", "paint takes no 'lever' (did you mean level?). It takes: hd_strategy,"),
            ("prompt=a cat", "paint takes no 'prompt'"),
            ("level=bright", "'level' is 'bright': Input should be a valid integer"),
            ("level=300", "'level' is 300: Input should be less than or equal to 255"),
            ("points=[1]", "'points.0' is 1"),
            ("hd_strategy=Shrink", "'Original', 'Resize' or 'Crop'"),
        ],
    )
    def test_a_wrong_one_is_told_before_anything_is_loaded(self, folder, given, told):
        done = run("-p", given)
        assert done.exit_code == 2
        assert told in done.stderr
        assert not (folder / "loaded.txt").exists()

    def test_a_wrong_config_is_told_too(self, folder):
        (folder / "config.json").write_text('{"lever": 3}')
        for more in ((), ("-p", "level=3")):
            done = run("--config", "config.json", *more)
            assert done.exit_code == 2
            assert "unknown key 'lever' (did you mean level?)" in done.stderr
        assert not (folder / "loaded.txt").exists()

    def test_a_prompt_of_the_shell_reaches_opencv(self, folder):
        for name, more in (("plain", ()), ("telea", ("-p", "cv2_flag=INPAINT_TELEA", "-p", "cv2_radius=9"))):
            done = command("run", "--model", "cv2", *FILES, "--output", f"{name}.png", *more)
            assert done.exit_code == 0, done.stderr
        plain, telea = (read_picture(folder / f"{name}.png").rgb for name in ("plain", "telea"))
        assert not np.array_equal(plain, telea)
