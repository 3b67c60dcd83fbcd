import numpy as np
import PIL.Image
import pytest
from conftest import make_plugin, photograph

from iopaint_core import (
    ImageModel,
    InputError,
    IOPaintError,
    MaskModel,
    ModelManager,
    RequestError,
    Task,
    batch,
    read_mask,
    read_picture,
)
from iopaint_core.batch import Job, Options, Status, plan, run


@pytest.fixture
def folder(tmp_path):
    """Pictures `a.png`, `b.jpg` and `sub/c.png`, each with a mask of its stem below `masks`."""
    for name in (
        "photos/a.png",
        "photos/b.jpg",
        "photos/sub/c.png",
        "masks/a.png",
        "masks/b.png",
        "masks/sub/c.jpg",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = photograph() if name.startswith("photos") else mask_of_a_corner()
        PIL.Image.fromarray(image).save(path)
    return tmp_path


def mask_of_a_corner():
    mask = np.zeros((40, 60), np.uint8)
    mask[:16, :16] = 255
    return mask


def shapes(folder, jobs):
    return [
        (
            str(job.image.relative_to(folder)),
            [str(mask.relative_to(folder)) for mask in job.masks],
            str(job.output.relative_to(folder)),
        )
        for job in jobs
    ]


class TestPlan:
    def test_a_folder_pairs_masks_by_stem_and_keeps_names(self, folder):
        jobs = plan(folder / "photos", folder / "masks", folder / "out")
        assert shapes(folder, jobs) == [
            ("photos/a.png", ["masks/a.png"], "out/a.png"),
            ("photos/b.jpg", ["masks/b.png"], "out/b.jpg"),
        ]

    def test_recursive_looks_into_folders(self, folder):
        jobs = plan(folder / "photos", folder / "masks", folder / "out", recursive=True)
        assert shapes(folder, jobs)[-1] == ("photos/sub/c.png", ["masks/sub/c.jpg"], "out/sub/c.png")

    def test_one_mask_serves_all(self, folder):
        jobs = plan(folder / "photos", folder / "masks" / "a.png", folder / "out")
        assert [job.masks for job in jobs] == [(folder / "masks" / "a.png",)] * 2

    def test_results_and_masks_inside_the_folder_are_no_pictures(self, folder):
        photos = folder / "photos"
        (folder / "masks").rename(photos / "masks")
        (photos / "out").mkdir()
        PIL.Image.fromarray(photograph()).save(photos / "out" / "a.png")
        (photos / "._a.png").write_bytes(b"")
        (photos / "notes.txt").write_text("")
        jobs = plan(photos, photos / "masks", photos / "out", recursive=True)
        assert [job.image.name for job in jobs] == ["a.png", "b.jpg", "c.png"]

    @pytest.mark.parametrize(
        ("output", "expected"), [("out.webp", "out.webp"), ("out", "out/a.png"), ("masks", "masks/a.png")]
    )
    def test_a_picture_goes_to_a_file_or_into_a_folder(self, folder, output, expected):
        (job,) = plan(folder / "photos" / "a.png", None, folder / output)
        assert job.output == folder / expected

    @pytest.mark.parametrize(
        ("image", "mask", "output", "told"),
        [
            ("photos/none.png", None, "out", r"There is no file or folder .*none\.png"),
            ("photos/a.png", "none.png", "out", r"There is no file or folder .*none\.png"),
            ("photos", None, "masks/a.png", "is a folder and .* is a file"),
            ("empty", None, "out", "holds no pictures"),
            ("photos/a.png", None, "out.gif", "no suffix of a known format"),
            ("photos/a.png", "masks/a.png", "photos/a.png", r"would overwrite .*a\.png.*--overwrite"),
            ("photos/a.png", "masks/a.png", "photos", "would overwrite"),
            ("photos/a.png", "masks/a.png", "masks", "would overwrite"),
            ("photos", "masks", "photos", "would overwrite"),
            ("photos/a.png", "masks/a.png", "link.png", "would overwrite"),
        ],
    )
    def test_what_can_not_be_meant_is_refused(self, folder, image, mask, output, told):
        (folder / "empty").mkdir()
        (folder / "link.png").symlink_to(folder / "photos" / "a.png")
        with pytest.raises(InputError, match=told):
            plan(folder / image, mask and folder / mask, folder / output)

    def test_overwriting_is_possible_when_asked_for(self, folder):
        jobs = plan(folder / "photos", folder / "masks", folder / "photos", overwrite=True)
        assert [job.output == job.image for job in jobs] == [True, True]


def statuses(manager, jobs, **options):
    return [outcome.status for outcome in run(manager, "red", jobs, Options(**options))]


class TestRun:
    def test_each_picture_is_repaired_in_its_own_format(self, folder, manager):
        jobs = plan(folder / "photos", folder / "masks", folder / "out", recursive=True)
        assert statuses(manager, jobs) == [Status.REPAIRED] * 3
        for job in jobs:
            before, after = read_picture(job.image).rgb, read_picture(job.output).rgb
            tolerance = 0 if job.output.suffix == ".png" else 60
            assert np.abs(after[20:, 20:].astype(int) - before[20:, 20:]).mean() <= tolerance
            assert np.abs(after[:8, :8].astype(int) - (255, 0, 0)).max() <= tolerance
        with PIL.Image.open(folder / "out" / "b.jpg") as result:
            assert result.format == "JPEG"

    def test_finished_pictures_are_skipped_unless_overwritten(self, folder, manager):
        jobs = plan(folder / "photos", folder / "masks", folder / "out")
        assert statuses(manager, jobs[:1]) == [Status.REPAIRED]
        assert statuses(manager, jobs) == [Status.SKIPPED, Status.REPAIRED]
        assert statuses(manager, jobs, overwrite=True) == [Status.REPAIRED] * 2

    def test_a_bad_picture_is_told_and_the_others_go_on(self, folder, manager):
        (folder / "photos" / "a.png").write_text("no picture")
        outcomes = list(run(manager, "red", plan(folder / "photos", folder / "masks", folder / "out"), Options()))
        assert [outcome.status for outcome in outcomes] == [Status.FAILED, Status.REPAIRED]
        assert "a.png is no picture" in str(outcomes[0].error)
        assert not (folder / "out" / "a.png").exists()

    @pytest.mark.parametrize(
        ("spoil", "told"),
        [
            (lambda masks: (masks / "a.png").unlink(), "has no mask"),
            (lambda masks: PIL.Image.new("L", (60, 40)).save(masks / "a.jpg"), "has 2 masks"),
            (
                lambda masks: PIL.Image.new("L", (30, 20)).save(masks / "a.png"),
                "is 60 x 40 and its mask .* is 30 x 20",
            ),
        ],
    )
    def test_a_picture_whose_mask_does_not_fit_is_told(self, folder, manager, spoil, told):
        spoil(folder / "masks")
        jobs = plan(folder / "photos", folder / "masks", folder / "out")
        failed, repaired = run(manager, "red", jobs, Options())
        assert repaired.status is Status.REPAIRED
        with pytest.raises(IOPaintError, match=told):
            raise failed.error

    def test_an_empty_mask_copies_the_picture_byte_for_byte(self, folder, manager):
        PIL.Image.new("L", (60, 40)).save(folder / "masks" / "b.png")
        (job,) = plan(folder / "photos" / "b.jpg", folder / "masks", folder / "out")
        assert statuses(manager, [job]) == [Status.UNCHANGED]
        assert job.output.read_bytes() == job.image.read_bytes()

    def test_an_empty_mask_still_changes_the_format_that_was_asked_for(self, folder, manager):
        PIL.Image.new("L", (60, 40)).save(folder / "masks" / "a.png")
        (job,) = plan(folder / "photos" / "a.png", folder / "masks", folder / "out.bmp")
        assert statuses(manager, [job]) == [Status.UNCHANGED]
        assert job.output.read_bytes().startswith(b"BM")
        assert np.array_equal(read_picture(job.output).rgb, read_picture(job.image).rgb)

    def test_an_empty_mask_leaves_what_is_beyond_the_edges_to_paint(self, folder, manager):
        PIL.Image.new("L", (60, 40)).save(folder / "masks" / "a.png")
        (job,) = plan(folder / "photos" / "a.png", folder / "masks", folder / "out.png")
        extender = {"extender_x": -10, "extender_width": 80, "extender_height": 40}
        assert statuses(manager, [job], parameters={"use_extender": True, **extender}) == [Status.REPAIRED]
        assert read_picture(job.output).rgb.shape == (40, 80, 3)

    def test_the_content_of_a_picture_tells_its_format_not_its_name(self, folder, manager):
        (folder / "photos" / "a.png").rename(folder / "photo.download")
        PIL.Image.new("L", (60, 40)).save(folder / "masks" / "a.png")
        (job,) = plan(folder / "photo.download", folder / "masks" / "a.png", folder / "out.png")
        assert statuses(manager, [job]) == [Status.UNCHANGED]
        assert read_picture(job.output).rgb.shape == (40, 60, 3)

    def test_a_picture_can_be_repaired_in_place(self, folder, manager):
        photo = folder / "photos" / "a.png"
        jobs = plan(photo, folder / "masks" / "a.png", photo, overwrite=True)
        assert statuses(manager, jobs, overwrite=True) == [Status.REPAIRED]
        assert (read_picture(photo).rgb[0, 0] == (255, 0, 0)).all()

    def test_picture_mask_and_result_stand_side_by_side(self, folder, manager):
        jobs = plan(folder / "photos" / "a.png", folder / "masks", folder / "out")
        statuses(manager, jobs, concat=True)
        panels = np.split(read_picture(folder / "out" / "a.png").rgb, 3, axis=1)
        assert np.array_equal(panels[0], read_picture(folder / "photos" / "a.png").rgb)
        assert np.array_equal(panels[1][..., 0], read_mask(folder / "masks" / "a.png"))
        assert (panels[2][0, 0] == (255, 0, 0)).all()

    @pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
    def test_a_plugin_that_raises_costs_that_picture_alone(self, folder, plugins, error):
        class Moody(ImageModel):
            calls = 0

            def forward(self, image, request):
                Moody.calls += 1
                if Moody.calls == 1:
                    raise error("not today")
                return image

        plugins.register(make_plugin("moody", load=Moody, task=Task.RESTORE), "moody")
        jobs = plan(folder / "photos", None, folder / "out")
        failed, done = run(ModelManager(plugins), "moody", jobs, Options())
        assert str(failed.error).startswith(f"moody:moody failed: {error.__name__}: not today")
        assert done.status is Status.REPAIRED

    def test_models_without_masks_run_too(self, folder, plugins):
        class Cut(ImageModel):
            def forward(self, image, request):
                return np.dstack([image, np.full(image.shape[:2], 9, np.uint8)])

        class Left(MaskModel):
            def forward(self, image, request):
                mask = np.zeros(image.shape[:2], np.uint8)
                mask[:, :10] = 255
                return mask

        plugins.register(make_plugin("cut", load=Cut, task=Task.MATTING), "cut")
        plugins.register(make_plugin("left", load=Left, task=Task.SEGMENT), "left")
        manager = ModelManager(plugins)
        for model in ("cut", "left"):
            (outcome,) = run(manager, model, plan(folder / "photos" / "a.png", None, folder / model), Options())
            assert outcome.status is Status.REPAIRED
        assert read_picture(folder / "cut" / "a.png").samples.getpixel((0, 0))[3] == 9
        assert (read_mask(folder / "left" / "a.png")[:, :10] == 255).all()

    def test_parameters_are_those_of_the_model(self, folder, plugins):
        class Larger(ImageModel):
            def forward(self, image, request):
                return image.repeat(int(request.scale), axis=0).repeat(int(request.scale), axis=1)

        plugins.register(make_plugin("larger", load=Larger, task=Task.RESTORE), "larger")
        manager, jobs = ModelManager(plugins), plan(folder / "photos" / "a.png", None, folder / "out")
        with pytest.raises(RequestError, match="unknown key 'scales'"):
            list(run(manager, "larger", jobs, Options(parameters=b'{"scales": 3}')))
        assert manager.pool.stats().counts.loads == 0
        list(run(manager, "larger", jobs, Options(parameters=b'{"scale": 3, "cv2_radius": 3}')))
        assert read_picture(folder / "out" / "a.png").rgb.shape == (120, 180, 3)

    def test_a_mask_that_is_missing_or_of_no_use_is_told_before_the_first_picture(self, folder, plugins, manager):
        with pytest.raises(InputError, match="and there is none"):
            list(run(manager, "red", plan(folder / "photos", None, folder / "out"), Options()))
        plugins.register(make_plugin("copy", load=None, task=Task.RESTORE), "copy")
        with pytest.raises(InputError, match="copy takes no mask"):
            list(run(manager, "copy", plan(folder / "photos", folder / "masks", folder / "out"), Options()))
        assert not (folder / "out").exists()

    def test_a_picture_over_the_limit_is_refused(self, folder, manager):
        job = Job(folder / "photos" / "a.png", (folder / "masks" / "a.png",), folder / "out.png")
        (outcome,) = run(manager, "red", [job], Options(max_pixels=2399))
        assert "over the limit of 2399" in str(outcome.error)


def test_the_folder_of_masks_may_be_shared_by_formats(folder):
    (folder / "photos" / "a.jpg").write_bytes((folder / "photos" / "b.jpg").read_bytes())
    jobs = batch.plan(folder / "photos", folder / "masks", folder / "out")
    assert [(job.image.name, job.masks[0].name, job.output.name) for job in jobs][:2] == [
        ("a.jpg", "a.png", "a.jpg"),
        ("a.png", "a.png", "a.png"),
    ]
