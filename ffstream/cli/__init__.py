"""The command line: parses options, calls the library, shows results.

It may import any package. torch is imported only by what it calls.
"""

from ffstream.cli.app import app, main

# The order of these imports is the order in which help lists the commands.
from ffstream.cli import training  # isort: skip
from ffstream.cli import stream  # isort: skip
from ffstream.cli import finished  # isort: skip
from ffstream.cli import studies  # isort: skip

__all__ = ["app", "finished", "main", "stream", "studies", "training"]
