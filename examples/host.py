from iopaint_core import ModelManager, read_mask, read_picture, write_picture

manager = ModelManager()
print([info.name for info in manager.scan().models])
picture = read_picture("examples/astronaut.jpg")
repaired = manager.inpaint("cv2", picture.rgb, read_mask("examples/astronaut-mask.png"))
write_picture(picture.repaired(repaired), "repaired.jpg")
