"""The program `loopgrad`, also as `python -m loopgrad`. The version is told before anything is loaded."""

import sys

from loopgrad import __version__


def main() -> None:
    """Print the version, or hand the command line on."""
    if sys.argv[1:2] in (["--version"], ["-V"]):
        print(__version__)
        return
    from loopgrad.experiments import cli

    cli.main()


if __name__ == "__main__":
    sys.argv[0] = "loopgrad"  # for records, which hold the command as typed
    main()
