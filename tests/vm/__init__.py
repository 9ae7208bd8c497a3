"""`python -m tests.vm`: an emulated machine with Debian's own kernel, for what this machine's kernel lacks."""
