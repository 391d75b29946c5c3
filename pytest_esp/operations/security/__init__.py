"""eFuses, lock state of the chip, flash encryption, secure boot."""
