"""The life of a manager: it closes what it loaded, and loads anew what was replaced on disk."""

import asyncio
import shutil

import numpy as np
import PIL.Image
import pytest
from commands import command
from conftest import photograph
from hosts import OneModel, host

from iopaint_core import (
    AsyncModelManager,
    ImageModel,
    LoadContext,
    ModelInfo,
    ModelManager,
    ModelPool,
    PluginManager,
    PoolError,
    Task,
    WeightFile,
    hookimpl,
)

IMAGE = photograph(8, 8)


class Closing(ImageModel):
    """Notes that it was closed."""

    closed: list

    def forward(self, image, parameters):
        return image

    def close(self):
        self.closed.append(type(self).__name__)


def closing(*names):
    """Models of those names, and the list that each adds its name to when it is closed."""
    closed = []
    classes = [type(name, (Closing,), {"closed": closed}) for name in names]
    return [OneModel(cls.__name__, cls, task=Task.RESTORE) for cls in classes], closed


class TestClose:
    def test_every_model_was_closed(self):
        models, closed = closing("one", "two", "three")
        with host(*models) as manager:
            manager.process("one", IMAGE)
            manager.preload("two")
            manager.switch("three")
            assert closed == []
        assert sorted(closed) == ["one", "three", "two"]
        manager.close()
        assert len(closed) == 3
        stats = manager.pool.stats()
        assert (dict(stats.leases), stats.components) == ({}, ())

    def test_one_that_is_leased_is_closed_when_its_lease_ends(self):
        models, closed = closing("one", "two")
        manager = host(*models)
        manager.preload("two")
        lease = manager.load("one")
        manager.close()
        assert closed == ["two"]
        assert np.array_equal(lease.model(IMAGE), IMAGE)
        lease.close()
        assert closed == ["two", "one"]

    def test_of_a_pool_of_the_hosts_own_models_alone_go(self):
        pool = ModelPool()
        (models, closed), (others, _) = closing("one"), closing("other")
        other = host(*others, pool=pool)
        other.preload("other")
        with host(*models, pool=pool) as manager:
            manager.preload("one")
        assert closed == ["one"]
        assert [str(key) for key in pool.stats().leases] == ["other"]
        assert np.array_equal(other.process("other", IMAGE), IMAGE)

    @pytest.mark.parametrize(
        "call",
        [
            lambda manager: manager.process("one", IMAGE),
            lambda manager: manager.load("one"),
            lambda manager: manager.scan(),
            lambda manager: manager.switch("one"),
            lambda manager: manager.session("one", IMAGE),
            lambda manager: manager.forecast("one"),
        ],
    )
    def test_a_call_afterwards_is_an_error(self, call):
        manager = host(*closing("one")[0])
        manager.preload("one")
        manager.close()
        with pytest.raises(PoolError, match=r"The manager is closed\. Make a new one"):
            call(manager)

    def test_an_event_loop_closes_the_manager_that_it_made_alone(self):
        models, closed = closing("one")
        given = host(*models)

        async def main():
            async with AsyncModelManager(given) as manager:
                await manager.process("one", IMAGE)
            assert closed == []
            with pytest.raises(PoolError, match="The manager is closed"):
                await manager.process("one", IMAGE)
            async with AsyncModelManager() as manager:
                await manager.preload("cv2")
            with pytest.raises(PoolError, match="The manager is closed"):
                manager.manager.find("cv2")

        asyncio.run(main())
        given.process("one", IMAGE)

    def test_at_the_end_of_a_command(self, tmp_path):
        (tmp_path / "plugins").mkdir()
        (tmp_path / "plugins" / "closing.py").write_text(
            "from iopaint_core import ImageModel, ModelInfo, Task, hookimpl\n"
            "class Closing(ImageModel):\n"
            "    def forward(self, image, parameters): return image\n"
            f"    def close(self): open({str(tmp_path / 'closed')!r}, 'w').close()\n"
            "@hookimpl\n"
            "def iopaint_available_models(): return [ModelInfo(name='closing', task=Task.RESTORE)]\n"
            "@hookimpl\n"
            "def iopaint_load_model(info, context): return Closing()\n"
        )
        PIL.Image.fromarray(IMAGE).save(tmp_path / "in.png")
        files = ("--image", tmp_path / "in.png", "--output", tmp_path / "out.png")
        done = command("--plugins-dir", tmp_path / "plugins", "run", "--model", "closing", *files)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "closed").exists()


class FromFile:
    """A plugin whose model adds the number that its file, or the one beside it, holds."""

    def __init__(self, path=None, weights=()):
        self.info = ModelInfo(name="number", task=Task.RESTORE, path=path, weights=weights)
        self.loads = 0

    @hookimpl
    def iopaint_available_models(self):
        return [self.info]

    @hookimpl
    def iopaint_load_model(self, info, context):
        self.loads += 1
        path = info.path or context.weights(info.weights[0].filename)
        texts = [file.read_text() for file in sorted(path.rglob("*.txt") if path.is_dir() else [path])]
        beside = path.with_suffix(".json")
        texts += [beside.read_text()] if beside.exists() else []
        number = np.uint8(sum(map(int, texts)))
        return type("Adds", (ImageModel,), {"forward": lambda self, image, parameters: image + number})()


class TestReplacedFiles:
    @pytest.fixture
    def numbered(self, tmp_path):
        """Makes a plugin of a path, and what its model adds now."""

        def numbered(**fields):
            plugin = FromFile(**fields)
            plugins = PluginManager(allow=[])
            plugins.register(plugin, "number")
            manager = ModelManager(plugins, context=LoadContext(cache=tmp_path / "home"))
            dark = np.zeros((2, 2, 3), np.uint8)
            return plugin, manager, lambda: int(manager.process("number", dark)[0, 0, 0])

        return numbered

    def test_a_file_that_another_was_renamed_over(self, numbered, tmp_path):
        path = tmp_path / "model.txt"
        path.write_text("10")
        plugin, manager, adds = numbered(path=path)
        assert [adds(), adds(), plugin.loads] == [10, 10, 1]
        (tmp_path / "new").write_text("20")
        (tmp_path / "new").replace(path)
        assert [adds(), adds(), plugin.loads] == [20, 20, 2]
        assert len(manager.pool.stats().leases) == 1, "the old one is dropped"

    def test_a_file_that_was_written_to(self, numbered, tmp_path):
        path = tmp_path / "model.txt"
        path.write_text("10")
        _, _, adds = numbered(path=path)
        assert adds() == 10
        path.write_text("20")
        assert adds() == 20

    def test_a_config_beside_a_file_and_one_that_comes(self, numbered, tmp_path):
        path = tmp_path / "model.txt"
        path.write_text("10")
        _, _, adds = numbered(path=path)
        assert adds() == 10
        path.with_suffix(".json").write_text("5")
        assert adds() == 15
        path.with_suffix(".json").write_text("7")
        assert adds() == 17

    def test_a_file_below_a_folder(self, numbered, tmp_path):
        folder = tmp_path / "model"
        for name in ("unet/a.txt", "vae/b.txt"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("1")
        plugin, _, adds = numbered(path=folder)
        assert [adds(), adds(), plugin.loads] == [2, 2, 1]
        (folder / "vae" / "b.txt").write_text("40")
        assert adds() == 41

    def test_what_a_link_leads_to(self, numbered, tmp_path):
        (tmp_path / "blob").write_text("3")
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "a.txt").symlink_to(tmp_path / "blob")
        _, _, adds = numbered(path=tmp_path / "model")
        assert adds() == 3
        (tmp_path / "blob").write_text("4")
        assert adds() == 4

    def test_weights_that_the_store_has_are_not_fetched_again(self, numbered, tmp_path):
        file = WeightFile(url="https://models.example/number.txt")
        plugin, manager, adds = numbered(weights=(file,))
        place = manager.store.place(manager.find("number"), file)
        place.parent.mkdir(parents=True)
        place.write_text("10")
        assert [adds(), adds(), plugin.loads] == [10, 10, 1]
        (tmp_path / "new").write_text("30")
        with manager.load("number"):
            (tmp_path / "new").replace(place)
            assert [adds(), adds(), plugin.loads] == [30, 30, 2]

    def test_what_is_leased_goes_on_as_it_is(self, numbered, tmp_path):
        path = tmp_path / "model.txt"
        path.write_text("10")
        _, manager, adds = numbered(path=path)
        dark = np.zeros((2, 2, 3), np.uint8)
        with manager.load("number") as model:
            path.write_text("20")
            assert adds() == 20
            assert int(model(dark)[0, 0, 0]) == 10
            assert len(manager.pool.stats().leases) == 1
        path.unlink()
        assert adds() == 20, "what was deleted goes on as it was loaded"

    def test_a_folder_that_was_replaced_as_a_whole(self, numbered, tmp_path):
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "a.txt").write_text("1")
        _, _, adds = numbered(path=tmp_path / "model")
        assert adds() == 1
        shutil.copytree(tmp_path / "model", tmp_path / "new")
        (tmp_path / "new" / "a.txt").write_text("2")
        shutil.rmtree(tmp_path / "model")
        (tmp_path / "new").rename(tmp_path / "model")
        assert adds() == 2
