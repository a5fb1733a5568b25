"""Where the build puts the compiled kernels."""
