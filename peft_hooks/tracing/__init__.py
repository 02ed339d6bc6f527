"""Record the shapes in every module of a forward, and explain why one failed."""
