"""The command `nomadfn`: what it begins with, and what becomes of an error. Its commands are in `tree`.

    exit code   0  done
                1  the user's own code raised; its traceback is on stderr
                2  the command line is wrong
                3  nomadfn could not do it; one line on stderr says what happened and what to do
              130  Ctrl-C

`run` needs a control service, which takes longer to start than anything else: it is begun before even the command
line is understood.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

from nomadfn.exception import Error

EXIT_USER_ERROR = 1
EXIT_ERROR = 3
EXIT_INTERRUPTED = 130


def main() -> None:
    """The entry point; ends the process."""
    gc.disable()  # Imports make hardly any garbage, and somebody waits for them.
    try:
        if _will_run(sys.argv[1:]):
            _begin_service()
        from nomadfn.cli.tree import cli

        gc.freeze()
        gc.enable()
        cli(prog_name="nomadfn")
    except Error as error:
        code = _report(error)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has closed it (`| head`); there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_USER_ERROR
    except Exception as error:
        code = _report(error)
    sys.exit(code)


def _will_run(words: Sequence[str]) -> bool:
    """Whether these words certainly are a `run` of a program of this machine; `run` itself looks at all the others."""
    if words[:1] != ["run"]:
        return False
    for place, word in enumerate(words[1:], 2):
        if not word.startswith("-"):
            return os.path.isfile(word.partition("::")[0]) and not {"--help", "-h"} & set(words[place:])
        if word not in ("--quiet", "-q", "--as-modal"):
            return False
    return False


def _begin_service() -> None:
    from nomadfn.sdk import private_service

    try:
        private_service.begin()
    except Error:
        pass  # It comes again when the service is asked for, at a better place.


def _report(error: Exception) -> int:
    from nomadfn.cli import output

    if os.environ.get("NOMADFN_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    if isinstance(error, Error):
        output.print_error(str(error) or type(error).__name__)
    else:
        output.print_error(
            f"a fault of nomadfn ({type(error).__name__}: {error}); "
            "run it again with NOMADFN_DEBUG=1 and report what it shows"
        )
    return EXIT_ERROR
