"""Numbers from images and features, and the protocol each was made under."""
