"""The command ``peft-hooks``."""
