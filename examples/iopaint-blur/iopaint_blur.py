from iopaint_core import InpaintModel, ModelInfo, ModelType, hookimpl


class Blur(InpaintModel):
    def forward(self, image, mask, parameters):
        import cv2  # heavy imports stand where they are used, so that listing models stays quick

        return cv2.GaussianBlur(image, (31, 31), 0)


@hookimpl
def iopaint_available_models():
    return [ModelInfo(name="blur", type=ModelType.PLUGIN)]


@hookimpl
def iopaint_load_model(info, context):
    return Blur()
