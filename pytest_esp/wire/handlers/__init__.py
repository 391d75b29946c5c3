"""URL handlers for pyserial, which finds them by name (``serial.protocol_handler_packages``)."""
