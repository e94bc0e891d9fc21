"""The processes of one command: ranks, ends and exit codes, and the configuration that they run."""
