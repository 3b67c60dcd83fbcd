"""Small weights in the published formats, made with the libraries that read them."""

import functools
import hashlib
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from iopaint_core import LoadContext, ModelPool, module_component

VAE_FILE = "diffusion_pytorch_model.safetensors"
_session = tempfile.TemporaryDirectory(prefix="weights-")


def make_vae(seed=0, **config):
    torch.manual_seed(seed)
    return AutoencoderKL(**{"block_out_channels": (32,), "norm_num_groups": 8, **config}).eval()


def make_text_encoder(seed=0):
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=1,
        eos_token_id=2,
    )
    return CLIPTextModel(config).eval()


@functools.cache
def _saved(seed):
    """The folder of `save_model`: made once a session, and only read after that."""
    folder = Path(tempfile.mkdtemp(dir=_session.name))
    make_vae(seed).save_pretrained(folder / "vae")
    make_text_encoder(seed).save_pretrained(folder / "text_encoder")
    return folder


def save_model(folder, seed=0):
    """A folder with a VAE and a text encoder, as diffusers lays it out."""
    return shutil.copytree(_saved(seed), folder, dirs_exist_ok=True)


def hub_cache(folder, source, name="a/b"):
    """What `huggingface_hub` makes of a repository on a disk with symlinks: blobs named by sha256."""
    repository = folder / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    blobs = repository / "blobs"
    blobs.mkdir(parents=True)
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        content = path.read_bytes()
        large = path.suffix == ".safetensors"
        digest = hashlib.sha256(content).hexdigest() if large else hashlib.sha1(content).hexdigest()
        shutil.copyfile(path, blobs / digest)
        link = snapshot / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs / digest)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    return snapshot


def rewrite(path, change):
    """Write a safetensors file anew with `change` made to its tensors; none of them stays mapped."""
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    changed = change(tensors)
    path.unlink()
    save_file(tensors if changed is None else changed, path, metadata={"format": "pt"})


def loader(folder, context=None):
    """What a plugin does for a model in such a folder."""
    context = LoadContext() if context is None else context

    def load(share):
        return share(
            {
                "vae": module_component(AutoencoderKL, folder / "vae", context),
                "text_encoder": module_component(CLIPTextModel, folder / "text_encoder", context),
            }
        )

    return load


def held(*components):
    """How many sets of weights a pool holds for components that are all in use."""
    pool = ModelPool()
    leases = [pool.lease(i, lambda share, part=part: share({"it": part})) for i, part in enumerate(components)]
    count = len(pool.stats().components)
    for lease in leases:
        lease.close()
    return count


def encoded(vae):
    """What a VAE makes of a picture that is the same at each call."""
    pixels = torch.linspace(-1, 1, 3 * 32 * 32, dtype=vae.dtype).reshape(1, 3, 32, 32)
    with torch.no_grad():
        return vae.encode(pixels).latent_dist.mean


def read(text_encoder):
    """What a text encoder makes of a text that is the same at each call."""
    with torch.no_grad():
        return text_encoder(torch.arange(5)[None]).last_hidden_state


def digest(module):
    """The whole content of a module's weights."""
    total = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        total.update(name.encode())
        total.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


class LaMa(torch.nn.Module):
    """Takes and gives what LaMa's network does: a picture of 0 … 1 and a mask of 0 and 1, to a picture."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(4, 16, 7, padding=3, padding_mode="reflect"),
            torch.nn.ReLU(),
            torch.nn.Conv2d(16, 3, 7, padding=3, padding_mode="reflect"),
            torch.nn.Sigmoid(),
        )

    def forward(self, image, mask):
        painted = self.layers(torch.cat([image * (1 - mask), mask], 1))
        return mask * painted + (1 - mask) * image


def save_network(path, seed=0):
    """A network of LaMa's interface as TorchScript, as IOPaint publishes it."""
    network = LaMa(seed).eval()
    with torch.no_grad():
        traced = torch.jit.trace(network, (torch.rand(1, 3, 32, 32), torch.ones(1, 1, 32, 32)), check_trace=False)
    torch.jit.save(traced, path)
    return network
