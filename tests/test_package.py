"""The package as it is published: built, installed by pip into an empty environment, used from another folder."""

import json
import os
import pwd
import shutil
import subprocess
import sys
import tarfile
import threading
import venv
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import cv2
import numpy as np
import PIL.Image
import pip
import pytest
from commands import Commands
from conftest import ROOT, photograph
from packaging.requirements import Requirement

from iopaint_core import read_picture

pytestmark = pytest.mark.package

PHOTO, MASK = ROOT / "examples" / "astronaut.jpg", ROOT / "examples" / "astronaut-mask.png"
PIP = Path(pip.__file__).with_name("__pip-runner__.py")
"""What `pip --python` starts: this pip, for the Python that runs it."""

BUILD = """
import importlib, os, sys, tomllib
folder, *sources = sys.argv[1:]
for source in sources:
    os.chdir(source)
    with open("pyproject.toml", "rb") as file:
        backend = tomllib.load(file)["build-system"]["build-backend"]
    print(os.path.join(folder, importlib.import_module(backend).build_wheel(folder)))
"""


def surroundings():
    """The environment variables of now, less what Python is told about this environment."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def run(*command, **options):
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=True, env=surroundings(), **options
    ).stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and sdist: those that `make` has built, or new ones."""
    folder = ROOT / os.environ.get("DIST", "")
    if folder == ROOT:
        folder = tmp_path_factory.mktemp("dist")
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    return wheel, sdist


def needed(name, found):
    """Add to `found` what a distribution depends on, at any depth, by name, as it is installed here."""
    for requirement in map(Requirement, metadata.requires(name) or ()):
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and requirement.name not in found:
            found[requirement.name] = metadata.distribution(requirement.name)
            needed(requirement.name, found)
    return found


class Environment:
    """An empty environment with the wheel and what it depends on; commands run in a folder of their own.

    The wheel is installed by pip. What it depends on is linked from the environment of the tests, so that no
    network is needed, and what it does not declare is not there; `make wheel` lets pip fetch it.
    """

    def __init__(self, folder, wheel):
        venv.create(folder / "env")
        self.bin = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir()
        self.site = Path(
            run(self.bin / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        )
        for distribution in needed("iopaint-core", {}).values():
            for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
                if not (self.site / top).exists():
                    (self.site / top).symlink_to(distribution.locate_file(top))
        self.pip("install", wheel)
        self.commands = Commands(self.bin / "python", surroundings())

    def pip(self, command, *arguments):
        """Run pip for this environment; it installs wheels, and fetches nothing."""
        alone = ["--no-index", "--no-deps"] if command == "install" else []
        return run(self.bin / "python", PIP, "--quiet", command, *alone, *arguments, cwd=self.elsewhere)

    def script(self, *arguments):
        """Run the script that pip has made."""
        return run(self.bin / "iopaint-core", *arguments, cwd=self.elsewhere)

    def __call__(self, *arguments):
        """Run a command of which most has been imported before; what it printed."""
        done = self.commands(*arguments, environment=surroundings(), folder=self.elsewhere)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def names(self):
        return [info["name"] for info in json.loads(self("list", "--json"))]


def wheels(folder, *sources):
    """Wheels of packages, built by the backend that each names, which the tests' environment has."""
    folder.mkdir()
    return run(sys.executable, "-c", BUILD, folder, *sources).splitlines()


@pytest.fixture(scope="module")
def environment(built, tmp_path_factory):
    environment = Environment(tmp_path_factory.mktemp("installed"), built[0])
    yield environment
    environment.commands.close()


EXAMPLES = ["iopaint-blur", "iopaint-depth", "iopaint-wand", "iopaint-tidy", "iopaint-service"]


@pytest.fixture(scope="module")
def examples(environment, tmp_path_factory):
    """The environment with all packages of `examples/` installed."""
    folder = tmp_path_factory.mktemp("examples")
    for name in EXAMPLES:
        shutil.copytree(ROOT / "examples" / name, folder / name)
    environment.pip("install", *wheels(folder / "dist", *(folder / name for name in EXAMPLES)))
    return environment


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
    listed = json.loads(environment.script("list", "--json"))
    assert {"cv2", "lama", "patchmatch"} <= {info["name"] for info in listed}
    assert sum(info["type"] == "plugin" for info in listed) >= 40
    environment.script("run", "--image", PHOTO, "--mask", MASK, "--output", "out.jpg")
    assert (environment.elsewhere / "out.jpg").stat().st_size > 10_000
    assert "site-packages" in run(
        environment.bin / "python",
        "-c",
        "import iopaint_core; print(iopaint_core.__file__)",
        cwd=environment.elsewhere,
    )
    installed = environment.pip("list", "--format=freeze").lower()
    assert not {"torch", "diffusers", "transformers"} & {line.split("==")[0] for line in installed.splitlines()}


def test_a_third_partys_package_is_found_loaded_and_run(examples):
    assert {"blur", "cv2"} <= set(examples.names())
    examples.script("run", "--model", "blur", "--image", PHOTO, "--mask", MASK, "--output", "blurred.png")
    assert (examples.elsewhere / "blurred.png").exists()


TIDIED = """
import sys
import numpy as np
import iopaint_wand
from iopaint_core import ModelManager, read_picture

encoded, encode = [], iopaint_wand.Wand.encode
iopaint_wand.Wand.encode = lambda self, image: encoded.append(image.shape) or encode(self, image)
image = read_picture(sys.argv[1]).rgb
with ModelManager() as manager:
    with manager.session("wand", image) as session:
        one = session.run({"clicks": [(440, 390, 1)]})
        two = session.run({"clicks": [(440, 390, 1), (30, 30, 0)], "boxes": [(400, 350, 480, 430)]})
    assert len(encoded) == len(manager.pool.stats().states) == 1, (encoded, manager.pool.stats().states)
    assert manager.pool.stats().states[0].nbytes == image.nbytes
    for result in (one, two):
        assert result.masks.shape == (3, *image.shape[:2]) and len(result.scores) == 3
        assert (result.masks[:, 390, 440] == 255).all()
    assert not two.masks[:, 30, 30].any()
    outside = two.masks.copy()
    outside[:, 350:430, 400:480] = 0
    assert not outside.any()
    here, both = ({"clicks": [(440, 390, 1), *more]} for more in ((), [(440, 390, 0)]))
    assert manager.run("wand", image, parameters=here).masks.any()
    assert not manager.run("wand", image, parameters=both).masks.any()
with ModelManager() as manager:
    steps = []
    tidied = [manager.run("tidy", image, parameters=here, progress=lambda *step: steps.append(step)) for _ in "12"]
    assert (tidied[0].image == tidied[1].image).all() and (tidied[0].image != image).any()
    stats = manager.pool.stats()
    assert stats.counts.loads == len(stats.leases) == 4 and stats.counts.hits == 4, stats
    assert steps[-1][0] == steps[-1][1] > 0
    assert manager.run("tidy", image).info == {"unchanged": True}
"""


def test_the_packages_for_a_new_task_for_clicks_and_for_a_model_made_of_models_work(examples):
    for output in ("depth.png", "depth.npy"):
        examples("run", "--model", "depth", "--image", PHOTO, "--output", output, "-p", "patch=7")
    image = read_picture(PHOTO).rgb
    depth = np.load(examples.elsewhere / "depth.npy")
    drawn = cv2.imread(str(examples.elsewhere / "depth.png"), cv2.IMREAD_UNCHANGED)
    assert (depth.shape, depth.dtype) == (image.shape[:2], np.float32)
    assert (drawn.shape, drawn.dtype, drawn.min(), drawn.max()) == (depth.shape, np.uint16, 0, 65535)
    described = json.loads(examples("describe", "depth", "--json"))
    assert (described["task"], described["gives"]) == ("depth", ["maps"])
    assert {"patch", "haze_kept", "smoothing"} <= set(described["parameters"]["properties"])
    clicks = ("-p", "clicks=[[440, 390, 1]]")
    examples("run", "--model", "tidy", "--image", PHOTO, "--output", "tidy.png", *clicks)
    changed = (read_picture(examples.elsewhere / "tidy.png").rgb != image).any(axis=-1)
    assert changed[390, 440]
    assert not changed.all()
    run(examples.bin / "python", "-c", TIDIED, PHOTO, cwd=examples.elsewhere)


HOST = """
import logging, sys, traceback
from concurrent.futures import ThreadPoolExecutor
from iopaint_core import ModelManager, read_mask, read_picture
logging.basicConfig(level=logging.DEBUG)
photo, mask, url, key = sys.argv[1:]
image, mask, events = read_picture(photo).rgb, read_mask(mask), []
with ModelManager(options={"service": {"url": url, "api_key": key}}) as manager, ThreadPoolExecutor(8) as threads:
    calls = [threads.submit(manager.inpaint, "service-erase", image, mask, {"wish": "together"}) for _ in range(8)]
    print(all((call.result() == (0, 255, 0)).any() for call in calls))
for options in ({"url": url, "api_key": key}, {"url": url + "nowhere", "api_key": key}, {"api_key": [key]}):
    manager = ModelManager(options={"service": options})
    manager.pool.subscribe(events.append)
    try:
        painted = manager.inpaint("service-erase", image, mask, {"detail": 0.75})
        print((painted == (0, 255, 0)).all(axis=-1).sum() > 1000)
    except Exception:
        traceback.print_exc()
    print(manager.pool.stats(), events, manager.scan())
"""


@pytest.fixture
def erasing_service():
    """A web service that paints green where a PNG is transparent: URL, key, and the queries that it was sent.

    Who wishes `together` is answered once there are eight of them.
    """
    key, asked, eight = "sk-d0c4-for-this-service", [], threading.Barrier(8)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            sent = self.rfile.read(int(self.headers["Content-Length"]))
            url = urlsplit(self.path)
            if url.path != "/erase" or self.headers["Authorization"] != f"Bearer {key}":
                self.send_error(404 if url.path != "/erase" else 401)
                return
            query = dict(parse_qsl(url.query, keep_blank_values=True))
            asked.append(query)
            if query["wish"] == "together":
                eight.wait(30)
            image = cv2.imdecode(np.frombuffer(sent, np.uint8), cv2.IMREAD_UNCHANGED)
            image[image[..., 3] == 0] = (0, 255, 0, 255)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(cv2.imencode(".png", image[..., :3])[1].tobytes())

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as service:
        threading.Thread(target=service.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{service.server_port}/erase", key, asked
        service.shutdown()


def test_a_third_partys_service_is_run_with_the_hosts_options_and_its_key_is_never_shown(
    examples, tmp_path, monkeypatch, erasing_service
):
    url, key, asked = erasing_service
    photo, mask, covered = tmp_path / "photo.png", tmp_path / "mask.png", np.zeros((64, 96), np.uint8)
    covered[10:50, 10:50] = 255
    PIL.Image.fromarray(photograph(64, 96)).save(photo)
    PIL.Image.fromarray(covered).save(mask)
    monkeypatch.setenv("IOPAINT_HOME", str(tmp_path / "home"))
    told = []

    def call(*command):
        done = examples.commands(*command, environment=surroundings(), folder=tmp_path)
        told.append(done.stdout + done.stderr)
        return done.returncode

    def repair(*options, model="service-erase", output="out.png"):
        files = ("--image", photo, "--mask", mask, "--output", output)
        return call("-v", "run", "--model", model, *files, *options)

    assert repair("-o", f"url={url}") == 1
    assert "service-erase needs a key. Set IOPAINT_SERVICE_API_KEY." in told[-1]
    assert repair("-o", f"url={url}", "-o", f"api_key={key}") == 0, told[-1]
    assert (read_picture(tmp_path / "out.png").rgb == (0, 255, 0)).all(axis=-1).sum() > 1000
    monkeypatch.setenv("IOPAINT_SERVICE_API_KEY", f"{key}\n")
    given = {"wish": "grass", "style": "drawing", "detail": "0.25", "tries": "3", "grain": "false"}
    chosen = [text for name, value in given.items() for text in ("-p", f"{name}={value}")]
    assert repair("-o", f"url={url}", *chosen, output="again.png") == 0
    assert asked[-1] == given
    assert call("parameters", "service-erase") == 0
    assert all(text in told[-1] for text in (*given, "photo", "drawing", "How much of it to invent: 0 is smooth."))
    assert repair("-p", "detail=2") == repair("-p", "stile=photo") == repair("-p", "tries=many") == 2
    assert "did you mean style?" in told[-2]
    assert repair("-o", f"url={url}nowhere", output="not.png") == 1
    assert f"Error: {url}nowhere gave no picture: Client error '404" in told[-1]
    assert repair("-o", f"timeout={key}") == 2
    assert "'timeout' is str: Input should be a valid number" in told[-1]
    assert repair("-o", f"api_kee={key}") == 2
    assert repair(model="biharmonic") == 1
    assert (
        "biharmonic can't be used yet: skimage is not installed: pip install 'iopaint-service[local]'" in told[-1]
    )
    assert call("list") == call("list", "--json") == 0
    assert "skimage is not installed" in told[-2]
    assert call("doctor") == 0
    assert "Can't be used yet: biharmonic: skimage is not installed" in told[-1]
    assert "Can't be used yet: anime-lama, lama: torch is not installed" in told[-1]
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home" / "options.toml").write_text(f'[service]\ntimeout = "{key}"\n')
    assert call("doctor") == 1
    assert repair() == 2
    (tmp_path / "home" / "options.toml").unlink()
    host = [examples.bin / "python", "-c", HOST, photo, mask, url, key]
    done = subprocess.run(host, capture_output=True, text=True, check=True, env=surroundings(), cwd=tmp_path)
    told.append(done.stdout + done.stderr)
    assert told[-1].startswith("True\nTrue\n")
    assert asked[-1] == {"wish": "", "style": "photo", "detail": "0.75", "tries": "1", "grain": "true"}
    assert "gave no picture" in told[-1]
    assert "'api_key' is list: Input should be a valid string" in told[-1]
    assert "Secret('**********')" in told[-1]
    assert not [text for text in told if key in text]


HOOKS = """
import gc, locale, logging, os, random, signal, sys, threading, warnings
from iopaint_core import BasePlugin, InpaintModel, ModelInfo, Task, WeightFile, hookimpl
def dies(*_): raise SystemExit("not today")
class Lying(str): __eq__ = __hash__ = __str__ = __repr__ = strip = encode = dies
class Same(InpaintModel):
    def forward(self, image, mask, parameters): return FORWARD
@hookimpl
def iopaint_available_models(): return [ModelInfo("NAME", **FIELDS)]
@hookimpl
def iopaint_load_model(info, context): return Same()
"""
WRAPPER = "@hookimpl(wrapper=True, specname='iopaint_load_model')\ndef around(info):\n"


def plugin(**changes):
    """The source of a plugin whose one model is named after it."""
    source = HOOKS
    for old, new in [*changes.items(), ("FORWARD", "image"), ("**FIELDS", "")]:
        source = source.replace(old, new)
    return source


def field(text):
    return "scan", plugin(**{"**FIELDS": text})


def announced(text):
    return "scan", plugin(**{'[ModelInfo("NAME", **FIELDS)]': text})


def at_import(text, stage="import"):
    return stage, f"{plugin()}\n{text}\n"


def wrapper(text, stage="wrap"):
    return stage, f"{plugin()}{WRAPPER}    {text}\n"


HOSTILE = {
    "text-for-weights": field("weights=('https://example.org/a.pth',)"),
    "a-number-for-weights": field("weights=3"),
    "a-list-for-licence": field("license=['MIT']"),
    "lying-name": ("", plugin(**{'"NAME", **FIELDS': 'Lying("lying-name")'})),
    "name-with-a-colon": field("description='', title='').__class__('a:b'"),
    "name-of-two-lines": announced("[ModelInfo('a\\nb')]"),
    "name-that-is-none": announced("[ModelInfo(None)]"),
    "surrogate-title": ("", plugin(**{"**FIELDS": "title='\\udc80'"})),
    "path-that-is-none": field("path=3"),
    "task-as-text": field("task='inpaint'"),
    "parameters-as-dict": field("parameters={}"),
    "options-as-dict": field("load_options={}"),
    "requires-nothing": field("requires=[None]"),
    "no-model-info": announced("['a']"),
    "announces-text": announced("'models'"),
    "announces-none": announced("None"),
    "announces-and-dies": announced("dies()"),
    "announces-twice": announced("[ModelInfo('announces-twice'), ModelInfo('announces-twice')]"),
    "a-subclass": announced("[type('Sub', (ModelInfo,), {})('a')]"),
    "scans-itself": announced("__import__('iopaint_core').scan_models()"),
    "wraps-and-raises": wrapper("raise ValueError('before'); yield"),
    "wraps-and-raises-later": wrapper("yield; raise ValueError('after')"),
    "wraps-and-forgets": wrapper("yield"),
    "wraps-and-swaps": wrapper("yield; return 'the model'"),
    "wraps-and-dies": wrapper("yield; dies()"),
    "wraps-twice": wrapper("model = yield; yield; return model"),
    "wraps-nothing": wrapper("return; yield"),
    "wraps-without-yield": wrapper("return None", "register"),
    "exits": at_import("sys.exit(3)"),
    "generator-exit": at_import("raise GeneratorExit"),
    "mute": at_import("class Mute(BaseException): __str__ = dies\nraise Mute"),
    "syntax": at_import("def"),
    "lacks-a-package": at_import("import a_module_that_nobody_has"),
    "dies-when-looked-at": at_import("def __getattr__(name): dies()", ""),
    "scans-at-import": at_import("__import__('iopaint_core').scan_models()"),
    "for-a-newer-core": at_import("raise RuntimeError('imported')"),
    "unknown-argument": ("register", plugin(**{"(info, context)": "(info, context, plan)"})),
    "misspelt": ("register", plugin(iopaint_available_models="iopaint_available_model")),
    "half": ("register", plugin(iopaint_load_model="load_model")),
    "writes": at_import("os.write(1, b'hello')\nprint('hello')\nos.close(1)", ""),
    "moves": at_import("os.chdir('/')\nos.environ.clear()\nsys.path[:] = []\nsys.argv[:] = ['x']", ""),
    "warns": at_import(
        "warnings.simplefilter('error')\nlogging.disable()\nlogging.basicConfig(level=1, force=True)", ""
    ),
    "signals": at_import("signal.signal(signal.SIGINT, signal.SIG_IGN)\nsys.excepthook = dies", ""),
    "streams": at_import("sys.stderr.reconfigure(encoding='utf-16')\nsys.stdout = sys.stderr = None", ""),
    "fails-when-run": ("", plugin(FORWARD="dies()")),
}
"""By name: the stage at which a package fails, if it does, and its source."""


def wheel(folder, name, source, requires=()):
    """Write a wheel of one module by hand, as packaging.python.org specifies it."""
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-1.5.dist-info"
    path = folder / f"{module}-1.5-py3-none-any.whl"
    needs = "".join(f"Requires-Dist: {each}\n" for each in requires)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{module}.py", source.replace("NAME", name))
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n{needs}")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/entry_points.txt", f"[iopaint]\n{name} = {module}\n")
        file.writestr(f"{info}/RECORD", "")
    return path


def test_hostile_packages_cost_their_own_models_alone_and_are_named(examples, tmp_path):
    def run(model):
        files = ["--image", PHOTO, "--mask", MASK, "--output", f"{model}-beside.png", "--overwrite"]
        examples("run", "--model", model, *files)
        return read_picture(examples.elsewhere / f"{model}-beside.png").rgb

    def listed():
        return json.loads(examples("list", "--json"))

    innocent, repaired = listed(), {model: run(model) for model in ("cv2", "blur")}
    files = [
        wheel(tmp_path, name, source, ["iopaint-core>=99"] if name == "for-a-newer-core" else ())
        for name, (_, source) in HOSTILE.items()
    ]
    examples.pip("install", *files)
    try:
        beside = listed()
        assert [info for info in beside if info["distribution"] not in HOSTILE] == innocent
        sound = {name for name, (stage, _) in HOSTILE.items() if stage in {"", "wrap"}} | {"announces-twice"}
        assert {info["name"] for info in beside} - {info["name"] for info in innocent} == sound
        for model in repaired:
            assert np.array_equal(run(model), repaired[model])
        report = json.loads(examples("plugins", "--json"))
        doctor = examples.commands("doctor", environment=surroundings(), folder=tmp_path)
        wrapped = examples.commands(
            *("-v", "run", "--model", "cv2", "--image", PHOTO, "--mask", MASK, "--output", "out.png"),
            environment=surroundings(),
            folder=tmp_path,
        )
    finally:
        for name in HOSTILE:  # pip takes seconds for so many
            module = name.replace("-", "_")
            (examples.site / f"{module}.py").unlink()
            shutil.rmtree(examples.site / f"{module}-1.5.dist-info")
    assert not json.loads(examples("plugins", "--json"))["problems"]
    told = {problem["distribution"]: problem for problem in report["problems"]}
    expected = {name: stage for name, (stage, _) in HOSTILE.items() if stage not in {"", "wrap"}}
    assert {name: problem["stage"] for name, problem in told.items()} == expected
    for name, problem in told.items():
        assert problem["version"] == "1.5"
        assert problem["error"]
        assert problem["remedy"]
        assert "Traceback" in problem["traceback"] or problem["error"] in problem["traceback"], name
        assert name in doctor.stderr
    assert doctor.returncode == 1
    assert (wrapped.returncode, wrapped.stdout) == (0, ""), wrapped.stderr
    for name, (stage, _) in HOSTILE.items():
        assert (f"{name} ({name} 1.5), wrap" in wrapped.stderr) == (stage == "wrap")
    statuses = {plugin["distribution"]: plugin["status"] for plugin in report["plugins"]}
    failed = {name for name, status in statuses.items() if status == "failed"}
    assert failed == set(expected) - {"no-model-info", "announces-twice", "a-subclass"}, "some cost an entry alone"


TYPED = {
    "host": """
from iopaint_core import ModelInfo, ModelManager, ModelType
info: ModelInfo = ModelManager().find("cv2")
ModelInfo(name="a", type="wrong")  # error: Argument "type" to "ModelInfo" has incompatible type "str"
""",
    "names": """
import iopaint_core
from iopaint_core import ModelInf  # error: has no attribute "ModelInf"; maybe "ModelInfo"?
from iopaint_core import ModelMangaer  # error: has no attribute "ModelMangaer"; maybe "ModelManager"?
print(iopaint_core.report_progres)  # error: has no attribute "report_progres"; maybe "report_progress"?
""",
    "right": """
from dataclasses import dataclass
from iopaint_core import Image, InpaintModel, InpaintParameters, Mask, MaskModel, ModelManager, Preview, Progress
@dataclass(frozen=True)
class BlurParameters(InpaintParameters):
    radius: int = 15
class Blur(InpaintModel[BlurParameters]):
    def forward(self, image: Image, mask: Mask | None, parameters: BlurParameters) -> Image:
        return image[:: parameters.radius]
class Plain(InpaintModel):
    def forward(self, image: Image, mask: Mask, parameters: BlurParameters) -> Image:
        return image
class Finder(MaskModel):
    def forward(self, image: Image, parameters: object) -> Mask:
        return image[..., 0]
def run(manager: ModelManager, image: Image, mask: Mask, progress: Progress, preview: Preview) -> Image:
    return manager.inpaint("blur", image, mask, progress=progress, preview=preview)
""",
    "wrong": """
from iopaint_core import Image, ImageModel, InpaintModel, Mask, ModelManager
from right import BlurParameters
class Blur(InpaintModel[BlurParameters]):
    def forward(self, image: Image, mask: Mask, parameters: str) -> Image:  # error: Argument 3 of "forward"
        return image
class Text(ImageModel):
    def forward(self, image: Image, parameters: object) -> str:  # error: Return type "str" of "forward"
        return "done"
class Strange(ImageModel[str]):  # error: Type argument "str" of "ImageModel"
    def forward(self, image: str, parameters: str) -> Image:  # error: Argument 1 of "forward"
        raise NotImplementedError
ModelManager().process("x", "file.png")  # error: Argument 2 to "process" of "ModelManager" has incompatible type
""",
}


def test_typed_hosts_and_plugins_see_the_types_and_misspelt_names(environment, tmp_path):
    for name, source in TYPED.items():
        (tmp_path / f"{name}.py").write_text(source)
    # The types of other libraries are no concern of this test, and take most of mypy's time.
    names = ["cv2", "filelock", "httpx", "huggingface_hub", "importlib_metadata", "PIL", "pydantic"]
    others = ",".join(f"{name}.*" for name in names)
    skipped = "follow_imports = skip\nfollow_imports_for_stubs = true\n"
    (tmp_path / "mypy.ini").write_text(f"[mypy]\n[mypy-{others}]\n{skipped}")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--config-file", tmp_path / "mypy.ini"),
            *("--no-incremental", "--hide-error-context"),
            *("--python-executable", environment.bin / "python", *(f"{name}.py" for name in TYPED)),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    found = [line.partition(": error: ") for line in done.stdout.splitlines() if ": error: " in line]
    expected = {
        f"{name}.py:{number}": line.partition("# error: ")[2]
        for name, source in TYPED.items()
        for number, line in enumerate(source.splitlines(), 1)
        if "# error: " in line
    }
    assert {place for place, _, _ in found} == expected.keys(), done.stdout
    assert all(expected[place] in words for place, _, words in found), done.stdout


def test_nothing_of_this_machine_is_in_the_package(built):
    with zipfile.ZipFile(built[0]) as wheel:
        content = b"".join(wheel.read(name) for name in wheel.namelist())
    assert str(ROOT).encode() not in content
    assert pwd.getpwuid(os.getuid()).pw_dir.encode() + b"/" not in content
