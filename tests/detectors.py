"""A face detector with the inputs and outputs of YuNet, for OpenCV to run, that finds what a test has drawn."""

import math

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from onnxfiles import save

POINTS = np.array(
    [
        [192.98138, 239.94708],
        [318.90277, 240.1936],
        [256.63416, 314.01935],
        [201.26117, 371.41043],
        [313.08905, 371.15118],
    ]
)
"""The five points of an aligned face of 512 x 512 pixels."""
BLUE = (0, 0, 255)
_CELL = 8


def mark(image, x, y, cells=1):
    """Draw a face for the detector: it is around the middle of a blue square, which begins at a multiple of 8."""
    image[y : y + cells * _CELL, x : x + cells * _CELL] = BLUE
    return x + cells * _CELL / 2, y + cells * _CELL / 2


def face_points(side, angle=0.0):
    """Where the five points are of a face in a square of that side, turned by an angle, from its middle on."""
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return (POINTS - 255.5) @ turn * side / 512


def save_yunet(path, side=96, angle=0.0):
    """Write the detector as an ONNX file: each blue cell of 8 x 8 pixels is the middle of a face.

    It takes BGR in 0 ... 255, and has the three outputs of 8, 16 and 32 pixels that OpenCV decodes; those of the
    latter two find nothing.
    """
    nodes, outputs, tensors = [], [], []
    for stride in (8, 16, 32):
        finding = np.zeros((1, 3, stride, stride), np.float32)
        if stride == _CELL:
            finding[0] = np.array([1, -1, -1])[:, None, None] / (255 * stride**2)
        box = [0.5, 0.5, *[math.log(side * 0.7 / stride)] * 2]
        points = (0.5 + face_points(side, angle) / stride).ravel()
        for name, kernel, bias in (
            ("cls", finding, [0]),
            ("obj", finding, [0]),
            ("bbox", np.zeros((4, 3, stride, stride), np.float32), box),
            ("kps", np.zeros((10, 3, stride, stride), np.float32), points),
        ):
            out, count = f"{name}_{stride}", (640 // stride) ** 2
            tensors += [
                numpy_helper.from_array(kernel, f"{out}.weight"),
                numpy_helper.from_array(np.asarray(bias, np.float32), f"{out}.bias"),
                numpy_helper.from_array(np.array([1, -1, len(bias)]), f"{out}.shape"),
            ]
            nodes += [
                helper.make_node(
                    "Conv",
                    ["input", f"{out}.weight", f"{out}.bias"],
                    [f"{out}.map"],
                    strides=[stride] * 2,
                    kernel_shape=[stride] * 2,
                ),
                helper.make_node("Transpose", [f"{out}.map"], [f"{out}.last"], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [f"{out}.last", f"{out}.shape"], [out]),
            ]
            outputs.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, [1, count, len(bias)]))
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 640, 640])
    save(helper.make_graph(nodes, "yunet", [given], outputs, tensors), path)
    return path
