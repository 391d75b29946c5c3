"""The connection between a host and a chip's UART: bytes and control lines."""
