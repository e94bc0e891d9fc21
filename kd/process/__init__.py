"""The processes of one command: who they are, how they end, and what they are asked to run."""
