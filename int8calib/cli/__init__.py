"""Command lines come in, exit codes go out: one thin file per command."""
