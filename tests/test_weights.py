"""Weights are found where they are, fetched on a bad network, and believed only when their hash is right."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import Red, make_plugin
from pools import together, until
from servers import busy, cut, other_bytes, redirect, says_it_has, stall, whole, without_ranges

from iopaint_core import (
    DownloadError,
    LoadContext,
    MissingWeightsError,
    ModelInfo,
    ModelLoadError,
    ModelManager,
    ModelType,
    PluginError,
    UntrustedWeightsError,
    WeightFile,
    WeightsError,
    WeightStore,
    hookimpl,
    scan_models,
)

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def pauses():
    return []


@pytest.fixture
def store(tmp_path, pauses):
    return WeightStore(tmp_path / "store", pause=pauses.append, stall=5.0)


def model(*files, name="lama", **options):
    return ModelInfo(
        name=name, type=ModelType.INPAINT, plugin_name="lama", distribution="us", weights=files, **options
    )


@pytest.fixture
def one(server):
    """A model of one file that the server has, and whose hash is declared."""
    server.files["/big-lama.pt"] = CONTENT
    return model(WeightFile(url=f"{server.url}/big-lama.pt", sha256=SHA256, size=len(CONTENT)))


def got(store, info, **options):
    (path,) = store.get(info, **options).values()
    return path


def leftovers(store):
    """What lies in the store besides finished files."""
    files = [path.name for path in store.root.rglob("*") if path.is_file()]
    return sorted(name for name in files if not name.endswith((".lock", ".sqlite", ".pt")))


class TestDeclared:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({}, "it has no url and no repo"),
            ({"url": "https://a/b", "repo": "a/b"}, "it has no url and no repo, or both"),
            ({"url": "ftp://a/b"}, "its url is 'ftp://a/b'"),
            ({"url": "https://a/"}, "its name leads out of its folder, or nowhere"),
            ({"url": "https://a/b", "filename": "../b"}, "its name leads out"),
            ({"url": "https://a/b", "filename": "c/../../b"}, "its name leads out"),
            ({"url": "https://a/b", "filename": "/etc/passwd"}, "its name leads out"),
            ({"url": "https://a/b", "filename": "C:\\b"}, "its name leads out"),
            ({"url": "https://a/b", "filename": "b\n"}, "its name leads out"),
            ({"url": "https://a/.."}, "its name leads out"),
            ({"repo": "a"}, "its repo is 'a'"),
            ({"repo": "a/b/../c", "filename": "d"}, "its repo is"),
            ({"url": "https://a/b", "sha256": "abc"}, "its sha256 is 'abc'. Give 64 hexadecimal digits"),
            ({"url": "https://a/b", "md5": SHA256}, "Give 32 hexadecimal digits"),
            ({"url": "https://a/b", "md5": "g" * 32}, "Give 32 hexadecimal digits"),
            ({"url": "https://a/b", "size": -1}, "its size is -1"),
        ],
    )
    def test_what_can_t_be_meant_so_is_refused(self, options, words):
        with pytest.raises(PluginError) as error:
            WeightFile(**options)
        assert words in str(error.value)

    def test_a_plugin_that_declares_such_a_file_is_a_problem_and_no_more(self, plugins):
        @hookimpl
        def iopaint_available_models():
            return [model(WeightFile(url="https://a/b", md5="short"))]

        plugins.register(make_plugin("bad", iopaint_available_models=iopaint_available_models), "bad")
        plugins.register(make_plugin("good"), "good")
        assert [info.name for info in scan_models(plugins)] == ["good"]
        assert "its md5 is 'short'" in str(plugins.problems[0])

    def test_the_name_is_the_last_part_of_the_url(self):
        assert WeightFile(url="https://a/b/c.pt?download=1").filename == "c.pt"

    def test_what_a_model_needs_and_under_which_licence_is_known_before_it_is_loaded(self, store, tmp_path):
        files = [WeightFile(url=f"https://a/{name}", size=5) for name in ("one", "two")]
        info = model(*files, license="Apache-2.0")
        assert sum(file.size for file in store.missing(info)) == 10
        (tmp_path / "store/weights/lama").mkdir(parents=True)
        (tmp_path / "store/weights/lama/one").write_bytes(b"12345")
        assert store.missing(info) == (files[1],)
        assert info.license == "Apache-2.0"


class TestFound:
    """Without a connection: nothing here is fetched."""

    @pytest.fixture
    def info(self):
        return model(WeightFile(url="https://nowhere.invalid/big-lama.pt", sha256=SHA256, size=len(CONTENT)))

    @pytest.mark.parametrize(
        ("variable", "folder"),
        [
            (None, "store/weights/us/lama"),
            (None, "store/weights/lama"),
            ("TORCH_HOME", "torch-home/hub/checkpoints"),
            ("XDG_CACHE_HOME", "cache/torch/hub/checkpoints"),
            (None, "home/.cache/torch/hub/checkpoints"),
            ("U2NET_HOME", "u2net"),
            (None, "home/.u2net"),
        ],
    )
    def test_where_users_of_iopaint_have_it(self, store, info, tmp_path, monkeypatch, variable, folder):
        if variable:
            monkeypatch.setenv(variable, str(tmp_path / folder.partition("/")[0]))
        path = tmp_path / folder / "big-lama.pt"
        path.parent.mkdir(parents=True)
        path.write_bytes(CONTENT)
        assert store.missing(info) == ()
        assert got(store, info) == path
        assert path.read_bytes() == CONTENT, "it was not touched"

    def test_the_store_comes_first(self, store, info, tmp_path):
        for folder in ("store/weights/us/lama", "home/.cache/torch/hub/checkpoints"):
            (tmp_path / folder).mkdir(parents=True)
            (tmp_path / folder / "big-lama.pt").write_bytes(CONTENT)
        assert got(store, info) == store.place(info, info.weights[0])

    @pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", None])
    def test_in_the_cache_of_hugging_face(self, store, tmp_path, monkeypatch, variable):
        inner = {"HF_HUB_CACHE": "", "HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub"}
        root = tmp_path / "hf" / inner[variable] if variable else tmp_path / "home/.cache/huggingface/hub"
        if variable:
            monkeypatch.setenv(variable, str(tmp_path / "hf"))
        repository = root / "models--briaai--RMBG-1.4"
        (repository / "snapshots/abc").mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs/main").write_text("abc")
        (repository / "snapshots/abc/model.pth").write_bytes(CONTENT)
        info = model(WeightFile(repo="briaai/RMBG-1.4", filename="model.pth", sha256=SHA256))
        assert got(store, info) == repository / "snapshots/abc/model.pth"

    def test_a_file_of_another_size_is_not_it(self, store, info, tmp_path):
        path = tmp_path / "home/.cache/torch/hub/checkpoints/big-lama.pt"
        path.parent.mkdir(parents=True)
        path.write_bytes(CONTENT[:-1])
        assert store.missing(info) == info.weights

    def test_another_program_s_file_with_a_wrong_hash_is_left_alone_and_not_used(
        self, store, info, tmp_path, caplog
    ):
        path = tmp_path / "home/.cache/torch/hub/checkpoints/big-lama.pt"
        path.parent.mkdir(parents=True)
        path.write_bytes(CONTENT[::-1])
        store.offline = True
        with pytest.raises(MissingWeightsError):
            store.get(info)
        assert path.read_bytes() == CONTENT[::-1]
        assert f"{path} is not what big-lama.pt is to be" in caplog.text

    def test_a_file_of_ours_with_a_wrong_hash_is_set_aside_with_a_word(self, store, info, caplog):
        place = store.place(info, info.weights[0])
        place.parent.mkdir(parents=True)
        place.write_bytes(CONTENT[::-1])
        store.offline = True
        with pytest.raises(MissingWeightsError):
            store.get(info)
        (aside,) = place.parent.glob("big-lama.pt.wrong-*")
        assert aside.read_bytes() == CONTENT[::-1]
        assert str(aside) in caplog.text

    def test_it_is_hashed_once_and_again_when_it_changes(self, store, info, monkeypatch):
        place = store.place(info, info.weights[0])
        place.parent.mkdir(parents=True)
        place.write_bytes(CONTENT)
        store.get(info)
        import iopaint_core.weights

        hashed, really = [], iopaint_core.weights._hash
        monkeypatch.setattr(iopaint_core.weights, "_hash", lambda *args: hashed.append(args) or really(*args))
        store.get(info)
        assert hashed == []
        with place.open("r+b") as file:
            file.write(b"X")
        store.offline = True
        with pytest.raises(MissingWeightsError):
            store.get(info)
        assert hashed

    def test_a_folder_that_is_a_link_out_of_the_store_is_refused(self, store, info, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "store/weights/us").mkdir(parents=True)
        (tmp_path / "store/weights/us/lama").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(WeightsError, match=r"leads out of .* by a link"):
            store.get(info)
        assert list((tmp_path / "elsewhere").iterdir()) == []

    def test_the_environment_replaces_what_is_declared(self, store, server, monkeypatch):
        server.files["/mine.pt"] = CONTENT
        info = model(WeightFile(url="https://nowhere.invalid/big-lama.pt", sha256="0" * 64, env="LAMA_MODEL"))
        monkeypatch.setenv("LAMA_MODEL_URL", f"{server.url}/mine.pt")
        monkeypatch.setenv("LAMA_MODEL_MD5", MD5)
        assert got(store, info).read_bytes() == CONTENT
        assert store.verify([info])[0].state.value == "whole"


class TestFetched:
    def test_it_comes_whole_and_only_once(self, store, one, server):
        path = got(store, one)
        assert path == store.place(one, one.weights[0])
        assert path.read_bytes() == CONTENT
        assert got(store, one) == path
        assert server.requests == [("/big-lama.pt", None)]
        assert leftovers(store) == []

    @pytest.mark.parametrize(
        "script",
        [
            [cut(1000)],
            [cut(1000), cut(0), cut(500_000), cut(1)],
            [cut(1000), without_ranges],
            [cut(0)] * 4,
            [busy(429, retry_after=7), busy(503), busy(500), busy(502)],
            [says_it_has(len(CONTENT) + 100)],
            [says_it_has(len(CONTENT) - 100)],
            [cut(70_000), busy(503, retry_after=3), cut(70_000)],
        ],
        ids=["cut", "cut often", "no ranges", "nothing comes", "busy", "longer", "shorter", "all of it"],
    )
    def test_on_a_bad_network(self, store, one, server, script):
        server.script["/big-lama.pt"] = script
        assert got(store, one).read_bytes() == CONTENT
        assert leftovers(store) == []

    @pytest.mark.parametrize(
        "script",
        [
            [cut(600_000)],
            [cut(600_000, sent='W/"{}"')],
            [lambda *asked: whole(*asked, content=CONTENT[::-1], upto=1000), cut(600_000, sent="")],
        ],
        ids=["strong ETag", "weak ETag", "ETag of another file"],
    )
    def test_what_has_come_is_not_fetched_again(self, tmp_path, one, server, script):
        came = []
        store = WeightStore(
            tmp_path, pause=lambda seconds: None, progress=lambda file, done, total: came.append(done)
        )
        server.script["/big-lama.pt"] = script
        store.get(one)
        assert server.requests[-1] == ("/big-lama.pt", "bytes=600000-")
        assert came == sorted(came)

    def test_a_server_is_left_alone_as_long_as_it_asks(self, store, one, server, pauses):
        server.script["/big-lama.pt"] = [busy(429, retry_after=7), busy(503, "Wed, 21 Oct 2015 07:28:00 GMT")]
        store.get(one)
        assert pauses == [7, 2.0], "a date in the past is no wait, but twice in a row is"

    def test_a_server_that_asks_for_an_hour_is_told_of(self, store, one, server, pauses):
        server.script["/big-lama.pt"] = [busy(429, retry_after=3600)]
        with pytest.raises(DownloadError, match="not to be asked for 3600 seconds"):
            store.get(one)
        assert pauses == []

    def test_it_is_given_up_after_five_times_without_a_byte(self, store, one, server, pauses):
        server.script["/big-lama.pt"] = [cut(1000)] + [busy(503)] * 9
        with pytest.raises(
            DownloadError, match=r"can't be fetched: the server answered 503.*what has come is kept"
        ):
            store.get(one)
        assert pauses == [1, 1, 2, 4, 8]
        server.script.clear()
        assert got(store, one).read_bytes() == CONTENT
        assert server.requests[-1] == ("/big-lama.pt", "bytes=1000-")

    def test_a_server_that_stalls_is_asked_again(self, tmp_path, one, server):
        store = WeightStore(tmp_path / "store", stall=0.2, pause=lambda seconds: None)
        slow = stall(600_000)
        server.script["/big-lama.pt"] = [slow]
        assert got(store, one).read_bytes() == CONTENT
        slow.gate.open()
        assert server.requests[-1][1] == "bytes=600000-"

    def test_redirects_are_followed(self, store, one, server):
        server.files["/elsewhere"] = CONTENT
        server.script["/big-lama.pt"] = [redirect(f"{server.url}/elsewhere")]
        assert got(store, one).read_bytes() == CONTENT

    def test_redirects_in_a_circle_end(self, store, one, server):
        server.script["/big-lama.pt"] = [redirect(f"{server.url}/big-lama.pt")] * 50
        with pytest.raises(DownloadError, match="Look at the URL"):
            store.get(one)

    def test_wrong_bytes_are_set_aside_and_never_loaded(self, store, one, server):
        server.script["/big-lama.pt"] = [other_bytes(CONTENT[::-1])]
        with pytest.raises(DownloadError, match="its hash or size differs; it is now") as error:
            store.get(one)
        (aside,) = store.root.rglob("*.wrong-*")
        assert str(aside) in str(error.value)
        assert aside.read_bytes() == CONTENT[::-1]
        assert store.missing(one) == one.weights
        assert got(store, one).read_bytes() == CONTENT

    def test_a_file_that_changes_on_the_server_between_two_parts(self, store, server):
        server.files["/a.pt"] = CONTENT
        info = model(WeightFile(url=f"{server.url}/a.pt", sha256=SHA256))

        def old(server, request):
            server.files["/a.pt"] = CONTENT[::-1]
            cut(500_000)(server, request)
            server.files["/a.pt"] = CONTENT

        server.script["/a.pt"] = [old]
        assert got(store, info).read_bytes() == CONTENT

    def test_a_part_that_is_none_is_begun_anew(self, store, one):
        place = store.place(one, one.weights[0])
        place.parent.mkdir(parents=True)
        for rest in (CONTENT[::-1][:5000], CONTENT + b"more", b"x" * len(CONTENT)):
            place.with_name("big-lama.pt.part").write_bytes(rest)
            assert got(store, one).read_bytes() == CONTENT
            place.unlink()

    @pytest.mark.parametrize(("status", "words"), [(404, "Look whether it has moved"), (403, "It needs a login")])
    def test_a_file_that_is_not_there(self, store, server, status, words):
        server.headers["/gone.pt"] = {"X-Status": str(status)}
        with pytest.raises(DownloadError, match=f"answered {status}. {words}"):
            store.get(model(WeightFile(url=f"{server.url}/gone.pt", md5=MD5)))
        assert len(server.requests) == 1

    def test_nobody_answers(self, store, pauses):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{unused.getsockname()[1]}/a.pt"
            with pytest.raises(DownloadError, match="can't be fetched"):
                store.get(model(WeightFile(url=url, md5=MD5)))
        assert len(pauses) == 4

    def test_a_disk_without_room_for_it_is_told_before(self, store, one, server):
        server.script["/big-lama.pt"] = [says_it_has(10**16)]
        with pytest.raises(DownloadError, match=r"10000000\.00 GB more are needed, and .* are free.*Make room"):
            store.get(one)

    def test_a_disk_that_fills_up_leaves_no_half_file_under_the_name(self, store, one):
        place = store.place(one, one.weights[0])
        place.parent.mkdir(parents=True)
        place.with_name("big-lama.pt.part").symlink_to("/dev/full")
        with pytest.raises(DownloadError, match=r"No space left on device.*Make room and try again"):
            store.get(one)
        assert not place.exists()

    def test_progress_tells_bytes_and_ends_the_download(self, tmp_path, one, server):
        seen = []

        def progress(file, done, total):
            seen.append((file.filename, done, total))
            if len(seen) == 2:
                raise KeyboardInterrupt

        store = WeightStore(tmp_path / "store", progress=progress)
        with pytest.raises(KeyboardInterrupt):
            store.get(one)
        assert seen[0] == ("big-lama.pt", seen[0][1], len(CONTENT))
        assert store.verify([one])[0].state.value == "partial"
        assert got(store, one).read_bytes() == CONTENT
        assert server.requests[-1][1] == f"bytes={seen[1][1]}-"
        assert seen[-1] == ("big-lama.pt", len(CONTENT), len(CONTENT))

    def test_a_url_in_the_clear_needs_a_hash(self, store, server):
        with pytest.raises(DownloadError, match="not encrypted, and no hash is declared"):
            store.get(model(WeightFile(url=f"{server.url}/a.pt")))
        assert server.requests == []

    def test_a_host_that_wants_https_alone_gets_nothing_else(self, tmp_path, one, server):
        store = WeightStore(tmp_path / "store", https_only=True)
        with pytest.raises(DownloadError, match="takes weights over https alone"):
            store.get(one)
        assert server.requests == []


FETCH = """
import sys
from pathlib import Path
from iopaint_core import ModelInfo, ModelType, WeightFile, WeightStore

url, sha256, root = sys.argv[1:]
file = WeightFile(url=url, sha256=sha256)
info = ModelInfo("lama", ModelType.INPAINT, "lama", distribution="us", weights=(file,))
print(WeightStore(Path(root)).get(info))
"""


@pytest.mark.process
class TestProcesses:
    def fetch(self, server, root):
        command = [sys.executable, "-c", FETCH, f"{server.url}/big-lama.pt", SHA256, str(root)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def test_two_that_fetch_the_same_fetch_it_once(self, one, server, tmp_path):
        processes = [self.fetch(server, tmp_path / "store") for _ in range(3)]
        assert [process.communicate(timeout=60)[0] and process.returncode for process in processes] == [0, 0, 0]
        assert [path for path, _ in server.requests] == ["/big-lama.pt"]

    def test_one_that_is_killed_leaves_a_store_that_is_sound_and_a_download_that_goes_on(self, store, one, server):
        slow = stall(600_000)
        server.script["/big-lama.pt"] = [slow]
        process = self.fetch(server, store.root)
        part = store.place(one, one.weights[0]).with_name("big-lama.pt.part")
        slow.gate.wait_until_reached()
        until(lambda: part.exists() and part.stat().st_size)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=20)
        slow.gate.open()
        assert [each.state.value for each in store.verify([one])] == ["partial"]
        assert not store.place(one, one.weights[0]).exists()
        assert got(store, one).read_bytes() == CONTENT
        assert server.requests[-1][1].startswith("bytes=")


class TestOffline:
    @pytest.fixture(autouse=True)
    def _no_network(self, monkeypatch):
        def connect(*args):
            raise AssertionError("a connection was opened")

        monkeypatch.setattr(socket.socket, "connect", connect)
        monkeypatch.setattr(socket, "getaddrinfo", connect)

    def test_a_file_of_a_repository_without_a_hash_is_not_any_of_its_name(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        store = WeightStore(tmp_path, offline=True)
        one, other = (WeightFile(repo=f"a/{name}", filename="model.safetensors") for name in ("one", "other"))
        stray = tmp_path / "torch" / "hub" / "checkpoints" / "model.safetensors"
        for path in (stray, store.place(model(one), one)):
            path.parent.mkdir(parents=True)
            path.write_bytes(b"weights")
        assert store.missing(model(one, other)) == (other,)
        trusted = replace(other, sha256=hashlib.sha256(b"weights").hexdigest())
        assert store.missing(model(trusted)) == ()

    def test_the_error_says_what_is_missing_and_where_to_put_it(self, tmp_path):
        store = WeightStore(tmp_path, offline=True)
        files = (
            WeightFile(url="https://a.example/big-lama.pt", size=205_000_000),
            WeightFile(repo="a/b", filename="c/model.pth"),
        )
        with pytest.raises(MissingWeightsError) as error:
            store.get(model(*files))
        folder = tmp_path / "weights" / "us" / "lama"
        for words in (
            f"big-lama.pt (https://a.example/big-lama.pt, 205.0 MB) to be put at {folder}/big-lama.pt",
            f"c/model.pth (https://huggingface.co/a/b/blob/main/c/model.pth) to be put at {folder}/a/b/c/model.pth",
            "iopaint-core download lama",
        ):
            assert words in str(error.value)

    @pytest.mark.parametrize("variable", ["IOPAINT_OFFLINE", "HF_HUB_OFFLINE"])
    def test_the_environment_asks_for_it(self, plugins, tmp_path, monkeypatch, variable):
        monkeypatch.setenv(variable, "1")
        monkeypatch.setenv("IOPAINT_HOME", str(tmp_path))

        @hookimpl
        def iopaint_available_models():
            return [model(WeightFile(url="https://a.example/big-lama.pt", md5=MD5))]

        plugins.register(make_plugin("lama", iopaint_available_models=iopaint_available_models), "lama")
        with pytest.raises(MissingWeightsError):
            ModelManager(plugins).load("lama")

    def test_what_is_put_there_is_used(self, tmp_path):
        store = WeightStore(tmp_path, offline=True)
        info = model(WeightFile(repo="a/b", filename="c/model.pth", sha256=SHA256))
        place = store.place(info, info.weights[0])
        place.parent.mkdir(parents=True)
        place.write_bytes(CONTENT)
        assert got(store, info) == place


class TestHub:
    def test_a_file_comes_to_the_cache_that_all_programs_share(self, store, hub, tmp_path):
        hub("a/b", "c/model.pth", CONTENT)
        info = model(WeightFile(repo="a/b", filename="c/model.pth", sha256=SHA256))
        path = got(store, info)
        assert path.is_relative_to(tmp_path / "home/.cache/huggingface/hub/models--a--b")
        assert path.read_bytes() == CONTENT
        assert store.missing(info) == ()
        store.offline = True
        assert got(store, info) == path

    def test_a_cut_is_mended(self, store, hub, server):
        path = hub("a/b", "model.pth", CONTENT)
        server.script[path] = [cut(500_000)]
        info = model(WeightFile(repo="a/b", filename="model.pth", sha256=SHA256))
        assert got(store, info).read_bytes() == CONTENT
        ranges = [span for asked, span in server.requests if asked == path]
        assert ranges[0] is None
        assert ranges[1] != "bytes=0-"

    def test_two_programs_that_fetch_the_same_fetch_it_once(self, store, hub, server, tmp_path):
        path = hub("a/b", "model.pth", CONTENT)
        info = model(WeightFile(repo="a/b", filename="model.pth", sha256=SHA256))
        paths = together(3, lambda i: got(WeightStore(tmp_path / str(i)), info))
        assert len(set(paths)) == 1
        assert [asked for asked, _ in server.requests] == [path]

    def test_another_revision_is_another_file(self, store, hub):
        hub("a/b", "model.pth", CONTENT, revision="v2")
        assert (
            got(store, model(WeightFile(repo="a/b", filename="model.pth", revision="v2"))).read_bytes() == CONTENT
        )

    def test_a_file_that_is_not_the_declared_one_is_not_used(self, store, hub):
        hub("a/b", "model.pth", CONTENT)
        with pytest.raises(DownloadError, match="is not the file that was declared"):
            store.get(model(WeightFile(repo="a/b", filename="model.pth", sha256="0" * 64)))

    @pytest.mark.parametrize(
        ("status", "code", "words"),
        [
            (401, "RepoNotFound", r"has no repository a/b, or it is private.*Look at the name"),
            (403, "GatedRepo", r"a/b is gated.*hf auth login"),
            (404, "RevisionNotFound", "a/b has no revision main"),
            (404, "EntryNotFound", r"a/b has no file model\.pth"),
        ],
    )
    def test_what_the_hub_refuses_is_said_with_what_to_do(self, store, hub, server, status, code, words):
        server.headers["/a/b/resolve/main/model.pth"] = {
            "X-Status": str(status),
            "X-Error-Code": code,
            "X-Repo-Commit": "0" * 40,
        }
        with pytest.raises(DownloadError, match=words):
            store.get(model(WeightFile(repo="a/b", filename="model.pth")))

    @pytest.mark.usefixtures("no_pauses")
    def test_a_hub_that_does_not_answer_is_not_taken_for_one_that_lacks_the_file(self, store, monkeypatch):
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(DownloadError, match=r"a/b/model\.pth can't be fetched: .*Look at the connection"):
            store.get(model(WeightFile(repo="a/b", filename="model.pth")))


class TestOwn:
    def test_a_users_own_file_takes_the_place_of_one(self, store, tmp_path):
        info = model(WeightFile(url="https://nowhere.invalid/upscaler.pth", md5=MD5))
        (tmp_path / "mine.pth").write_bytes(b"mine")
        given = {"upscaler.pth": tmp_path / "mine.pth"}
        assert store.get(info, given) == given

    def test_one_that_can_run_code_needs_its_hash_or_trust(self, store, tmp_path):
        info = model(WeightFile(url="https://nowhere.invalid/big-lama.pt", md5=MD5, runs_code=True))
        (tmp_path / "mine.pt").write_bytes(b"mine")
        given = {"big-lama.pt": tmp_path / "mine.pt"}
        with pytest.raises(UntrustedWeightsError, match=r"mine\.pt can run code when it is loaded.*--trust"):
            store.get(info, given)
        assert WeightStore(tmp_path / "store", trust=True).get(info, given) == given
        (tmp_path / "mine.pt").write_bytes(CONTENT)
        assert store.get(info, given) == given

    def test_code_whose_hash_nobody_declared_is_not_even_fetched(self, store, server, tmp_path):
        server.files["/a.pt"] = CONTENT
        info = model(WeightFile(url="https://nowhere.invalid/a.pt", runs_code=True))
        with pytest.raises(UntrustedWeightsError, match="no hash is declared for it"):
            store.get(info)

    def test_a_name_that_the_model_does_not_have(self, store, tmp_path):
        info = model(WeightFile(url="https://nowhere.invalid/a.pt"))
        with pytest.raises(WeightsError, match=r"lama has no weights called b\.pt\. Its files are: a\.pt"):
            store.get(info, {"b.pt": tmp_path / "b.pt"})

    def test_a_file_that_is_not_there(self, store, tmp_path):
        info = model(WeightFile(url="https://nowhere.invalid/a.pt"))
        with pytest.raises(WeightsError, match=r"mine\.pt can't be read: No such file"):
            store.get(info, {"a.pt": tmp_path / "mine.pt"})


class TestKept:
    @pytest.fixture
    def two(self, server):
        """Two models with one file in common."""
        for name in ("one", "two", "common"):
            server.files[f"/{name}.pt"] = name.encode() * 100

        def file(name):
            return WeightFile(
                url=f"{server.url}/{name}.pt", md5=hashlib.md5(server.files[f"/{name}.pt"]).hexdigest()
            )

        return [model(file(name), file("common"), name=name) for name in ("one", "two")]

    def test_verify_hashes_everything_anew(self, store, two):
        one, other = two
        store.get(one)
        path = store.place(one, one.weights[0])
        state = path.stat()
        path.write_bytes(path.read_bytes()[::-1])
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
        states = {each.file.filename: each.state.value for each in store.verify([one])}
        assert states == {"one.pt": "wrong", "common.pt": "whole"}
        assert {each.state.value for each in store.verify([other])} == {"missing", "whole"}

    def test_another_model_may_declare_another_hash_of_a_file(self, store, one, server):
        path = got(store, one)
        other = model(WeightFile(url=one.weights[0].url, md5=MD5))
        assert got(store, other) == got(store, one) == path
        assert len(server.requests) == 1

    def test_remove_takes_only_what_no_other_model_uses(self, store, two):
        one, other = two
        for info in two:
            store.get(info)
        assert [path.name for path in store.remove(one, two)] == ["one.pt"]
        assert store.missing(one) == one.weights[:1]
        assert store.missing(other) == ()
        assert [path.name for path in store.remove(other, [])] == ["common.pt", "two.pt"]

    def test_remove_takes_what_has_come_of_a_file_too(self, store, one, server):
        server.script["/big-lama.pt"] = [cut(1000)] + [busy(503)] * 9
        with pytest.raises(DownloadError):
            store.get(one)
        assert [path.name for path in store.remove(one, [])] == ["big-lama.pt.part"]
        assert store.verify([one])[0].state.value == "missing"

    def test_remove_leaves_other_programs_files(self, store, two, tmp_path):
        folder = tmp_path / "home/.cache/torch/hub/checkpoints"
        folder.mkdir(parents=True)
        (folder / "one.pt").write_bytes(b"one" * 100)
        assert store.remove(two[0], []) == []
        assert (folder / "one.pt").exists()


def test_a_loader_gets_its_files_by_name(plugins, server, tmp_path):
    server.files["/big-lama.pt"] = CONTENT
    seen = []

    @hookimpl
    def iopaint_available_models():
        return [model(WeightFile(url=f"{server.url}/big-lama.pt", md5=MD5))]

    @hookimpl
    def iopaint_load_model(info, context):
        seen.append(context.weights("big-lama.pt"))
        if context.dtype:
            context.weights("small-lama.pt")
        return Red()

    hooks = {"iopaint_available_models": iopaint_available_models, "iopaint_load_model": iopaint_load_model}
    plugins.register(make_plugin("lama", **hooks), "lama")
    manager = ModelManager(plugins, context=LoadContext(cache=tmp_path))
    with pytest.raises(MissingWeightsError):
        manager.forecast("lama")
    assert server.requests == []
    manager.preload("lama")
    manager.preload("lama")
    assert seen == [tmp_path / "weights" / "host" / "lama" / "big-lama.pt"]
    (tmp_path / "mine.pt").write_bytes(b"mine")
    with manager.load("lama", weights={"big-lama.pt": tmp_path / "mine.pt"}):
        assert seen[-1] == tmp_path / "mine.pt"
        assert len(manager.pool.stats().leases) == 2, "they are two models"
    bad = ModelManager(plugins, context=LoadContext(cache=tmp_path, dtype="float16"))
    with pytest.raises(ModelLoadError, match=r"lama has no weights called small-lama\.pt"):
        bad.load("lama")
