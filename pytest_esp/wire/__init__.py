"""Bytes and control lines only: what lies between a host and the UART of a chip."""
