"""One module per command of ``conformance``: ``configure(parser)`` and ``run(args) -> exit code``."""
