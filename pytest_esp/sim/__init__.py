"""Simulated chips: ROM and stub protocol, flash, eFuses, boot."""
