"""Small upscalers with random weights, in the format in which they are published."""

import re

import torch
from spandrel.architectures.Compact import Compact
from spandrel.architectures.ESRGAN import ESRGAN


def make_compact(seed=0, scale=4, channels=3):
    """As realesr-general-x4v3, with 2 of its 32 convolutions."""
    torch.manual_seed(seed)
    return Compact(num_in_ch=channels, num_out_ch=channels, num_feat=8, num_conv=2, upscale=scale).eval()


def make_esrgan(seed=0, blocks=1):
    """As RealESRGAN_x4plus, with 1 of its 23 blocks."""
    torch.manual_seed(seed)
    return ESRGAN(num_filters=8, num_blocks=blocks).eval()


_NAMES = {
    r"model\.0\.": "conv_first.",
    r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.": r"body.\1.rdb\2.conv\3.",
    r"model\.1\.sub\.\d+\.": "conv_body.",
    r"model\.3\.": "conv_up1.",
    r"model\.6\.": "conv_up2.",
    r"model\.8\.": "conv_hr.",
    r"model\.10\.": "conv_last.",
}


def published(network):
    """The state dict under the names that Real-ESRGAN's authors publish, which spandrel's class has otherwise."""
    state = network.state_dict()
    if isinstance(network, ESRGAN):
        return {_published_name(name): tensor for name, tensor in state.items()}
    return state


def _published_name(name):
    return next(re.sub(old, new, name) for old, new in _NAMES.items() if re.match(old, name))


def upscaled(network, image):
    """What a network makes of an RGB `uint8` image as a whole."""
    with torch.no_grad():
        result = network(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)[0].permute(1, 2, 0)
    return (result.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
