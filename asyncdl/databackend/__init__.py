"""The databackend: the user's rows, and the model outputs beside them."""
