"""The command line: one file a verb, wiring only.

Invariant: importing this package or `kvmon.cli.main` imports click and nothing heavier; a verb imports what it needs
inside its function. Only the command line reads the environment.
"""
