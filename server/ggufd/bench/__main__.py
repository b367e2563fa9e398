"""`python -m ggufd.bench URL`: the bench alone, without the rest of the command line."""

from ggufd.bench.app import app

if __name__ == "__main__":
    app()
