"""MOVES BYTES: from the model store to RAM, from RAM to a device."""
