"""Why a server of the cluster cannot be spoken to, in words, and what to do about it."""

from __future__ import annotations

import ssl

_SPEAKS_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_EOF")
_WANTS_CERTIFICATE = ("CERTIFICATE_REQUIRED", "BAD_CERTIFICATE", "HANDSHAKE_FAILURE")


def innermost(error: object) -> str:
    """The words of the reason within; what stands around them speaks of pools and retries."""
    text = str(error)
    while isinstance(error, BaseException):
        if isinstance(error, ssl.SSLError) and error.reason:
            return getattr(error, "verify_message", "") or error.reason
        text = str(error).rpartition(": ")[2] or text or type(error).__name__
        inside = (getattr(error, "reason", None), *error.args)
        error = next((one for one in inside if isinstance(one, BaseException)), None)
    return text


def tls_hint(error: object, variables: str) -> str:
    """What to do where TLS is the trouble, else empty. `variables` is how the names begin that set it: `NOMAD`."""
    while isinstance(error, BaseException):
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"name the CA that has signed its certificate in {variables}_CACERT"
        if isinstance(error, ssl.SSLError):
            if error.reason in _SPEAKS_NO_TLS:
                return "it speaks no TLS: write http:// into the address"
            if any(words in str(error.reason) for words in _WANTS_CERTIFICATE):
                return f"it wants a client's certificate: set {variables}_CLIENT_CERT and {variables}_CLIENT_KEY"
        inside = (getattr(error, "reason", None), *error.args)
        error = next((one for one in inside if isinstance(one, BaseException)), None)
    return ""


def speaks_tls(text: str) -> bool:
    """Whether a server has answered plain HTTP with this because it wants TLS."""
    return "HTTP request to an HTTPS server" in text
