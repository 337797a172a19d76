"""Networks: frozen backbones, projector, discriminator, generators, encoder and the layers they share.

Images are ``[N, 3, R, R]`` in [-1, 1], conditions ``c [N, c_dim]``, noised representations ``h [N, C, H, W]``.
"""
