"""The HTTP API from the command line's side: finding the control service, asking it, raising its errors."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from nomadfn import exception
from nomadfn.sdk import service

TIMEOUT_S = 30.0
TAKEOVER_S = 10.0
PAUSE_S = 0.05
NDJSON = "application/x-ndjson"


class FunctionError(exception.Error):
    """A function raised; `traceback` is as its container printed it."""

    def __init__(self, kind: str, message: str, traceback: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.traceback = traceback


class ApiClient:
    """Asks one control service. Every method raises the errors of `nomadfn.exception`."""

    def __init__(self, url: str, token: str, handle: service.ServiceHandle | None = None) -> None:
        """With `handle`, of a cluster, a leader that is gone is waited for: for the one that takes over from it."""
        self.url = url
        self._token = token
        self._handle = handle

    def ask(self, method: str, path: str, body: Any = None, timeout_s: float = TIMEOUT_S) -> Any:
        """The answer's JSON. Raises what the service answered with, or ServiceError when it cannot be reached."""
        return self._content(*self._send(method, path, body, timeout_s))

    def _content(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> Any:
        try:
            text = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()
        try:
            content = json.loads(text)
        except ValueError:
            raise exception.ServiceError(
                f"{self.url} answered {response.status} without JSON; is that a nomadfn control service?"
            ) from None
        if response.status >= 400:
            raise _error_of(content, response)
        return content

    def call(self, path: str, body: Any, timeout_s: float) -> Any:
        """As `ask`, of a function; of a generator an iterator over its values, as they come."""
        connection, response = self._send("POST", path, body, timeout_s)
        if response.headers.get_content_type() != NDJSON:
            return self._content(connection, response)
        if connection.sock is not None:
            connection.sock.settimeout(None)
        return self._values(connection, response)

    def _values(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> Iterator[Any]:
        try:
            for line in self._lines(response):
                content = json.loads(line)
                if "error" in content:
                    raise _error_of(content, response)
                yield content["value"]
        finally:
            connection.close()

    def lines(self, path: str) -> Iterator[bytes]:
        """The lines of a log as they come, until the service ends it."""
        connection, response = self._send("GET", path, None, None)
        try:
            if response.status >= 400:
                raise _error_of(json.loads(response.read()), response)
            yield from self._lines(response)
        finally:
            connection.close()

    def _lines(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        """Whole lines, to the answer's own end."""
        try:
            while line := response.readline():
                yield line
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error

    def _send(
        self, method: str, path: str, body: Any, timeout_s: float | None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        end = time.monotonic() + TAKEOVER_S
        while True:
            try:
                return self._try(method, path, body, timeout_s)
            except ConnectionRefusedError as error:
                if self._handle is None or self._handle.locate is None or time.monotonic() > end:
                    raise self._unreachable(error) from error
                if self._handle.refresh(patiently=True):
                    self.url = self._handle.http_url
                time.sleep(PAUSE_S)
            except (OSError, http.client.HTTPException) as error:
                raise self._unreachable(error) from error

    def _try(
        self, method: str, path: str, body: Any, timeout_s: float | None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=timeout_s)
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            return connection, connection.getresponse()
        except BaseException:
            connection.close()
            raise

    def _unreachable(self, error: Exception) -> exception.ServiceError:
        return exception.ServiceError(
            f"the control service at {self.url} does not answer ({error}); `nomadfn status` says whether it runs, "
            "`nomadfn up` starts it"
        )


def staying() -> service.ServiceHandle:
    """The profile's control service. Raises ServiceError when there is none."""
    found = service.find_staying()
    if found is None:
        raise exception.ServiceError("no control service is running; start one with `nomadfn up`")
    return found


def connect() -> ApiClient:
    """The HTTP API of the profile's control service. Raises ServiceError when there is none."""
    found = staying()
    return ApiClient(found.http_url, found.token, found)


def path(*parts: str, **query: object) -> str:
    """`/v1/…` with each part and value quoted; what is None is left out of the query."""
    route = "/".join(quote(part, safe="") for part in parts)
    asked = urlencode({name: value for name, value in query.items() if value is not None})
    return f"/v1/{route}?{asked}" if asked else f"/v1/{route}"


def _error_of(content: Any, response: http.client.HTTPResponse) -> exception.Error:
    try:
        error = content["error"]
        kind, message = str(error["kind"]), str(error["message"])
    except (TypeError, KeyError):
        return exception.ServiceError(f"the control service answered {response.status} without saying why")
    if "traceback" in error:
        return FunctionError(kind, message, str(error["traceback"]))
    cls = getattr(exception, kind, exception.ServiceError)
    if cls is exception.ResourceExhaustedError:
        retry_after_s = response.headers.get("Retry-After", "")
        return exception.ResourceExhaustedError(
            message, retry_after_s=float(retry_after_s) if retry_after_s.isdigit() else 1.0
        )
    if not (isinstance(cls, type) and issubclass(cls, exception.Error)):
        return exception.ServiceError(f"{kind}: {message}")
    return cls(message)
