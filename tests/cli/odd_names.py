"""Names of classes that a terminal, a markup, a spreadsheet or a shell might obey."""

from __future__ import annotations

NAMES = ["=1+1", "[bold]", "[red]x", "\x1b[31mred\x1b[0m", ":cat:", "a\nb", "\u202eabc", "$\\frac"]
