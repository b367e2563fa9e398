"""`python -m server.bench URL`: the bench alone, without the rest of the command line."""

import typer

from server.bench.command import bench

if __name__ == "__main__":
    typer.run(bench)
