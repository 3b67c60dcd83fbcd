"""What the documents say is run."""

import re
import shutil
import subprocess
import sys

import pytest
from commands import command
from conftest import ROOT

import iopaint_core
from iopaint_plugins.patchmatch import PatchMatchParameters

README = (ROOT / "README.md").read_text()


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_plugin_of_the_readme_is_the_example_package_and_short():
    plugin = blocks(README, "python")[0]
    assert plugin == (ROOT / "examples" / "iopaint-blur" / "iopaint_blur.py").read_text()
    assert len([line for line in plugin.splitlines() if line.strip()]) <= 15


@pytest.mark.process
def test_the_host_of_the_readme_is_the_example_and_runs(tmp_path):
    host = blocks(README, "python")[1]
    assert host == (ROOT / "examples" / "host.py").read_text()
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    done = subprocess.run([sys.executable, "-c", host], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "patchmatch" in done.stdout
    assert (tmp_path / "repaired.jpg").exists()


def test_the_request_of_the_readme_is_valid():
    assert PatchMatchParameters.parse(blocks(README, "json")[0]).patch_size == 3


@pytest.mark.process
def test_the_commands_of_the_readme_exist():
    for name, rest in re.findall(r"^iopaint-core (\w+)([^#\n]*)", README, re.MULTILINE):
        shown = command(name, "--help")
        assert shown.returncode == 0
        for option in re.findall(r"--[\w-]+", rest):
            assert option in shown.stdout


@pytest.mark.process
def test_the_targets_of_the_readme_exist():
    for target in set(re.findall(r"^make (\w+)", README, re.MULTILINE)):
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize(
    "document",
    ["README.md", "examples/README.md", *(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))],
)
def test_links_lead_somewhere(document):
    path = ROOT / document
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_the_tests_that_the_documents_name_exist():
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("*.py"))
    named = [
        name for path in (ROOT / "docs").rglob("*.md") for name in re.findall(r"`(test_\w+)`", path.read_text())
    ]
    assert len(named) > 10
    assert [name for name in named if f"def {name}(" not in tests] == []


@pytest.mark.process
def test_the_pool_of_the_readme_runs():
    subprocess.run([sys.executable, "-c", blocks(README, "python")[2]], capture_output=True, check=True)


def test_every_environment_variable_is_documented():
    sources = "".join(path.read_text() for path in (ROOT / "iopaint_core").glob("*.py"))
    for variable in set(re.findall(r'"(IOPAINT_[A-Z_]+)"', sources)):
        assert f"`{variable}`" in README


def test_public_names_are_all_there_and_documented():
    sources = "".join(path.read_text() for path in (ROOT / "iopaint_core").glob("*.py"))
    for name in iopaint_core.__all__:
        alias = re.search(rf'^( *){name}(: TypeAlias)? = .+\n\1"""', sources, re.MULTILINE)  # it has no __doc__
        assert alias or getattr(iopaint_core, name).__doc__, name
