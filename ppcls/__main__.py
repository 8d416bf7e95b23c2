"""python -m ppcls, the same as the command ppcls."""

from ppcls.cli.main import main

if __name__ == "__main__":
    main()
