"""Final answers in mathematics: finding, bounding, reading and comparing them."""
