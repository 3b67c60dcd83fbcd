from __future__ import annotations

import gc
import os
import re
import signal
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from servers import hub, server  # noqa: F401 - fixtures

from iopaint_core import InpaintModel, ModelInfo, ModelManager, ModelType, PluginManager, Task, hookimpl

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell has it ignored

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of torch, once it is imported: workers have a core each

ROOT = Path(__file__).resolve().parent.parent


def pytest_ignore_collect(collection_path, config):
    """Leave out modules that import torch at their top if no test of torch is to run: the import takes seconds."""
    if "not torch" in config.option.markexpr and collection_path.suffix == ".py":
        return bool(re.search(r"^import torch$", collection_path.read_text(), re.MULTILINE)) or None
    return None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Hand out some files in one piece, and first: their tests take long, and share what takes long to make.

    Tests of others are handed out one by one. Marks of `xdist_group` would get lost: pytest-dev/pytest-xdist#1386.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            path = nodeid.partition("::")[0]
            return path if path.endswith(("test_package.py", "test_diffusion.py")) else nodeid

    return Scheduling(config, log) if config.option.dist == "load" else None


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Import without garbage collections, and leave what is imported out of the thousands that tests ask for."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


class Red(InpaintModel):
    """Paints everything red, so that a test sees which pixels of the result were taken."""

    def forward(self, image, mask, request):
        image[:] = (255, 0, 0)
        return image


def make_plugin(*names, load=Red, task=Task.INPAINT, **functions):
    """A plugin module that announces models of those names and that task; `functions` replace or add its hooks."""
    module = types.ModuleType("a_plugin")

    @hookimpl
    def iopaint_available_models():
        return [ModelInfo(name=name, type=ModelType.PLUGIN, task=task) for name in names]

    @hookimpl
    def iopaint_load_model(info, context):
        return load()

    hooks = {"iopaint_available_models": iopaint_available_models, "iopaint_load_model": iopaint_load_model}
    for name, function in {**hooks, **functions}.items():
        if function is not None:
            setattr(module, name, function)
    return module


@pytest.fixture(autouse=True)
def _empty_machine(tmp_path, monkeypatch):
    """Nothing is set, and no other program has models or weights here."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))  # or each client parses all certificates, for plain HTTP
    for name in (
        *("IOPAINT_PLUGINS", "IOPAINT_DISABLE_PLUGINS", "IOPAINT_OFFLINE", "IOPAINT_HOME", "IOPAINT_MODEL_DIRS"),
        *("HF_HUB_OFFLINE", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN"),
        *("XDG_CACHE_HOME", "TORCH_HOME", "U2NET_HOME", "SSL_CERT_FILE"),
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def plugins():
    """A plugin manager that has discovered nothing."""
    return PluginManager()


@pytest.fixture
def manager(plugins):
    plugins.register(make_plugin("red"), "red")
    return ModelManager(plugins)


@pytest.fixture
def no_pauses(monkeypatch):
    """Who waits some seconds before another try does not; gives the list of the seconds."""
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


@pytest.fixture
def reads(monkeypatch):
    """Gives the fields besides the framework's that are read of instances of a class of parameters."""

    def reads(cls):
        cls.parse({})  # the first time looks at all defaults
        read = set()

        def record(self, name):
            value = object.__getattribute__(self, name)
            if type(self) is cls and name in cls.names() and name not in cls.framework_names():
                read.add(name)
            return value

        monkeypatch.setattr(cls, "__getattribute__", record, raising=False)
        return read

    return reads


@pytest.fixture
def quick_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a distribution with one entry point and one module on the import path, as pip would."""

    def install(distribution, source, *, entry="plugin", version="1.0", module=None):
        module = module or distribution.lower().replace("-", "_").replace(".", "_")
        site = tmp_path / "site"
        info = site / f"{module}-{version}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[iopaint]\n{entry} = {module}\n")
        (site / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(str(site))
        return site

    return install


def photograph(height=40, width=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
