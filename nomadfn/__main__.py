"""`python -m nomadfn` is the command `nomadfn`."""

from nomadfn.cli.main import main

if __name__ == "__main__":
    main()
