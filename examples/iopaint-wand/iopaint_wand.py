"""A magic wand: finds what is of the colour that was clicked on, as far as it is connected.

What is computed of an image once, `encode` returns; a session keeps it for the clicks that follow:

    with manager.session("wand", image) as session:
        first = session.run({"clicks": [(120, 80, 1)]})
        better = session.run({"clicks": [(120, 80, 1), (300, 90, 0)]})
"""

from iopaint_core import Click, InputError, MaskModel, ModelInfo, Result, Task, hookimpl

TOLERANCES = (8, 16, 32)
"""How far colours may be from the one clicked on, in steps of Lab; a mask for each."""


class Wand(MaskModel):
    def encode(self, image):
        import cv2

        return cv2.cvtColor(cv2.medianBlur(image, 5), cv2.COLOR_RGB2LAB)

    def decode(self, state, parameters):
        import numpy as np

        clicks = parameters.clicks or [
            Click((box.left + box.right) // 2, (box.top + box.bottom) // 2) for box in parameters.boxes
        ]
        taken = [click for click in clicks if click.positive]
        left_out = [click for click in clicks if not click.positive]
        if not taken:
            raise InputError("wand was not told what to find", "Give a positive click, or a box around it")

        allowed = np.full(state.shape[:2], 0 if parameters.boxes else 255, np.uint8)
        for box in parameters.boxes:
            allowed[box.slices] = 255

        def found(tolerance):
            return grown(state, taken, tolerance) & ~grown(state, left_out, tolerance) & allowed

        masks = np.stack([found(tolerance) for tolerance in TOLERANCES])
        wider = [found(tolerance + tolerance // 4) for tolerance in TOLERANCES]
        return Result(masks=masks, scores=tuple(map(overlap, masks, wider)))


def grown(lab, clicks, tolerance):
    """Return what is connected to one of the clicks and of its colour."""
    import cv2
    import numpy as np

    height, width = lab.shape[:2]
    flags = 4 | cv2.FLOODFILL_MASK_ONLY | cv2.FLOODFILL_FIXED_RANGE | 255 << 8
    whole = np.zeros((height, width), np.uint8)
    for click in clicks:
        filled = np.zeros((height + 2, width + 2), np.uint8)  # OpenCV wants a border
        cv2.floodFill(lab, filled, (click.x, click.y), 0, (tolerance,) * 3, (tolerance,) * 3, flags)
        whole |= filled[1:-1, 1:-1] & 255
    return whole


def overlap(mask, other):
    """Return how much of two masks is common, from 0 to 1: a mask that hardly grows has found an edge."""
    either = ((mask | other) > 0).sum()
    return float(((mask & other) > 0).sum() / either) if either else 0.0


@hookimpl
def iopaint_available_models():
    return [ModelInfo(name="wand", task=Task.SEGMENT, title="Magic wand")]


@hookimpl
def iopaint_load_model(info, context):
    return Wand()
