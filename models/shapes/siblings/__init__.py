"""What makes each sibling of flux-shapes: the cases it is shown, and how they are told; one module a family."""
