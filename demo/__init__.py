"""An example of the whole thread on embedded pictures: ``python demo/run.py``."""
