"""`python -m server.bench URL`: the bench alone, without the rest of the command line."""

from server.bench.app import app

if __name__ == "__main__":
    app()
