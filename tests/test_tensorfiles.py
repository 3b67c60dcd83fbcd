"""What a folder's weights are, and what a header alone tells: no torch is needed for either."""

import json
import os
import subprocess
import sys

import checkpointfiles as files
import pytest

from iopaint_core import TensorFiles, WeightsError, model_folders, tensor_shapes


def found(folder, **options):
    return [path.name for path in TensorFiles.find(folder, **options).paths]


def put(folder, *names):
    for name in names:
        (folder / name).touch()


def put_index(folder, name, *shards):
    put(folder, *shards)
    (folder / name).write_text(json.dumps({"weight_map": dict(enumerate(shards))}))


class TestFind:
    @pytest.mark.parametrize(
        "names",
        [
            ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model_promax.safetensors"),
            ("model.safetensors", "open_clip_model.safetensors"),
            ("model.safetensors", "model.fp16.safetensors", "model.non_ema.safetensors"),
            ("a_model.safetensors", "a_model.fp16.safetensors", "other.safetensors"),
            ("anything.safetensors",),
        ],
    )
    def test_the_file_that_a_library_saves_is_taken(self, tmp_path, names):
        put(tmp_path, *names)
        assert found(tmp_path) == [names[0]]

    @pytest.mark.parametrize("stem", ["model", "some_library_model"])
    def test_a_variant_is_another_file(self, tmp_path, stem):
        put(tmp_path, f"{stem}.safetensors", f"{stem}.fp16.safetensors")
        assert found(tmp_path, variant="fp16") == [f"{stem}.fp16.safetensors"]

    @pytest.mark.parametrize(
        "index", ["a_model.safetensors.index.fp16.json", "a_model.fp16.safetensors.index.json"]
    )
    def test_shards_of_a_variant_go_before_one_file(self, tmp_path, index):
        put(tmp_path, "a_model.safetensors", "a_model.fp16.safetensors")
        put_index(tmp_path, index, "1.safetensors", "2.safetensors")
        assert found(tmp_path, variant="fp16") == ["1.safetensors", "2.safetensors"]
        assert found(tmp_path) == ["a_model.safetensors"]

    def test_two_that_may_be_meant_are_an_error_that_names_them(self, tmp_path):
        put(tmp_path, "a_model.safetensors")
        put_index(tmp_path, "b_model.safetensors.index.json", "1.safetensors")
        with pytest.raises(
            WeightsError,
            match=r"no single \*_model\.safetensors, .*: 1\.safetensors, a_model\.safetensors.*Name the",
        ):
            found(tmp_path)


@pytest.mark.process
def test_shapes_are_read_without_torch_and_safetensors(tmp_path):
    path = files.write(tmp_path / "file.safetensors", {"a": [2, 3], "b": []})
    assert tensor_shapes(path) == {"a": [2, 3], "b": []}
    code = (
        "import sys; from pathlib import Path; from iopaint_core import tensor_shapes; "
        "tensor_shapes(Path(sys.argv[1])); print({'torch', 'safetensors', 'numpy'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_folders_of_the_user_are_separated_as_in_path(monkeypatch, tmp_path):
    monkeypatch.setenv("IOPAINT_MODEL_DIRS", os.pathsep.join((str(tmp_path / "a"), "", str(tmp_path / "b"))))
    assert model_folders() == (tmp_path / "a", tmp_path / "b")
    monkeypatch.delenv("IOPAINT_MODEL_DIRS")
    assert model_folders() == ()
