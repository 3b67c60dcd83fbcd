"""The package as it is published: built, installed by pip into an empty environment, used from another folder."""

import json
import os
import pwd
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile

import pytest
from conftest import ROOT

PHOTO, MASK = ROOT / "examples" / "astronaut.jpg", ROOT / "examples" / "astronaut-mask.png"
ENTRY = '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n[project]\nname = "{0}"\n'
ENTRY += 'version = "{1}"\n[project.entry-points.iopaint]\n{2} = "{2}"\n'
ENTRY += '[tool.hatch.build.targets.wheel]\ninclude = ["{2}.py"]\n'
ANNOUNCE = "from iopaint_core import ModelInfo, ModelType, hookimpl\n@hookimpl\ndef iopaint_available_models():\n"
LOAD = "@hookimpl\ndef iopaint_load_model(info, context): ...\n"
BROKEN = {
    "acme-exits": ("1.2", "exits", "raise SystemExit('not today')"),
    "acme-string": ("3.4", "strings", f"{ANNOUNCE}    return 'acme'\n{LOAD}"),
    "acme-misspelled": ("5.6", "misspelled", (ANNOUNCE + "    return []\n" + LOAD).replace("_models", "_model")),
}


def run(*command, **options):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=True, env=environment, **options
    ).stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    return wheel, sdist


class Environment:
    """An empty environment with the wheel and what it depends on; commands run in a folder of their own."""

    def __init__(self, folder, wheel):
        venv.create(folder / "env", with_pip=True)
        self.bin = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir()
        self.pip("install", wheel)

    def pip(self, *arguments):
        return run(self.bin / "python", "-m", "pip", "--quiet", *arguments, cwd=self.elsewhere)

    def __call__(self, *arguments):
        return run(self.bin / "iopaint-core", *arguments, cwd=self.elsewhere)

    def names(self):
        return [info["name"] for info in json.loads(self("list", "--json"))]


@pytest.fixture(scope="module")
def environment(built, tmp_path_factory):
    return Environment(tmp_path_factory.mktemp("installed"), built[0])


def test_the_wheel_holds_both_packages_and_the_licence(built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = set(wheel.namelist())
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in ("iopaint_core", "iopaint_plugins")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sources <= names
    assert {"iopaint_core/py.typed", "iopaint_plugins/py.typed"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names - sources} == {"iopaint_core-0.1.0.dist-info"}


def test_the_sdist_holds_what_the_wheel_is_built_from(built):
    with tarfile.open(built[1]) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames()}
    for name in (
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "hookspecs.py",
        "iopaint_core/cli.py",
        "tests/conftest.py",
    ):
        assert name in names


def test_the_wheel_works_in_an_empty_environment(environment):
    assert {"cv2", "lama"} <= set(environment.names())
    environment("run", "--image", PHOTO, "--mask", MASK, "--output", "out.jpg")
    assert (environment.elsewhere / "out.jpg").stat().st_size > 10_000
    assert "site-packages" in run(
        environment.bin / "python",
        "-c",
        "import iopaint_core; print(iopaint_core.__file__)",
        cwd=environment.elsewhere,
    )
    installed = environment.pip("list", "--format=freeze").lower()
    assert not {"torch", "diffusers", "transformers"} & {line.split("==")[0] for line in installed.splitlines()}


def test_a_third_partys_package_is_found_loaded_and_run(environment, tmp_path):
    source = tmp_path / "iopaint-blur"
    shutil.copytree(ROOT / "examples" / "iopaint-blur", source)
    environment.pip("install", source)
    try:
        assert {"blur", "cv2"} <= set(environment.names())
        environment("run", "--model", "blur", "--image", PHOTO, "--mask", MASK, "--output", "blurred.png")
        assert (environment.elsewhere / "blurred.png").exists()
    finally:
        environment.pip("uninstall", "--yes", "iopaint-blur")
    assert "blur" not in environment.names()


def test_broken_packages_cost_their_own_models_alone_and_are_named(environment, tmp_path):
    for distribution, (version, module, source) in BROKEN.items():
        folder = tmp_path / distribution
        folder.mkdir()
        (folder / "pyproject.toml").write_text(ENTRY.format(distribution, version, module))
        (folder / f"{module}.py").write_text(source)
    environment.pip("install", *(tmp_path / name for name in BROKEN), ROOT / "examples" / "iopaint-blur")
    try:
        assert {"blur", "cv2"} <= set(environment.names())
        for model in ("cv2", "blur"):
            environment(
                "run", "--model", model, "--image", PHOTO, "--mask", MASK, "--output", f"{model}-beside.png"
            )
            assert (environment.elsewhere / f"{model}-beside.png").exists()
        report = json.loads(environment("plugins", "--json"))
    finally:
        environment.pip("uninstall", "--yes", *BROKEN, "iopaint-blur")
    told = {problem["distribution"]: problem for problem in report["problems"]}
    assert {name: problem["version"] for name, problem in told.items()} == {
        name: version for name, (version, _, _) in BROKEN.items()
    }
    assert told["acme-exits"]["error"] == "SystemExit: not today"
    assert "returned str" in told["acme-string"]["error"]
    assert "did you mean iopaint_available_models?" in told["acme-misspelled"]["error"]
    assert all(problem["remedy"] for problem in told.values())
    statuses = {plugin["distribution"]: plugin["status"] for plugin in report["plugins"]}
    assert statuses == {"iopaint-core": "active", "iopaint-blur": "active"} | dict.fromkeys(BROKEN, "failed")


def test_typed_hosts_see_the_types(tmp_path):
    (tmp_path / "host.py").write_text(
        "from iopaint_core import ModelInfo, ModelManager, ModelType\n"
        "info: ModelInfo = ModelManager().find('cv2')\n"
        "ModelInfo(name='a', type='wrong')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", tmp_path / "host.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert 'Argument "type" to "ModelInfo" has incompatible type "str"' in done.stdout
    assert "Found 1 error" in done.stdout


def test_nothing_of_this_machine_is_in_the_package(built):
    with zipfile.ZipFile(built[0]) as wheel:
        content = b"".join(wheel.read(name) for name in wheel.namelist())
    assert str(ROOT).encode() not in content
    assert pwd.getpwuid(os.getuid()).pw_dir.encode() + b"/" not in content
