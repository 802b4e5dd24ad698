"""What fits on which TPU, asked of the compiler."""
