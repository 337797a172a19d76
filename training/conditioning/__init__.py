"""What G and D are conditioned on: one file per method, one small interface (base.py)."""
