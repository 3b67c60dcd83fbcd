"""Folders of the Hugging Face hub come into the cache that all programs share, once."""

import json
import shutil

import pytest

from iopaint_core import DownloadError, LoadContext, MissingWeightsError, hub_folder

INDEX = {
    "_class_name": "A",
    "unet": ["diffusers", "UNet"],
    "tokenizer": ["transformers", "T"],
    "safety": [None, None],
}
FILES = {
    "model_index.json": json.dumps(INDEX),
    "unet/config.json": "{}",
    "unet/diffusion_pytorch_model.safetensors": "weights",
    "unet/diffusion_pytorch_model.bin": "a pickle",
    "tokenizer/vocab.json": "{}",
    "tokenizer/merges.txt": "",
    "README.md": "words",
    "everything.safetensors": "weights",
}
OFFLINE = LoadContext(offline=True)


@pytest.fixture
def repository(hub):
    for name, content in FILES.items():
        hub("a/b", name, content.encode())


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("repository")
class TestFolder:
    def test_weights_come_in_safetensors_alone(self, tmp_path):
        folder = hub_folder("a/b", LoadContext())
        assert folder.is_relative_to(tmp_path / "home/.cache/huggingface/hub/models--a--b")
        assert files(folder) == set(FILES) - {
            "README.md",
            "everything.safetensors",
            "unet/diffusion_pytorch_model.bin",
        }

    def test_without_weights_configs_and_tokenizers_come(self):
        folder = hub_folder("a/b", LoadContext(), weights=False)
        assert files(folder) == {
            "model_index.json",
            "unet/config.json",
            "tokenizer/vocab.json",
            "tokenizer/merges.txt",
        }

    @pytest.mark.parametrize("context", [LoadContext(), OFFLINE])
    def test_what_was_fetched_once_needs_no_connection(self, server, context):
        folder = hub_folder("a/b", LoadContext())
        server.requests.clear()
        assert hub_folder("a/b", context) == folder
        assert hub_folder("a/b", context, weights=False) == folder
        assert server.requests == []

    def test_weights_are_fetched_when_only_configs_are_there(self):
        hub_folder("a/b", LoadContext(), weights=False)
        with pytest.raises(MissingWeightsError):
            hub_folder("a/b", OFFLINE)
        assert "unet/diffusion_pytorch_model.safetensors" in files(hub_folder("a/b", LoadContext()))

    @pytest.mark.parametrize("lost", ["model_index.json", "tokenizer"])
    def test_what_is_lost_is_fetched_again(self, lost):
        path = hub_folder("a/b", LoadContext()) / lost
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        hub_folder("a/b", LoadContext())
        assert path.exists()


def test_offline_a_missing_folder_is_named(server, hub, tmp_path):
    with pytest.raises(MissingWeightsError, match=r"a/b is needed, and is not in .*/hub\..*hf download a/b"):
        hub_folder("a/b", OFFLINE)
    assert server.requests == []


@pytest.mark.usefixtures("no_pauses")
def test_a_hub_that_does_not_answer_is_not_taken_for_one_that_lacks_the_file(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match=r"a/b.* can't be fetched: .*Look at the connection"):
        hub_folder("a/b", LoadContext())


def test_a_repository_that_does_not_exist_is_said_to_be_none(server, hub):
    server.headers["/api/models/a/b/revision/main"] = {"X-Status": "401", "X-Error-Code": "RepoNotFound"}
    with pytest.raises(DownloadError, match="The hub has no repository a/b"):
        hub_folder("a/b", LoadContext())
