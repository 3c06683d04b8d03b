"""What alternatives cost on this machine: measured curves, the file that keeps them, and prices made of them."""
