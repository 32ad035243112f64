"""Hash many files now, ask for the results later, from another process.

    nomadfn run examples/hash_later.py                      all in one go

    nomadfn up                                              or in two: keep a control service,
    nomadfn deploy examples/hash_later.py                   give it the function,
    python examples/hash_later.py send /usr/share           hand in the work; this prints the call's id and ends,
    python examples/hash_later.py collect fc-…              and fetch what it gave: today, or within 7 days
    nomadfn down

Shows: `.spawn_map`, whose inputs are safe on disk once it returns; `Function.from_name`, which finds a deployed
function from any program; `FunctionCall.from_id`, which finds a call again.
"""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import nomadfn

app = nomadfn.App("hash-later")


@app.function()
def sha256(path: str) -> tuple[str, str]:
    """The path and the SHA-256 of the file behind it."""
    with open(path, "rb") as file:
        return path, hashlib.file_digest(file, "sha256").hexdigest()


def files_in(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.rglob("*.py")) if path.is_file()]


def results(call_id: str) -> Iterator[str]:
    """What `sha256sum` would print, as far as it is done, waiting for the rest."""
    for path, digest in nomadfn.FunctionCall.from_id(call_id).iter():
        yield f"{digest}  {path}"


@app.local_entrypoint()
def main(folder: str = str(Path(hashlib.__file__).parent / "json")) -> None:
    call = sha256.spawn_map(files_in(Path(folder)))
    print(f"{call.num_inputs()} files handed in as {call.object_id}")
    for line in results(call.object_id):
        print(line)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["send", folder]:
            print(nomadfn.Function.from_name("hash-later", "sha256").spawn_map(files_in(Path(folder))).object_id)
        case ["collect", call_id]:
            print(*results(call_id), sep="\n")
        case _:
            sys.exit(__doc__)
