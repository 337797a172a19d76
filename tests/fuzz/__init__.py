"""Mutated and hand-made hostile files, opened the way the scripts open them, in a process with bounds."""
