"""The encoder process: images become rows by the model's projector, apart from engine and server, each image once."""
