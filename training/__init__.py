"""Training of generators: data, losses, conditioning, the loop, and sampling from what was trained."""
