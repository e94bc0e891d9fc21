"""``python -m kd.cli``: kd-train, also under torchrun."""

from kd.cli import train

if __name__ == "__main__":
    train()
