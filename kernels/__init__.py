"""Kernels: one folder per op, each with a naive reference, a C++ CPU kernel, a Triton GPU kernel and a cost function.

    from kernels.gemv import gemv, gated_gemv, linear
    from kernels.rms_norm import rms_norm
    from kernels.rope import apply, append, rotate_and_append
    from kernels.flash_decode import dense_spans, flash_decode
    from kernels.counting import counting

This room imports no other room of the project, and importing it imports neither triton nor a compiler.
"""
