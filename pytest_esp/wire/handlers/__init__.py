"""URL handlers that pyserial finds by their names (``serial.protocol_handler_packages``)."""
