"""eFuses, how a chip is locked, flash encryption, secure boot."""
