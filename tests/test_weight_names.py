"""Plugins of one name, files of one name, files of equal content, and files whose plugin is gone."""

import hashlib
import re
from pathlib import Path

import pytest
from commands import command
from conftest import Red
from hosts import OneModel
from hypothesis import given
from hypothesis import strategies as st
from pools import together
from servers import cut

from iopaint_core import (
    DownloadError,
    LoadContext,
    ModelInfo,
    ModelManager,
    PluginInfo,
    PluginManager,
    PluginStatus,
    WeightFile,
    WeightStore,
    scan,
)
from iopaint_core.fetched import plugin_folder

CONTENT = bytes(range(256)) * 400
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def store(tmp_path):
    return WeightStore(tmp_path / "store")


def model(*files, distribution="alice", plugin="upscaler"):
    return ModelInfo("m", plugin_name=plugin, distribution=distribution, weights=files)


def got(store, info, **options):
    (path,) = store.get(info, **options).values()
    return path


@pytest.fixture
def served(server):
    """A function that serves content and gives the file as it is to be declared; `requests` has who asked."""

    def served(path, content=CONTENT, **options):
        server.files[path] = content
        declared = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), **options}
        return WeightFile(url=server.url + path, **declared)

    served.requests = server.requests
    return served


class TestOneName:
    def test_plugins_of_two_distributions_keep_their_own_file_and_folder(self, served, tmp_path):
        plugins, seen = PluginManager(allow=[]), []
        contents = {"alice": b"AAAA", "bob": b"BBBBBB"}
        for distribution, content in contents.items():
            file = served(f"/{distribution}/model.pth", content, size=None)

            def load(context):
                seen.append((context.weights("model.pth").read_bytes(), context.data_dir))
                return Red()

            plugins.register(OneModel("m", load, weights=(file,)), "upscaler", distribution=distribution)
        for _ in range(3):
            with ModelManager(plugins, context=LoadContext(cache=tmp_path / "home")) as manager:
                for distribution in contents:
                    manager.load(f"{distribution}:upscaler:m").close()
        assert [content for content, _ in seen] == [*contents.values()] * 3
        assert len(served.requests) == 2
        assert list(tmp_path.rglob("*.wrong-*")) == []
        assert {folder.relative_to(tmp_path).as_posix() for _, folder in seen} == {
            "home/plugins/alice/upscaler",
            "home/plugins/bob/upscaler",
        }

    @pytest.mark.parametrize("digest", [{}, {"sha256": ""}], ids=["hashed", "not hashed"])
    def test_two_models_of_one_plugin_keep_their_own_file_too(self, store, served, digest, monkeypatch):
        infos = [model(served(f"/{name}/model.pth", name.encode(), **digest)) for name in "ab"]
        monkeypatch.setattr(store, "_fetch", store._fetch_url)  # it refuses what is neither hashed nor encrypted
        for _ in range(2):
            assert [got(store, info).read_bytes() for info in infos] == [b"a", b"b"]
        assert len(served.requests) == 2
        assert list(store.root.rglob("*.wrong-*")) == []
        assert {each.state.value for each in store.verify(infos)} == {"unchecked" if digest else "whole"}
        assert store.remove(infos[1], infos) == [store._second_place(infos[1], infos[1].weights[0])]
        assert got(store, infos[0]).read_bytes() == b"a"
        assert len(served.requests) == 2

    def test_a_file_where_it_came_to_before_is_used_there_by_whom_it_is_right_for(self, store, served):
        former = store.root / "weights" / "upscaler" / "model.pth"
        former.parent.mkdir(parents=True)
        former.write_bytes(b"AAAA")
        alice = model(served("/a/model.pth", b"AAAA"))
        bob = model(served("/b/model.pth", b"BBBB"), distribution="bob")
        for _ in range(2):
            assert got(store, alice) == former
            assert got(store, bob) == store.place(bob, bob.weights[0])
        assert [path for path, _ in served.requests] == ["/b/model.pth"]
        assert [each.state.value for each in store.verify([alice, bob])] == ["whole", "whole"]
        assert former.read_bytes() == b"AAAA"
        store.place(bob, bob.weights[0]).unlink()
        assert [each.state.value for each in store.verify([alice, bob])] == ["whole", "missing"]

    def test_remove_deletes_a_file_from_before_unless_another_may_use_it(self, store, served):
        former = store.root / "weights" / "upscaler" / "model.pth"
        former.parent.mkdir(parents=True)
        former.write_bytes(b"AAAA")
        alice, bob = (model(served("/a/model.pth", b"AAAA"), distribution=name) for name in ("alice", "bob"))
        assert store.remove(alice, [alice, bob]) == []
        assert store.remove(alice, [alice]) == [former]


class TestEqualContent:
    @pytest.fixture
    def two(self, served):
        return [model(served(f"/{name}/{name}.pth"), distribution=name, plugin=name) for name in ("alice", "bob")]

    def test_it_is_fetched_once_and_stored_once(self, store, two, served, caplog, monkeypatch):
        caplog.set_level("INFO")
        one = got(store, two[0])
        assert store.missing(two[1]) == ()
        import iopaint_core.weights

        monkeypatch.setattr(iopaint_core.weights, "_hash", lambda *args: pytest.fail("it was hashed again"))
        other = got(WeightStore(store.root, offline=True), two[1])
        assert other == store.place(two[1], two[1].weights[0])
        assert other.samefile(one)
        assert f"{other} is a hard link to {one}, whose content is equal" in caplog.text
        assert got(store, two[0]) == one
        assert len(served.requests) == 1

    def test_it_is_copied_where_there_can_be_no_link(self, store, two, served, caplog, monkeypatch):
        caplog.set_level("INFO")

        def hardlink_to(path, target):
            raise OSError("no links here")

        monkeypatch.setattr(Path, "hardlink_to", hardlink_to)
        one, other = (got(store, info) for info in two)
        assert other.read_bytes() == CONTENT
        assert not other.samefile(one)
        assert f"{other} is a copy of {one}" in caplog.text
        assert len(served.requests) == 1

    def test_several_that_fetch_it_at_once_fetch_it_once(self, store, served):
        infos = [model(served("/a.pth"), distribution=f"d{i}") for i in range(4)]
        paths = together(4, lambda i: got(WeightStore(store.root), infos[i]))
        assert len(set(paths)) == 4
        assert all(path.samefile(paths[0]) for path in paths)
        assert len(served.requests) == 1

    def test_a_file_that_was_written_to_since_is_not_taken(self, store, two, served):
        one = got(store, two[0])
        one.write_bytes(CONTENT[::-1])
        assert got(store, two[1]).read_bytes() == CONTENT
        assert len(served.requests) == 2

    def test_what_one_plugin_loses_the_other_keeps(self, store, two):
        one, other = (got(store, info) for info in two)
        assert store.remove(two[0], two) == [one]
        assert other.read_bytes() == CONTENT

    def test_a_file_of_the_hub_is_taken(self, store, two, served, tmp_path):
        blobs = tmp_path / "home/.cache/huggingface/hub/models--a--b/blobs"
        blobs.mkdir(parents=True)
        (blobs / SHA256).write_bytes(CONTENT)
        assert got(store, two[0]).samefile(blobs / SHA256)
        (blobs / SHA256).unlink()
        (blobs / SHA256).write_bytes(CONTENT[::-1])
        store.remove(two[0], [])
        assert got(store, two[1]).read_bytes() == CONTENT
        assert len(served.requests) == 1, "one that is damaged is not believed"


names = (
    st.text()
    | st.text("ab-_.~/\\: A\n", max_size=5)
    | st.sampled_from(["..", ".", "con", "NUL", "a" * 300, "é", "\ud800"])
)


class TestFolders:
    @given(names, names, names, names)
    def test_no_two_plugins_share_one_and_none_leads_out(self, distribution, plugin, other_distribution, other):
        folder = plugin_folder(distribution, plugin)
        assert not folder.is_absolute()
        assert len(folder.parts) == 2
        for part in folder.parts:
            assert re.fullmatch(r"[\w~.-]{1,64}", part, re.ASCII)
            assert part[0] != "."
            assert part[-1] != "."
        second = plugin_folder(other_distribution, other)
        if (distribution, plugin) == (other_distribution, other):
            assert folder == second
        elif str(folder).lower() == str(second).lower():
            assert plugin == other
            assert len({re.sub(r"[-_.]+", "-", name).lower() for name in (distribution, other_distribution)}) == 1

    @pytest.mark.parametrize(
        ("distribution", "plugin", "folder"),
        [
            ("iopaint-core", "lama", "iopaint-core/lama"),
            ("Foo_Bar", "real.esrgan_4x", "foo-bar/real.esrgan_4x"),
            ("foo.bar", "RealESRGAN", "foo-bar/RealESRGAN~1d9ba2227206ac51"),
            ("/home/me/my plugins", "blur", "home-me-my-plugins~392a8a231f441f63/blur"),
        ],
    )
    def test_they_are_readable_and_stay_what_they_are(self, distribution, plugin, folder):
        assert plugin_folder(distribution, plugin).as_posix() == folder

    @pytest.mark.parametrize("name", ["..", "../..", "/etc", "a/../../b", "C:\\", "", "nul", "\udcff", "x" * 300])
    def test_files_of_a_plugin_with_an_odd_name_stay_in_the_home_folder(self, store, served, name):
        info = model(served("/model.pth"), distribution=name, plugin=name)
        for path in (got(store, info), store.data_dir(info)):
            assert path.resolve().is_relative_to(store.root.resolve())
        assert store.get(info)
        assert len(served.requests) == 1


SINGLE = """
from iopaint_core import ModelInfo, WeightFile, hookimpl
@hookimpl
def iopaint_available_models():
    return [ModelInfo("MODEL", weights=(WeightFile(url="URL", sha256="SHA", filename="NAME.pth"),))]
@hookimpl
def iopaint_load_model(info, context): ...
"""


class TestOrphans:
    @pytest.fixture
    def fetch(self, tmp_path, served, monkeypatch):
        """A function that writes a single-file plugin, and fetches its weights."""
        monkeypatch.setenv("IOPAINT_HOME", str(tmp_path / "store"))
        folder = tmp_path / "plugins"
        folder.mkdir()

        def fetch(name, content=CONTENT):
            file = served(f"/{name}.pth", content)
            source = SINGLE.replace("MODEL", name).replace("NAME", name)
            (folder / f"{name}.py").write_text(source.replace("URL", file.url).replace("SHA", file.sha256))
            done = command("--plugins-dir", folder, "download", name)
            assert done.returncode == 0, done.stderr
            return tmp_path / "store" / "weights" / plugin_folder(str(folder), name) / f"{name}.pth"

        fetch.folder = folder
        return fetch

    def test_doctor_finds_them_and_remove_deletes_them(self, fetch):
        kept, gone = fetch("kept", b"kept"), fetch("gone")
        done = command("doctor")
        assert "Not needed" not in done.stderr, "their files are there, whether they are looked for or not"
        (fetch.folder / "gone.py").unlink()
        done = command("doctor")
        assert done.returncode == 0
        assert f"Not needed: {gone} (102.4 kB): {fetch.folder}:gone is gone; " in done.stderr
        assert "`iopaint-core remove --orphans` deletes it" in done.stderr
        assert "Nothing wrong" not in done.stdout
        assert gone.exists()
        done = command("remove", "--orphans")
        assert done.returncode == 0
        assert done.stderr == f"{gone} removed: {fetch.folder}:gone is gone\n102.4 kB freed\n"
        assert not gone.parent.exists()
        assert kept.read_bytes() == b"kept"
        assert command("remove", "--orphans").stderr == "0 B freed\n"
        assert "Not needed" not in command("doctor").stderr

    def test_what_the_user_put_there_stays(self, fetch):
        replaced, gone = fetch("replaced", b"theirs"), fetch("gone")
        replaced.write_bytes(b"my own")
        mine = gone.with_name("mine.pth")
        mine.write_bytes(b"mine")
        for name in ("replaced", "gone"):
            (fetch.folder / f"{name}.py").unlink()
        told = command("doctor").stderr
        for path in (replaced, mine):
            assert re.search(rf"{re.escape(str(path))} .*it may be your own: delete it by hand", told)
        done = command("remove", "--orphans")
        assert "102.4 kB freed" in done.stderr
        for path in (replaced, mine):
            assert f"{path} stays: it may be your own" in done.stderr
        assert (replaced.read_bytes(), mine.read_bytes(), gone.exists()) == (b"my own", b"mine", False)

    def test_what_another_plugin_has_too_stays_its_own_and_frees_nothing(self, fetch):
        gone, kept = fetch("gone"), fetch("kept")
        assert gone.samefile(kept)
        (fetch.folder / "gone.py").unlink()
        assert command("remove", "--orphans").stderr.endswith("\n0 B freed\n")
        assert not gone.exists()
        assert kept.read_bytes() == CONTENT

    def test_a_part_of_a_file_is_deleted_too(self, server, tmp_path):
        server.script["/gone.pth"] = [cut(100)] + [cut(0)] * 20
        store = WeightStore(tmp_path / "store", pause=lambda seconds: None)
        file = WeightFile(url=f"{server.url}/gone.pth", sha256=SHA256)
        server.files["/gone.pth"] = CONTENT
        info = model(file)
        with pytest.raises(DownloadError, match="can't be fetched"):
            store.get(info)
        (orphan,) = store.orphans([])
        assert (orphan.path.name, orphan.nbytes, orphan.is_fetched) == ("gone.pth.part", 100, True)
        assert [each.nbytes for each in store.remove_orphans([])] == [100]
        assert not orphan.path.parent.exists()

    @pytest.mark.parametrize(
        ("distribution", "plugins"),
        [("host", []), ("Alice", [PluginInfo("upscaler", "alice", "2.0")])],
    )
    def test_a_plugin_of_the_host_is_not_gone_nor_one_of_another_spelling(
        self, store, served, distribution, plugins
    ):
        path = got(store, model(served("/a.pth"), distribution=distribution))
        assert store.orphans(plugins) == store.remove_orphans(plugins) == []
        assert path.exists()

    @pytest.mark.parametrize("status", [PluginStatus.FAILED, PluginStatus.DISABLED])
    def test_a_plugin_that_fails_or_is_disabled_is_not_gone(self, store, served, install, monkeypatch, status):
        info = model(served("/a.pth"), distribution="My.Plugin")
        path = got(store, info)
        install("my-plugin", "import sys; sys.exit(1)", entry=info.plugin_name)
        monkeypatch.setenv("IOPAINT_DISABLE_PLUGINS", "my-plugin" if status is PluginStatus.DISABLED else "")
        report = scan()
        assert [each.status for each in report.plugins if each.distribution == "my-plugin"] == [status]
        assert store.orphans(report.plugins) == store.remove_orphans(report.plugins) == []
        assert path.exists()

    def test_a_record_that_is_damaged_deletes_nothing(self, store, served):
        path = got(store, model(served("/a.pth")))
        (store.root / "weights" / "fetched.sqlite").write_bytes(b"no database" * 1000)
        assert store.remove_orphans([]) == []
        assert path.exists()
        assert [orphan.is_fetched for orphan in store.orphans([])] == [False]

    def test_a_link_out_of_the_store_is_not_followed(self, store, served, tmp_path):
        path = got(store, model(served("/a.pth")))
        path.parent.rename(tmp_path / "mine")
        path.parent.symlink_to(tmp_path / "mine")
        assert store.remove_orphans([]) == []
        assert (tmp_path / "mine" / "a.pth").exists()

    @pytest.mark.parametrize("arguments", [[], ["cv2", "--orphans"]])
    def test_one_names_a_model_or_says_orphans(self, arguments):
        done = command("remove", *arguments)
        assert done.returncode == 2
        assert "Name a model, or say --orphans." in done.stderr
