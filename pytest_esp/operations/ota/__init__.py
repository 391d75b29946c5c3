"""Updates over the air: packages, their way onto a device, and the way back."""
