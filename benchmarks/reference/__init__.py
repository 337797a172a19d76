"""The published training step, written plainly: what `benchmarks/bench_train.py` and `bench_sampling.py` compare with.

Every operation is the one that papers and official code name: nearest ×2 and then a 3×3 convolution, torch's own
spectral norm, batch norm as layers of the frozen network, mixing after enlarging, separate passes of G, of D on fakes
and of D on reals, Adam and the moving average one tensor at a time. Only mathematics counts here, for square RGB
images on one device in one precision: no options beyond those of the five configurations that are measured, no
checkpoints. `tests/test_reference.py` holds it against recorded numbers of the official modules and against ours.
"""
