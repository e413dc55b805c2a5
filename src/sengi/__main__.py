"""``python -m sengi``: the same as the command, for torchrun."""

from sengi.cli.app import main

if __name__ == "__main__":
    main()
