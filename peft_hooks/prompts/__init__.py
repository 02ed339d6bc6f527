"""The hooks that make PEFT's virtual tokens right in a Sentence Transformers model."""
