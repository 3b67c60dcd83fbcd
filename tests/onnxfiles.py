"""Small networks in ONNX files, made with the `onnx` package."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def save_network(path, size, *, channels=1, kernel=3, seed=0, scale=0.3):
    """A convolution from a picture of a size to some channels, as networks that cut out have them."""
    random = np.random.default_rng(seed)
    weights = random.normal(0, scale, (channels, 3, kernel, kernel)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["input.1", "weights"], ["matte"], pads=[kernel // 2] * 4)],
        "network",
        [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [1, 3, size, size])],
        [helper.make_tensor_value_info("matte", TensorProto.FLOAT, [1, channels, size, size])],
        [numpy_helper.from_array(weights, "weights")],
    )
    save(graph, path)
    return path


def save_wide(path, width=64):
    """A network that has more on its way than it takes and gives: `width` channels for three."""
    random = np.random.default_rng(0)
    tensors = [
        numpy_helper.from_array(random.normal(0, 0.1, shape).astype(np.float32), name)
        for name, shape in (("into", (width, 3, 1, 1)), ("out", (1, width, 1, 1)))
    ]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "into"], ["wide"]),
            helper.make_node("Conv", ["wide", "out"], ["matte"]),
        ],
        "wide",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, "height", "width"])],
        [helper.make_tensor_value_info("matte", TensorProto.FLOAT, [1, 1, "height", "width"])],
        tensors,
    )
    save(graph, path)
    return path


def save_heavy(path, side=3000):
    """A network of `4 * side ** 2` bytes."""
    given, made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, side]) for name in ("a", "b"))
    weights = numpy_helper.from_array(np.zeros((side, side), np.float32), "weights")
    product = helper.make_node("MatMul", ["a", "weights"], ["b"])
    save(helper.make_graph([product], "heavy", [given], [made], [weights]), path)
    return path


def save(graph, path, **how):
    """Write a graph as every onnxruntime of these years reads it."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path, **how)
