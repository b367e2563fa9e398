"""`python -m ggufd`, the same as `ggufd`."""

from ggufd.cli import main

# The engine's process imports this file again, as another module.
if __name__ == "__main__":
    main()
