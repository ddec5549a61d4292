"""Run the command line as `python -m efface`."""

from efface.cli import main

if __name__ == "__main__":
    main()
