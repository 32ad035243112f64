"""Every error that nomadfn raises, one tree.

    Error
      InvalidError             a wrong argument, decorator or combination
      NotFoundError            a name or an id that nothing stands behind
      AuthError                no token, or a wrong one
      PermissionDeniedError    a good token without the right for this
      AlreadyExistsError       the name is taken
      ConflictError            somebody else holds it: a second service, a newer revision
      ResourceExhaustedError   over a limit; says which, by how much, and when to try again
      RemoteError              the function raised something that cannot be carried here
      ExecutionError           the code could not be run at all
      SerializationError       a value cannot be pickled
      DeserializationError     a value cannot be unpickled
      RequestSizeError         a payload over the size limit
      InternalError            a fault of nomadfn
      InternalFailure          the containers that ran the input were lost, again and again
      ServiceError             the control service cannot be reached or cannot go on
      UnsupportedError         part of Modal's API that nomadfn does not have
      TimeoutError
        DeadlineExceededError  the call's `deadline` passed before it was started; a builtin TimeoutError, too
        FunctionTimeoutError   the function ran longer than its `timeout`
        OutputExpiredError     the result was kept for its time and is gone

Outside the tree stand `InputCancellation`, a `BaseException` so that `except Exception` in user code
does not swallow it, and `DeprecationError`, a warning that is raised.
"""

from __future__ import annotations

import builtins


class Error(Exception):
    """The root of every error that nomadfn raises."""


class InvalidError(Error):
    """A wrong argument, decorator or combination of them."""


class NotFoundError(Error):
    """No app, function, call or file has that name or id."""


class AuthError(Error):
    """The control service refused the token, or there was none."""


class PermissionDeniedError(Error):
    """The token is good, but its scope does not allow this."""


class AlreadyExistsError(Error):
    """The name is taken."""


class ConflictError(Error):
    """Somebody else holds what was asked for."""


class ResourceExhaustedError(Error):
    """A limit was reached.

    `limit` is its name, `value` what was there, `maximum` what is allowed, and `retry_after_s`
    the seconds after which a further try is worth it.
    """

    def __init__(
        self,
        message: str = "",
        *,
        limit: str = "",
        value: int = 0,
        maximum: int = 0,
        retry_after_s: float = 1.0,
    ) -> None:
        super().__init__(message)
        self.limit = limit
        self.value = value
        self.maximum = maximum
        self.retry_after_s = retry_after_s


ResourceExhausted = ResourceExhaustedError


class RemoteError(Error):
    """The function raised something that cannot be carried here; the text says what."""


class ExecutionError(Error):
    """The function's code could not be loaded or run at all."""


class SerializationError(Error):
    """A value cannot be pickled."""


class DeserializationError(Error):
    """A value cannot be unpickled on this side."""


class RequestSizeError(Error):
    """A payload is over the size limit."""


class InternalError(Error):
    """A fault of nomadfn itself."""


class InternalFailure(Error):
    """The containers that ran the input were lost, again and again."""


class ServiceError(Error):
    """The control service cannot be reached, or cannot go on."""


class UnsupportedError(Error):
    """A part of Modal's API that nomadfn does not have; the text says what to do instead."""


class TimeoutError(Error):
    """Something of nomadfn took longer than it may. (`FunctionCall.get` raises the builtin one.)"""


class DeadlineExceededError(TimeoutError, builtins.TimeoutError):
    """The `deadline` of a `.remote` or `.map` passed before the input was started.

    Of a spawn `FunctionCall.get` raises plain `TimeoutError` of this module for that: a builtin one would read as
    "not there yet" to whoever polls.
    """


class FunctionTimeoutError(TimeoutError):
    """The function ran longer than its `timeout`, and its retries were used up."""


class OutputExpiredError(TimeoutError):
    """The result was kept for its time (7 days by default) and is gone."""


class InputCancellation(BaseException):
    """Raised inside a function whose input was cancelled."""


class DeprecationError(UserWarning):
    """An old name was used; the text says the new one."""
