"""Small networks in ONNX files, made with the `onnx` package."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def save_network(path, size, *, name="input.1", channels=1, seed=0, scale=0.1, free=False, padding=b"", dtype=None):
    """A convolution of 7 x 7 pixels from a picture of a size to some channels, as networks that cut out have them.

    With `free`, height and width are names. `padding` makes files of equal networks differ.
    """
    random = np.random.default_rng(seed)
    weights = random.normal(0, scale, (channels, 3, 7, 7)).astype(np.float32)
    sides = ["height", "width"] if free else [size, size]
    graph = helper.make_graph(
        [helper.make_node("Conv", [name, "weights"], ["matte"], pads=[3, 3, 3, 3])],
        "network",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, *sides])],
        [helper.make_tensor_value_info("matte", TensorProto.FLOAT, [1, channels, *sides])],
        [numpy_helper.from_array(weights, "weights")],
        doc_string=padding.decode(),
    )
    save(graph, path)
    return path


def save_wide(path, width=64, megabytes=0):
    """A network that has more on its way than it takes and gives: `width` channels for three, twice.

    `megabytes` are weights that it holds beside.
    """
    random = np.random.default_rng(0)
    tensors = [
        numpy_helper.from_array(random.normal(0, 0.1, shape).astype(np.float32), name)
        for name, shape in (
            ("into", (width, 3, 1, 1)),
            ("out", (1, width, 1, 1)),
            ("ballast", (max(1, megabytes * 250_000),)),
        )
    ]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "into"], ["a"]),
            helper.make_node("Sigmoid", ["a"], ["b"]),
            helper.make_node("Conv", ["b", "out"], ["c"]),
            helper.make_node("ReduceMax", ["ballast"], ["d"], keepdims=0),
            helper.make_node("Add", ["c", "d"], ["matte"]),
        ],
        "wide",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, "height", "width"])],
        [helper.make_tensor_value_info("matte", TensorProto.FLOAT, [1, 1, "height", "width"])],
        tensors,
    )
    save(graph, path)
    return path


def save(graph, path, **how):
    """Write a graph as every onnxruntime of these years reads it."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path, **how)
