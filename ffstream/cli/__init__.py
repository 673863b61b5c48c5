"""The command line: parses, calls, renders. It imports anything; torch is imported by what it calls, not here."""

from ffstream.cli.app import app, main

# In the order in which help lists their commands.
from ffstream.cli import training  # isort: skip
from ffstream.cli import finished  # isort: skip
from ffstream.cli import studies  # isort: skip

__all__ = ["app", "finished", "main", "studies", "training"]
