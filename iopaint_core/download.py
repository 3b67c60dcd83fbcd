"""One file over HTTP, taken up again after every cut."""

from __future__ import annotations

import errno
import logging
import shutil
import time
from typing import TYPE_CHECKING

from iopaint_core.errors import DownloadError
from iopaint_core.schema import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import httpx

_logger = logging.getLogger(__name__)

_TRIES = 5
"""In a row without a byte, before it is given up."""
_LONGEST_PAUSE = 120.0
"""Seconds that a server may ask for with Retry-After."""
_BUSY = {408, 425, 429, 500, 502, 503, 504}


class Download:
    """Brings the file at a URL to `part`, from where that ends.

    `size` is how many bytes it has, if that is known. `progress(done, total)` is called after each chunk; what it
    raises ends the download, and what has come stays for the next one. `pause` is called to wait some seconds.
    """

    def __init__(
        self,
        url: str,
        part: Path,
        *,
        size: int | None = None,
        https_only: bool = False,
        stall: float = 30.0,
        progress: Callable[[int, int | None], None] | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._url = url
        self._part = part
        self._etag = part.with_name(f"{part.name}.etag")
        self._size = size
        self._https_only = https_only
        self._stall = stall
        self._progress = progress
        self._pause = pause

    def run(self) -> None:
        """Return once the file is whole. Raises `DownloadError`."""
        import httpx

        failures = 0
        with httpx.Client(
            follow_redirects=True,
            timeout=self._stall,
            headers={"User-Agent": "iopaint-core", "Accept-Encoding": "identity"},
            event_hooks={"request": [self._check_scheme]},
        ) as client:
            while True:
                before = self._done()
                try:
                    self._go_on(client, before)
                    break
                except (httpx.TransportError, _BusyError) as error:
                    failures = 0 if self._done() > before else failures + 1
                    what = str(error) or type(error).__name__
                    if failures >= _TRIES or isinstance(error, httpx.UnsupportedProtocol):
                        raise DownloadError(
                            f"{self._url} can't be fetched: {what}",
                            "Look at the connection and try again: what has come is kept",
                        ) from error
                    seconds = getattr(error, "retry_after", None) or 2.0 ** max(0, failures - 1)
                    _logger.info("%s: %s; trying again in %g seconds", self._url, what, seconds)
                    self._pause(seconds)
                except (httpx.InvalidURL, httpx.TooManyRedirects) as error:
                    raise DownloadError(f"{self._url} can't be fetched: {error}", "Look at the URL") from error
                except OSError as error:
                    raise self._disk_error(error) from error
        self._etag.unlink(missing_ok=True)

    def _done(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def _go_on(self, client: httpx.Client, done: int) -> None:
        if done and done == self._size:
            return
        headers = {}
        if done:
            headers["Range"] = f"bytes={done}-"
            if self._etag.exists():
                headers["If-Range"] = self._etag.read_text()
        with client.stream("GET", self._url, headers=headers) as response:
            start = self._start_of(response, done)
            if start is None:
                return
            length = response.headers.get("Content-Length", "")
            total = start + int(length) if length.isdecimal() else self._size
            self._check_room((total or 0) - start)
            etag = response.headers.get("ETag", "")
            if etag.startswith('"'):
                self._etag.write_text(etag)
            else:
                self._etag.unlink(missing_ok=True)
            with self._part.open("ab" if start else "wb") as file:
                for chunk in response.iter_raw():
                    file.write(chunk)
                    start += len(chunk)
                    if self._progress is not None:
                        self._progress(start, total)
        if self._size is not None and start < self._size:
            raise _BusyError(f"it ended after {start} of {self._size} bytes")

    def _start_of(self, response: httpx.Response, done: int) -> int | None:
        """Where in the file the body of a response begins; None if there is nothing more to come."""
        status = response.status_code
        if status in _BUSY:
            raise _BusyError(f"the server answered {status}", self._retry_after(response))
        if status == 416:
            if response.headers.get("Content-Range") == f"bytes */{done}":
                return None
            self._part.unlink(missing_ok=True)  # it is no beginning of what is there now
            raise _BusyError("the file has changed on the server")
        if status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
            return done
        if status == 200:
            return 0
        if status == 206:
            self._part.unlink(missing_ok=True)
            raise _BusyError("the server sent another part than the one asked for")
        remedies = {401: "It needs a login", 403: "It needs a login", 404: "Look whether it has moved"}
        raise DownloadError(f"{self._url} answered {status}", remedies.get(status, "Look at the URL"))

    def _retry_after(self, response: httpx.Response) -> float | None:
        """Seconds that the server asks to be left alone, as a number or a date (RFC 9110, section 10.2.3)."""
        from email.utils import parsedate_to_datetime

        text = response.headers.get("Retry-After", "")
        try:
            seconds = float(text) if text.isdecimal() else parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return None
        if seconds > _LONGEST_PAUSE:
            raise DownloadError(
                f"{self._url} is not to be asked for {seconds:.0f} seconds, says its server",
                "Try again then: what has come is kept",
            )
        return max(0.0, seconds)

    def _check_scheme(self, request: httpx.Request) -> None:
        if self._https_only and request.url.scheme != "https":
            raise DownloadError(
                f"{request.url} is not encrypted, and this host takes weights over https alone",
                "Give an https URL, or fetch the file yourself",
            )

    def _check_room(self, nbytes: int) -> None:
        free = shutil.disk_usage(self._part.parent).free
        if nbytes > free:
            raise OSError(
                errno.ENOSPC, f"{format_bytes(nbytes)} more are needed, and {format_bytes(free)} are free"
            )

    def _disk_error(self, error: OSError) -> DownloadError:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        return DownloadError(
            f"{self._part.parent} can't take {self._url}: {error.strerror}",
            "Make room and try again: what has come is kept" if full else "Look at the folder",
        )


class _BusyError(Exception):
    """Worth another try."""

    def __init__(self, what: str, retry_after: float | None = None) -> None:
        super().__init__(what)
        self.retry_after = retry_after
