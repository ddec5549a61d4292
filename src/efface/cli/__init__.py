"""The command line. `main` is the program `efface`; nothing here imports torch until a command needs it."""

from efface.cli.app import main

__all__ = ["main"]
