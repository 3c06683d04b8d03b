"""The analyser of tensor expressions (PIT): which axes may be permuted, and along which zeros may be skipped."""
