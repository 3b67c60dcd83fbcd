from iopaint_core import ModelManager, read_mask, read_picture, scan_models, write_picture

print([info.name for info in scan_models()])  # ['CodeFormer', ..., 'cv2', 'patchmatch', ...]
manager = ModelManager()
picture = read_picture("examples/astronaut.jpg")
repaired = manager.inpaint("patchmatch", picture.rgb, read_mask("examples/astronaut-mask.png"))
write_picture(picture.repaired(repaired), "repaired.jpg")
