"""What this package raises on purpose: one tree, each error with what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class IOPaintError(Exception):
    """What went wrong in `message`, what to do about it in `remedy`."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}. {self.remedy}." if self.remedy else self.message


class PluginError(IOPaintError):
    """A plugin, or a setting that selects plugins, breaks the contract."""


class ContractError(PluginError):
    """What a plugin declares or returns breaks the contract; the remedy is for its author."""


class ModelNameError(IOPaintError):
    """A name does not lead to one model; `choices` are names that do."""

    def __init__(self, message: str, remedy: str = "", choices: tuple[str, ...] = ()) -> None:
        super().__init__(message, remedy)
        self.choices = choices


class UnknownModelError(ModelNameError):
    """No plugin announces a model of that name; `choices` are the nearest names."""


class AmbiguousModelError(ModelNameError):
    """Several plugins announce a model of that name; `choices` are their qualified names."""


class ModelLoadError(IOPaintError):
    """A plugin could not load a model that it announced."""


class ModelError(IOPaintError):
    """A loaded model failed on a picture."""


class ModelOutputError(ModelError):
    """A model returned something else than its contract says."""


class UnavailableModelError(ModelLoadError):
    """A model that can't be used yet: its plugin says why, in `ModelInfo.unavailable`."""


class WeightsError(ModelLoadError):
    """A file of weights is damaged, or of a kind that is not read."""


class DownloadError(WeightsError):
    """A file of weights could not be fetched."""


class MissingWeightsError(WeightsError):
    """Files of weights are not on disk, and no connection may be opened."""


class UntrustedWeightsError(WeightsError):
    """A file can run code when it is loaded, and nobody has vouched for it."""


class PoolError(IOPaintError):
    """The pool was used in a way that it can't serve, a closed lease for example."""


class PoolFullError(PoolError):
    """There is no room on a device, and none came in time; the message names who holds how much."""


class LoadTimeoutError(PoolError):
    """A load has not finished in time; it goes on, and who asks again waits on."""


class LoadCancelledError(PoolError):
    """Raised in a load that nobody waits for any more."""


class InputError(IOPaintError):
    """An image or a mask that no model can work on."""


class RequestError(IOPaintError):
    """A request with an unknown key or a value out of range."""


class OptionsError(IOPaintError):
    """A load option that is unknown or has a wrong value, or a file of them that can't be read."""


class PictureError(IOPaintError):
    """A picture file that can't be read or written."""


class PictureReadError(PictureError):
    """A file that is missing, damaged, or no picture that can be read."""


class PictureTooLargeError(PictureReadError):
    """A picture with more pixels than the limit; refused before it is decoded."""


class PictureWriteError(PictureError):
    """A picture that can't be written; what stood there before is whole."""


class AskedError(BaseException):
    """Ends a loader once it has asked for its components; no plugin that catches `Exception` keeps it."""

    def __init__(self, components: Mapping[str, Any]) -> None:
        super().__init__("this load only asks what is needed")
        self.components = components


def nearest(name: str, choices: Iterable[str]) -> tuple[str, ...]:
    """At most three choices that resemble a mistyped name, the best first; case does not count."""
    import difflib

    folded = {choice.casefold(): choice for choice in choices}
    return tuple(folded[match] for match in difflib.get_close_matches(name.casefold(), folded))


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """A parenthesis with the nearest choice, or nothing where none is near."""
    near = nearest(name, choices)
    return f" (did you mean {near[0]}?)" if near else ""
