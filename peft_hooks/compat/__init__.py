"""What differs between the supported releases of PyTorch, transformers, PEFT and Sentence Transformers."""
