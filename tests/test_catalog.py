import pytest
from conftest import make_plugin

from iopaint_core import (
    AmbiguousModelError,
    ModelInfo,
    ModelType,
    UnknownModelError,
    find_model,
    hookimpl,
    scan_models,
    scan_plugin_models,
)


@pytest.fixture
def two(plugins):
    plugins.register(make_plugin("lama", "zits"), "b", distribution="acme")
    plugins.register(make_plugin("lama", "RealESRGAN_x4plus"), "a", distribution="zeta")
    plugins.register(make_plugin("mat"), "a", distribution="acme")
    return plugins


def test_models_come_by_distribution_plugin_and_name(two):
    assert [info.qualified_name for info in scan_models(two)] == [
        "a:mat",
        "b:lama",
        "b:zits",
        "a:RealESRGAN_x4plus",
        "a:lama",
    ]


def test_plugin_models_are_those_of_the_plugin_type(two):
    @hookimpl
    def iopaint_available_models():
        return [ModelInfo("core", ModelType.INPAINT)]

    two.register(make_plugin(iopaint_available_models=iopaint_available_models), "core")
    assert "core" in [info.name for info in scan_models(two)]
    assert [info.name for info in scan_plugin_models(two)] == ["mat", "lama", "zits", "RealESRGAN_x4plus", "lama"]


def test_a_name_leads_to_its_model(two):
    models = scan_models(two)
    assert find_model("zits", models).distribution == "acme"
    assert find_model("a:lama", models).distribution == "zeta"
    assert find_model("acme:b:lama", models).distribution == "acme"


def test_a_name_of_two_models_is_an_error_that_lists_the_choices(two):
    with pytest.raises(AmbiguousModelError, match="b:lama, a:lama") as caught:
        find_model("lama", scan_models(two))
    assert caught.value.choices == ("b:lama", "a:lama")


def test_a_model_that_can_be_used_goes_before_those_of_its_name_that_cannot_be(plugins):
    def announce(name, reason):
        @hookimpl
        def iopaint_available_models():
            return [ModelInfo(name=name, unavailable=reason)]

        return make_plugin(iopaint_available_models=iopaint_available_models)

    for name, reasons in (("a", ["damaged", ""]), ("b", ["", "unknown"]), ("c", ["cut off", "unknown"])):
        for number, reason in enumerate(reasons):
            plugins.register(announce(name, reason), f"{name}{number}")
    models = scan_models(plugins)
    assert [find_model(name, models).plugin_name for name in "ab"] == ["a1", "b0"]
    with pytest.raises(AmbiguousModelError, match="c0:c, c1:c"):
        find_model("c", models)


def test_where_plugins_share_a_name_too_the_distribution_tells_them_apart(plugins):
    for distribution in ("one", "two"):
        plugins.register(make_plugin("lama"), "a", distribution=distribution)
    models = scan_models(plugins)
    with pytest.raises(AmbiguousModelError) as caught:
        find_model("a:lama", models)
    assert caught.value.choices == ("one:a:lama", "two:a:lama")
    assert [find_model(choice, models).distribution for choice in caught.value.choices] == ["one", "two"]


@pytest.mark.parametrize(
    ("typed", "meant"), [("realesrgan_x4", "RealESRGAN_x4plus"), ("zit", "zits"), ("MAT", "mat")]
)
def test_a_mistyped_name_is_answered_with_the_nearest(two, typed, meant):
    with pytest.raises(UnknownModelError, match=f"Did you mean {meant}") as caught:
        find_model(typed, scan_models(two))
    assert caught.value.choices[0] == meant


def test_a_name_like_no_other_is_answered_with_the_way_to_the_list(two):
    with pytest.raises(UnknownModelError, match="`iopaint-core list` shows all"):
        find_model("qqqqqqq", scan_models(two))
