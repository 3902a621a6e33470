"""The program `loopgrad`, also as `python -m loopgrad`. The version is told before anything is loaded."""

import sys

from loopgrad import __version__


def main() -> None:
    """Print the version, or hand the command line on; however it ends, a user sees no traceback."""
    from loopgrad.experiments import endings

    try:
        with endings.on_signals(endings.leave), endings.in_one_line():
            endings.hold_streams()
            if sys.argv[1:2] in (["--version"], ["-V"]):
                print(__version__)
                return
            from loopgrad.experiments import cli

            cli.main()
    finally:
        endings.ignore_signals()  # the work is done, and the interpreter may take a moment to end


if __name__ == "__main__":
    sys.argv[0] = "loopgrad"  # for records, which hold the command as typed
    main()
