"""The version, where it can be read without importing torch."""

VERSION = "0.1.0"
