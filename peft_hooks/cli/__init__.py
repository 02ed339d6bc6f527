"""The command `peft-hooks`."""
