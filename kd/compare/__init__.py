"""A comparison of many runs: its plan, and how they are launched."""
