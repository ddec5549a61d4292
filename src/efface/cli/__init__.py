"""The command line. `main` is the program `efface`; nothing here imports torch until a command needs it."""

import os
import signal
from typing import Any, NoReturn


def main() -> None:
    """Run the program. A signal while it is being loaded ends it as one inside a command does, in one line."""

    def stop(number: int, frame: Any) -> NoReturn:
        os.write(2, b"efface: stopped\n")
        os._exit(128 + number)  # nothing has been opened yet

    heard = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    from efface.cli.app import main as run

    for number, before in heard.items():
        signal.signal(number, before)
    run()


__all__ = ["main"]
